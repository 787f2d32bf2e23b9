"""Says what a training step costs on a TPU or a GPU, and whether it fits, on a machine that has neither.

    python -m experiments.benchmarks.accelerators --platform=v5e --layers=odconv_k1,odconv

    --platform=v5e              v4, v5e, v5p, v6e or h100
    --topology=1                one chip; 2x2, 4x4 and the like are slices, 2x2x1 of v4 and v5p. Several are
                                compared: 1,2x2,4x4
    --layers=odconv,dyconv      names of rows; all rows without it. The static network comes always first
    --configs=odconv:digits     instead of layers, the network of a config; may be repeated, and the others
                                are compared with the first one. Detectors have the loss of their config
    --override=KEY=VALUE        a setting of these configs, such as model.depth=50; may be repeated
    --size=224 --batch=128      side of a picture in pixels, and pictures per step on each chip
    --depth=18                  or 50
    --width=64                  features of the network's first stage
    --dtype=bfloat16            or float32: the dtype of the computation
    --shard_parameters          splits parameters and Adam's moments over the chips
    --quick                     TPUs: compiles four times faster, and the program found is slower. For memory,
                                collectives and first looks; its cycles compare only with each other
    --ops                       shows the dearest lines of the source of each network
    --out=runs/benchmarks       the folder of the numbers and the plot

Each network is compiled by the compiler of that accelerator, in a process of its own. Cycles are the TPU
compiler's estimates, and bytes those that the compiled program moves: nothing has run.
`docs/accelerators.md` explains the columns and how to install the compilers. Rows are written as soon as they
are known, and the same command continues a table that was stopped, unless the code has changed. Writes
`accelerators-<platform>.json`, `.csv` and `.png`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from experiments.benchmarks import accelerator_table as tables
from experiments.benchmarks import compiling, results
from experiments.benchmarks.chips import CHIPS, check_compiler, check_topology
from experiments.benchmarks.networks import load_settings, make_networks
from experiments.core import cli
from experiments.core.console import Progress, print_line
from experiments.core.digests import compute_digest
from experiments.core.errors import UserError, suggest_nearest
from experiments.core.files import write_json

STATIC = "Conv"
STOPPED = "stopped; the same command continues after the last row"


def main(
    *,
    platform: str = "v5e",
    topology: str = "1",
    layers: str = "",
    configs: Sequence[str] = (),
    override: Sequence[str] = (),
    size: int = 224,
    batch: int = 128,
    depth: int = 18,
    width: int = 64,
    dtype: str = "bfloat16",
    shard_parameters: bool = False,
    quick: bool = False,
    ops: bool = False,
) -> None:
    """Compiles the networks that the flags describe, and prints their table."""
    check_choice("platform", platform, CHIPS)
    check_choice("depth", str(depth), ["18", "50"])
    check_choice("dtype", dtype, ["bfloat16", "float32"])
    # Batch norm inside attention needs at least two examples.
    for name, value, least in (("size", size, 1), ("batch", batch, 2), ("width", width, 1)):
        if value < least:
            raise UserError(f"--{name}={value}: choose {least} or more.")
    chip = CHIPS[platform]
    slices = topology.split(",")
    for one in slices:
        check_topology(chip, one)
    networks = list_networks(layers, configs, depth)
    if override and not configs:
        raise UserError("--override changes the settings of --configs: name at least one.")
    if quick and chip.platform != "tpu":
        raise UserError(f"--quick is known to the compiler of TPUs: leave it out for {chip.title}.")
    check_compiler(chip)
    fields = {"platform": platform, "size": size, "batch": batch, "depth": depth, "width": width}
    fields |= {"dtype": dtype, "shard_parameters": shard_parameters, "is_config": bool(configs)}
    # Also if they are not given: a row that was compiled with them is another one.
    fields |= {"overrides": list(override), "quick": quick}
    path = results.make_folder() / f"accelerators-{platform}"
    requests = compiling.make_requests(networks, slices, **fields)
    if configs:
        # Their networks are made where nothing looks for a TPU, in the process that compiles them.
        digests = {place: digest_settings(place, override) for place in networks}
        requests = [{**one, "settings": digests[one["network"]]} for one in requests]
    rows = compile_table(path, requests)
    described = "" if configs else f"ResNet-{depth}, {dtype}, "
    caption = (
        f"{described}{size} px, batch {batch} a chip: one Adam step on {chip.title}, by its compiler; "
        f"nothing has run{'; compiled with --quick' if quick else ''}"
    )
    # A log file has no width to keep to.
    console = Console(width=None if Console().is_terminal else 200)
    console.print(tables.make_table(rows, networks[0], caption))
    for note in tables.list_notes(rows):
        print_line(note)
    for row in rows if ops else ():
        if "operations" in row:
            console.print(tables.make_operations_table(row))
    tables.write_files(path, rows, networks[0], caption)
    for kind in ("json", "csv", "png"):
        print_line(f"{path}.{kind}")


def compile_table(path: Path, requests: Sequence[compiling.Row]) -> list[compiling.Row]:
    """Compiles the rows of a table, and writes each to `<path>.json` as soon as it is known."""
    code = compiling.describe_code(requests[0]["platform"])
    known = compiling.read_known_rows(Path(f"{path}.json"), code)
    finished: list[compiling.Row] = []
    with Progress(len(requests), unit="network") as progress:
        progress.update(0)

        def report(row: compiling.Row) -> None:
            finished.append(row)
            static = tables.find_static(row, finished, requests[0]["network"])
            progress.say(tables.format_row(row, static))
            progress.update(len(finished))
            others = [row for row in known if row not in finished]
            write_json(f"{path}.json", {"code": code, "rows": [*finished, *others]})

        return compiling.compile_rows(requests, known, report)


def digest_settings(place: str, overrides: Sequence[str]) -> str:
    """Returns a digest of a config's settings; raises a UserError if there is no such config or setting."""
    settings = load_settings(place, overrides).to_json(sort_keys=True)
    return f"{compute_digest(settings.encode()):016x}"


def list_networks(layers: str, configs: Sequence[str], depth: int) -> list[str]:
    """Returns the names of the networks that the flags name; the first one is the measure of the others."""
    if configs:
        if layers:
            raise UserError(
                "--layers and --configs name two sets of networks: choose one of the flags."
            )
        return list(configs)
    known = make_networks(depth)
    names = layers.split(",") if layers else list(known)
    for name in names:
        check_choice("layers", name, known)
    return list(dict.fromkeys([STATIC, *names]))


def check_choice(flag: str, value: str, choices: Iterable[str]) -> None:
    """Raises a UserError if a flag has none of its values."""
    if value not in choices:
        raise UserError(
            f"--{flag}={value}: there is no such value{suggest_nearest(value, choices)}"
        )


if __name__ == "__main__":
    cli.run_command(main, __doc__, stopped=STOPPED)
