"""Times one training step of a whole network with each layer of the catalogue, against a static network.

    python -m experiments.benchmarks.train_step --quick

    --size=64 --batch=32        side of a picture in pixels, and pictures per step
    --network=resnet            or mobilenet_v2, mobilenet_v3, efficientnet_b0, efficientnet_lite0, with some
                                layers
    --depth=18                  or 50, of a ResNet
    --width=64                  features of the network's first stage
    --dtype=float32             or bfloat16: the dtype of the computation
    --layers=odconv,dyconv      names of rows; all rows without it
    --runs=5                    timed pairs of steps for each network, after one that warms up
    --quick                     only the static rows and ODConv, unless --layers names rows
    --out=runs/benchmarks       the folder of the numbers and the plot

A step is the forward pass, the backward pass and Adam's update, with 1000 classes. Each network takes turns
with a network of flax's own modules (`flax_resnet.py`) in one process, and the median of the pairs' ratios
counts: compare ratios, not milliseconds. A mobile network of flax has flax's convolutions alone. Writes
`train_step-<size>.json` and `.png`, for a mobile network `train_step-<network>-<size>`.
"""

import statistics

import jax
from absl import flags

from experiments.benchmarks import results
from experiments.benchmarks.networks import FLAX, MOBILE, make_mobile_networks, make_networks
from experiments.benchmarks.options import DTYPE, QUICK, RUNS
from experiments.benchmarks.step import BATCH, SIZE, TrainingStep, list_settings
from experiments.core import cli, timing
from experiments.core.errors import UserError, suggest_nearest

NETWORK = flags.DEFINE_enum("network", "resnet", ["resnet", *MOBILE], "The network.")
DEPTH = flags.DEFINE_enum("depth", "18", ["18", "50"], "Depth of the ResNet.")
LAYERS = flags.DEFINE_list("layers", [], "Names of rows; all without it.")

QUICK_ROWS = ("Conv", "odconv_k1", "odconv")


def main() -> None:
    """Prints a row for each network as soon as it has been measured."""
    mobile = NETWORK.value in MOBILE
    known = make_mobile_networks(NETWORK.value) if mobile else make_networks(int(DEPTH.value))
    names = LAYERS.value or (QUICK_ROWS if QUICK.value else known)
    for name in names:
        if name not in known:
            raise UserError(f"--layers: there is no row {name}{suggest_nearest(name, known)}")
    title = NETWORK.value if mobile else f"ResNet-{DEPTH.value}"
    path = results.make_folder() / f"train_step-{f'{title}-' if mobile else ''}{SIZE.value}"
    machine = timing.describe_machine()
    measured = (
        f"{title}, {SIZE.value} px, batch {BATCH.value}, {DTYPE.value}, on "
        f"{machine['devices']} x {machine['device']}"
    )
    print(
        f"{measured}; one Adam step\n\n{'':16}{'parameters':>12}{'step, ms':>10}{'x flax':>11}"
        f"{'temporary, MB':>15}{'compiling, s':>14}"
    )
    static = TrainingStep(known[FLAX])
    rows = {}
    for name in dict.fromkeys([FLAX, *names]):
        step = static if name == FLAX else TrainingStep(known[name])
        seconds = timing.time_alternately({FLAX: static, name: step}, RUNS.value)
        rows[name] = row = {
            "parameters": step.parameters,
            "milliseconds": 1e3 * statistics.median(seconds[name]),
            "ratio": timing.compute_ratio(seconds[name], seconds[FLAX]),
            "temporary_bytes": step.temporary_bytes,
            "compile_seconds": step.compile_seconds,
        }
        print(
            f"{name:16}{row['parameters']:12,}{row['milliseconds']:10.0f}{row['ratio']:11.2f}"
            f"{row['temporary_bytes'] / 1e6:15,.0f}{row['compile_seconds']:14.1f}",
            flush=True,
        )
        del step  # frees its memory before the next one is made
    results.write_results(
        path,
        {**list_settings(), "network": title, "machine": machine, "rows": rows},
        {name: row["ratio"] for name, row in rows.items()},
        title="Training step against a static network",
        caption=f"{measured}; {FLAX} has only nn.Conv and nn.max_pool.",
        axis="times the step of a static network",
        line=1,
        more_is_better=False,
    )


if __name__ == "__main__":
    # Compilation is timed, so nothing may come from a cache.
    jax.config.update("jax_enable_compilation_cache", False)
    cli.run_command(main, __doc__)
