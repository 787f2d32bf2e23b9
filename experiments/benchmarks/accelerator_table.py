"""The table of `experiments.benchmarks.accelerators`: its columns, in a terminal and as a file."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from experiments.benchmarks import results
from experiments.benchmarks.chips import CHIPS, count_chips
from experiments.core.files import write_csv

Row = Mapping[str, Any]

HEADER = (
    "row", "network", "topology", "status", "cycles", "ratio", "traffic_cycles", "kernel_cycles",
    "bytes", "bytes_ratio", "temporary_bytes", "temporary_ratio", "memory_bytes", "state_bytes",
    "parameters", "collectives", "compile_seconds",
)  # fmt: skip


def name_row(row: Row) -> str:
    """Returns the name of a row: the network, and the topology if it is more than one chip."""
    return row["network"] if row["topology"] == "1" else f"{row['network']} on {row['topology']}"


def find_static(row: Row, rows: Sequence[Row], static: str) -> Row:
    """Returns the row of the static network on the same topology, an empty one if it is not known."""
    for other in rows:
        if other["network"] == static and other["topology"] == row["topology"]:
            return other
    return {}


def compute_ratio(row: Row, static: Row, key: str) -> float | None:
    """Returns a number of a row divided by that of the static network, None if one is missing."""
    return row[key] / static[key] if row.get(key) and static.get(key) else None


def make_record(row: Row, static: Row) -> list[object]:
    """Returns the cells of a row in the order of `HEADER`; None for what is not known."""
    ratios = {
        "ratio": compute_ratio(row, static, "cycles"),
        "bytes_ratio": compute_ratio(row, static, "bytes"),
        "temporary_ratio": compute_ratio(row, static, "temporary_bytes"),
    }
    named = {
        "row": name_row(row),
        "collectives": format_collectives(row.get("collectives", {})),
        **{name: None if value is None else round(value, 3) for name, value in ratios.items()},
    }
    return [named[name] if name in named else row.get(name) for name in HEADER]


def format_collectives(counts: Mapping[str, int]) -> str:
    """Returns counts such as '3 all-reduce, 1 all-gather', most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} {kind}" for kind, count in ordered)


def format_row(row: Row, static: Row) -> str:
    """Returns a row as one line, for the output while the table is made."""
    if row["status"] == "fails":
        return f"{name_row(row)}: fails: {row['message']}"
    if "cycles" not in row:
        return f"{name_row(row)}: does not fit: {row['message']}"
    parts = [
        f"{row['bytes'] / 1e9:.1f} GB moved",
        f"{row['temporary_bytes'] / 1e9:.1f} GB temporary",
    ]
    ratio = compute_ratio(row, static, "bytes")
    if row["cycles"]:
        parts.insert(0, f"{row['cycles'] / 1e6:.1f} M cycles")
        ratio = compute_ratio(row, static, "cycles")
    if ratio is not None:
        parts.insert(1, f"{ratio:.2f} times static")
    parts += [row["status"], f"compiled in {row['compile_seconds']:.0f} s"]
    return f"{name_row(row)}: {', '.join(parts)}"


def make_table(rows: Sequence[Row], static: str, title: str) -> Table:
    """Makes the table of the rows for a terminal."""
    chip = CHIPS[rows[0]["platform"]]
    several = any(count_chips(row["topology"]) > 1 for row in rows)

    def scaled(key: str, unit: float, digits: int = 1) -> Callable[[Row, Row], str]:
        return lambda row, _: f"{row[key] / unit:,.{digits}f}" if row.get(key) is not None else "-"

    def ratio(key: str) -> Callable[[Row, Row], str]:
        def write(row: Row, static: Row) -> str:
            value = compute_ratio(row, static, key)
            return "-" if value is None else f"{value:.2f}"

        return write

    columns: list[tuple[str, Callable[[Row, Row], str]]] = [
        ("network", lambda row, _: name_row(row))
    ]
    if chip.platform == "tpu":
        columns += [
            ("M cycles,\nestimate", scaled("cycles", 1e6)),
            ("times\nstatic", ratio("cycles")),
        ]
    columns += [
        ("M cycles,\nmemory bound", scaled("traffic_cycles", 1e6)),
        ("GB\nmoved", scaled("bytes", 1e9)),
        ("times\nstatic", ratio("bytes")),
        ("temporary\nGB", scaled("temporary_bytes", 1e9)),
        ("times\nstatic", ratio("temporary_bytes")),
        ("in all, GB", scaled("memory_bytes", 1e9)),
        (f"of {chip.memory / 1e9:.1f} GB", lambda row, _: row["status"]),
        ("M para-\nmeters", scaled("parameters", 1e6)),
        ("compiled\nin s", scaled("compile_seconds", 1, 0)),
    ]
    if several:
        columns += [
            ("state,\nGB a chip", scaled("state_bytes", 1e9, 2)),
            ("collectives", lambda row, _: format_collectives(row.get("collectives", {}))),
        ]
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, _ in columns:
        text = heading in ("network", "collectives")
        table.add_column(heading, justify="left" if text else "right", no_wrap=heading == "network")
    for row in rows:
        reference = find_static(row, rows, static)
        table.add_row(*(write(row, reference) for _, write in columns))
    return table


def make_operations_table(row: Row, count: int = 15) -> Table:
    """Makes the table of the dearest lines of the source, for a terminal."""
    table = Table(title=name_row(row), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    tpu = CHIPS[row["platform"]].platform == "tpu"
    total = row["cycles" if tpu else "bytes"] or 1
    for heading in ("M cycles", "GB", "share", "times"):
        table.add_column(heading, justify="right")
    for heading in ("source", "operation"):
        table.add_column(heading, overflow="fold")
    for one in row["operations"][:count]:
        table.add_row(
            f"{one['cycles'] / 1e6:.2f}" if tpu else "-",
            f"{one['bytes'] / 1e9:.2f}",
            f"{(one['cycles'] if tpu else one['bytes']) / total:.1%}",
            str(one["times"]),
            one["source"] or "-",
            one["name"],
        )
    return table


def list_notes(rows: Sequence[Row]) -> list[str]:
    """Lists what a reader must know about single rows: failures, and what could not be counted."""
    notes = []
    for row in rows:
        name = name_row(row)
        if row["status"] == "fails":
            notes.append(f"{name} does not compile: {row['message']}")
        elif "cycles" not in row:
            notes.append(f"{name} does not fit: {row['message']}")
            if row.get("largest_buffers_bytes"):
                gigabytes = row["largest_buffers_bytes"] / 1e9
                notes.append(f"{name}: the largest buffers have {gigabytes:.1f} GB together.")
        if row.get("unknown_loops"):
            notes.append(f"{name}: {row['unknown_loops']} loops of unknown length count once.")
        if row.get("missing_kernels"):
            notes.append(f"{name}: {row['missing_kernels']} fused kernels have no schedule.")
        if row.get("unpriced_cycles", 0) > 0.02 * row.get("cycles", 0) > 0:
            notes.append(
                f"{name}: operations without an estimate move bytes for "
                f"{row['unpriced_cycles'] / 1e6:.1f} M cycles more."
            )
        if row.get("branch_cycles"):
            notes.append(
                f"{name}: branches that a step rarely takes have {row['branch_cycles'] / 1e6:.1f} M cycles "
                "more."
            )
    return notes


def write_files(path: Path, rows: Sequence[Row], static: str, caption: str) -> None:
    """Writes the table to `<path>.csv`, and a plot of the ratios to `<path>.png`."""
    records = [make_record(row, find_static(row, rows, static)) for row in rows]
    write_csv(f"{path}.csv", HEADER, records)
    tpu = CHIPS[rows[0]["platform"]].platform == "tpu"
    ratios = {
        name_row(row): compute_ratio(
            row, find_static(row, rows, static), "cycles" if tpu else "bytes"
        )
        for row in rows
    }
    kind = "cycles by the compiler's estimate" if tpu else "bytes moved"
    results.plot_ratios(
        path,
        {name: ratio for name, ratio in ratios.items() if ratio} or {static: 1.0},
        title=f"Training step on {CHIPS[rows[0]['platform']].title}: {kind}",
        caption=caption,
        axis="times those of a static network",
        line=1,
        more_is_better=False,
    )
