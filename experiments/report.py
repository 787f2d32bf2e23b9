"""Makes a report of finished runs: tables, figures, and how the numbers were made.

    python -m experiments.report RUNS... [--out=DIR]

    RUNS         folders; all runs at and below them are compared
    --out=DIR    where report.md, report.csv, runs.csv, report.tex and figures/ go; without it the folder
                 that has all RUNS in it

It reads what the runs have left, trains nothing, and may be repeated at any time.
"""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from absl import flags

from experiments.core import cli, files
from experiments.core.errors import UserError
from experiments.reports import map_figures, published, study_figures, tables
from experiments.reports import recipes as settings
from experiments.reports.comparison import Comparison, compare
from experiments.runs import artifacts as maps
from experiments.runs import find as runs

Saved = TypeVar("Saved", maps.Maps, maps.Samples)


def write_report(
    folders: Iterable[str | os.PathLike], out: str | os.PathLike | None = None
) -> Path:
    """Compares all runs at and below some folders.

    Args:
        folders: where the runs are.
        out: where the report goes; None for the folder that has all of `folders` in it.

    Returns:
        The path of `report.md`. Beside it are `report.csv` (a row for each config), `runs.csv` (a row for
        each run), `report.tex` and `figures`.

    Raises:
        UserError: if there is no run, or the report would go into the folder of a run.
    """
    folders = [Path(folder).expanduser() for folder in folders]
    if not folders:
        raise UserError(
            "Which runs? Give one or more folders: python -m experiments.report runs/study"
        )
    found, problems = runs.find(folders)
    if not found and not problems:
        raise UserError(f"There are no runs in {', '.join(map(str, folders))}.")
    place = _place(folders, out)
    comparisons = compare(found)

    text = [
        "# Comparison of runs",
        "",
        f"Of {len(found)} finished runs. `python -m experiments.report RUNS... --out=DIR` makes it again.",
        "",
    ]
    for comparison, folder in zip(comparisons, _figure_folders(comparisons), strict=True):
        text += _section(comparison, place, folder)
    if problems:
        names = [os.path.relpath(problem.folder, place) for problem in problems]
        table = tables.problems(problems, names)
        text += [f"## {table.title}", "", tables.markdown(table), ""]
    if comparisons:
        text += [
            "## How the numbers were made",
            "",
            *(f"* {note}" for note in _notes(comparisons)),
            "",
        ]
    files.write_text(place / "report.md", "\n".join(text))
    files.write_csv(place / "report.csv", *tables.config_records(comparisons))
    header, rows = tables.run_records(comparisons)
    relative = ([*row[:-1], os.path.relpath(row[-1], place)] for row in rows)
    files.write_csv(place / "runs.csv", header, relative)
    files.write_text(place / "report.tex", _latex(comparisons))
    return place / "report.md"


def _place(folders: Sequence[Path], out: str | os.PathLike | None) -> Path:
    """Where the report goes: not among the files of a run, whose figures it would replace."""
    if out:
        place = Path(out).expanduser().resolve()
        if runs.is_run(place):
            raise UserError(
                f"--out={out} is the folder of a run; choose another one for the report."
            )
        return place
    common = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    return common / "report" if runs.is_run(common) else common


def _figure_folders(comparisons: Sequence[Comparison]) -> list[Path]:
    """`figures`, with a folder for each data set where there are several."""
    if len(comparisons) == 1:
        return [Path("figures")]
    names = ["".join(c if c.isalnum() else "_" for c in one.dataset) for one in comparisons]
    return [
        Path("figures") / (name if names.count(name) == 1 else f"{name}_{one.metric}")
        for name, one in zip(names, comparisons, strict=True)
    ]


def _section(comparison: Comparison, place: Path, folder: Path) -> list[str]:
    """The part of the report about one data set; draws its figures, too."""
    text, remarks = [f"## {comparison.dataset}", ""], _remarks(comparison, place)

    def add(*shown: tables.Table | None) -> None:
        for table in filter(None, shown):
            text.extend([f"**{table.title}**", "", tables.markdown(table), ""])

    def draw(name: str, draw_to: Callable[..., bool], what: Any) -> None:
        path = folder / f"{name}.png"
        if draw_to(what, place / path):
            text.extend([f"![{name.replace('_', ' ')}]({path.as_posix()})", ""])

    add(tables.results(comparison))
    if remark := published.remark(comparison.dataset):
        text.extend([remark, ""])
    draw("accuracy_against_macs", study_figures.accuracy_against_macs, comparison)
    add(tables.costs(comparison), tables.iou(comparison), tables.each_run(comparison))
    draw("per_run", study_figures.per_run, comparison)
    draw("curves", study_figures.curves, comparison)
    seen, unread = _of_same_examples(comparison, "maps.npz", maps.load_maps, place)
    pictures, unread_too = _of_same_examples(comparison, "samples.npz", maps.load_samples, place)
    draw("attention_maps", map_figures.attention_maps, seen)
    draw("mixtures", map_figures.mixtures, seen)
    draw("pixel_attention", map_figures.pixel_attention, seen)
    draw("segmentation_samples", map_figures.segmentation_samples, pictures)

    first = comparison.rows[0]
    if line := settings.recipe(first):
        text += [f"**Recipe** of {first.label}: {line}.", ""]
    add(settings.changes(comparison))
    if commands := settings.commands(comparison.rows):
        text += [
            "Commands of the first run of each config:",
            "",
            *(f"    {c}" for c in commands),
            "",
        ]
    remarks += unread + unread_too
    return text + ([*(f"* {remark}" for remark in remarks), ""] if remarks else [])


def _of_same_examples(
    comparison: Comparison, name: str, load: Callable[[Path], Saved], place: Path
) -> tuple[dict[str, Saved], list[str]]:
    """What one run of each config has saved of the same test examples; and what could not be shown."""
    having = {
        row.label: {run.key: run for run in row.runs if (run.folder / name).exists()}
        for row in comparison.rows
    }
    having = {label: by_key for label, by_key in having.items() if by_key}
    # Where the seed decides which examples are tested, only runs of one seed have seen the same.
    common = set.intersection(*map(set, having.values())) if having else set()
    found: dict[str, Saved] = {}
    remarks = []
    for label, by_key in having.items():
        run = by_key[min(common or by_key)]
        try:
            saved = load(run.folder / name)
        except UserError as error:
            remarks.append(f"{label}: {_without_path(error, run, place)}")
            continue
        if found and not _same(next(iter(found.values())), saved):
            remarks.append(
                f"{label}: {name} of {run.place} is of other examples, and is not shown."
            )
        else:
            found[label] = saved
    return found, remarks


def _same(one: Saved, other: Saved) -> bool:
    """Whether both are of the same inputs."""
    mine, theirs = (
        saved.inputs if isinstance(saved, maps.Maps) else saved.images for saved in (one, other)
    )
    return len(mine) == len(theirs) and all(map(np.array_equal, mine, theirs))


def _without_path(error: UserError, run: runs.Run, place: Path) -> str:
    """The message with the run's folder as it is seen from the report."""
    return str(error).replace(str(run.folder), os.path.relpath(run.folder, place))


def _remarks(comparison: Comparison, place: Path) -> list[str]:
    """What a reader must know of the runs on a data set."""
    remarks = []
    for row in comparison.rows:
        if unlike := settings.unlike(row):
            remarks.append(
                f"The runs of {row.label} are not alike: they differ in {', '.join(unlike)}."
            )
        for run in row.runs:
            try:
                _ = run.rows
            except UserError as error:
                text = _without_path(error, run, place)
                remarks.append(f"{row.label}, {run.place}, is left out of the curves: {text}")
    sizes = {tuple((run.summary.get("examples") or {}).items()) for run in comparison.runs}
    if len(sizes) == 1 and (counts := sizes.pop()):
        counted = ", ".join(f"{count:,} {split}" for split, count in counts)
        remarks.append(f"Examples: {counted}.")
    return remarks


def _notes(comparisons: Sequence[Comparison]) -> list[str]:
    """How the numbers were made, as far as these tables have them."""
    every = [run for comparison in comparisons for run in comparison.runs]
    folds = any(run.fold is not None for run in every)
    gaps = [row.difference for one in comparisons for row in one.rows if row.difference]
    notes = [
        "Test results are of the parameters with the best validation, on the test split, which is looked "
        "at once. Given are the mean and, behind ±, the standard deviation (n − 1) over the runs of a "
        "config; a single run has none.",
        "A seed decides the first parameters and the order of the examples, and, where a data set has no "
        "test split of its own, which examples are tested: runs are compared seed by seed"
        + (" and fold by fold." if folds else "."),
    ]
    if gaps:
        note = (
            "Difference: mean over the seeds or folds that a config and its baseline both have. p: "
            "two-sided Wilcoxon signed-rank test of these pairs, not corrected for the number of configs."
        )
        if any(gap.n < 6 for gap in gaps):
            note += (
                " With fewer than 6 pairs p cannot be below 0.05, however large the differences: it is no "
                "evidence either way."
            )
        if folds:
            note += " Folds share training examples, so their p is somewhat too small."
        notes.append(note)
    notes += [
        "MACs: multiply-adds of one example, counted from the network's operations: convolutions and matrix "
        "products, with padding taps, with attention and the mixing of kernels; one multiply-add is one "
        "MAC. XLA FLOPs: those of a training step on a whole batch, as XLA's cost analysis of the compiled "
        "program reports them; of a loop it counts one turn.",
        "Step: median time of a training step without evaluations; run: the whole run with compilation, "
        "evaluations and figures. Costs are medians over the runs of a config. "
        f"{tables.MISSING}: not known.",
    ]
    devices = {", ".join(map(str, run.summary.get("devices") or ["unknown"])) for run in every}
    versions = {_versions(run) for run in every}
    notes.append(f"Devices: {'; '.join(sorted(devices))}.")
    notes.append(f"Versions: {'; or '.join(sorted(versions))}.")
    return notes


def _versions(run: runs.Run) -> str:
    known = run.summary.get("versions")
    if not isinstance(known, dict) or not known:
        return "unknown"
    return ", ".join(f"{package} {version}" for package, version in known.items())


def _latex(comparisons: Sequence[Comparison]) -> str:
    """All tables; the document that includes them needs the package booktabs."""
    shown = [
        table
        for one in comparisons
        for table in (tables.results(one), tables.costs(one), tables.iou(one), tables.each_run(one))
        if table
    ]
    return "\n\n".join(["% \\usepackage{booktabs}", *map(tables.latex, shown)]) + "\n"


if __name__ == "__main__":
    out = flags.DEFINE_string("out", "", "Where the report goes.")

    def main() -> None:
        """Prints where the report is."""
        try:
            print(write_report(given, out.value or None))
        except OSError as error:
            raise UserError(f"The report cannot be written: {error}.") from error

    command, given = cli.without_words(sys.argv)
    cli.leave(cli.run(main, command, str(__doc__)))
