"""Times one training step of a whole ResNet with each layer of the catalogue, against the static one.

    python -m experiments.benchmarks.train_step --quick

    --size=64 --batch=32        pixels of a picture's side, and pictures of a step
    --depth=18                  or 50
    --width=64                  features of the network's first stage
    --dtype=float32             or bfloat16, of the computation
    --layers=odconv,dyconv      names of rows; all if left out
    --runs=5                    timed pairs of steps for each network, after one that warms up
    --quick                     only the static rows and ODConv, unless --layers says which
    --out=runs/benchmarks       where the table's numbers and plot go

A step is forward, backward and Adam's update, at 1000 classes. Each network takes turns with a network of
flax's own parts (`flax_resnet.py`), in one process, and the median of the pairs' ratios counts: trust ratios,
not milliseconds. Writes `train_step-<size>.json` and `.png`.
"""

import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import flags

from dyn import layers
from dyn.models import ResNet18, ResNet50
from experiments.benchmarks import results, timing
from experiments.benchmarks.flax_resnet import flax_resnet
from experiments.benchmarks.options import DTYPE, QUICK, RUNS
from experiments.benchmarks.step import BATCH, SIZE, Step, settings
from experiments.core import cli
from experiments.core.errors import UserError, suggest_nearest

DEPTH = flags.DEFINE_enum("depth", "18", ["18", "50"], "The ResNet.")
LAYERS = flags.DEFINE_list("layers", [], "Names of rows; all if left out.")

FLAX = "flax"
QUICK_ROWS = ("Conv", "odconv_k1", "odconv")


def networks(depth: int) -> dict[str, Callable[..., nn.Module]]:
    """A network for each row, but for its classes, width and dtype; the fields are those of the papers."""
    resnet = {18: ResNet18, 50: ResNet50}[depth]

    def warehouse(**fields: Any) -> nn.Module:
        def network(conv: Callable[..., nn.Module]) -> nn.Module:
            return resnet(conv=conv, shortcut=conv, **fields)

        # Sizes do not matter for the kernels.
        return layers.share_kernels(network, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))

    def of(layer: Callable[..., nn.Module], **fields: Any) -> partial:
        return partial(resnet, conv=partial(layer, **fields))

    four = {"num_kernels": 4}
    return {
        FLAX: partial(flax_resnet, depth),
        "Conv": of(layers.Conv),
        "odconv_k1": of(layers.ODConv, num_kernels=1),
        "odconv": of(layers.ODConv, **four),
        "dyconv": of(layers.DynamicConv, **four),
        "condconv": partial(of(layers.CondConv), context="block"),
        "dcd": partial(of(layers.DCDConv), dense=layers.DCDDense),
        "warehouse": warehouse,
        "fdconv": of(layers.FDConv),
        "pixel": of(layers.PixelDynamicConv, **four),
        "gated": of(layers.GatedConv, **four),
        "rotated": of(layers.RotatedConv),
        "spectral_norm": of(layers.SpectralNormConv, **four),
        "squeeze_excite": partial(resnet, attention=layers.SqueezeExcite),
        "cbam": partial(resnet, attention=layers.CBAM),
    }


def main() -> None:
    """Prints a row for each network as soon as it is measured."""
    known = networks(int(DEPTH.value))
    names = LAYERS.value or (QUICK_ROWS if QUICK.value else known)
    for name in names:
        if name not in known:
            raise UserError(f"--layers: there is no row {name}{suggest_nearest(name, known)}")
    path = results.folder() / f"train_step-{SIZE.value}"
    machine = timing.machine()
    measured = (
        f"ResNet-{DEPTH.value}, {SIZE.value} px, batch {BATCH.value}, {DTYPE.value}, on "
        f"{machine['devices']} x {machine['device']}"
    )
    print(
        f"{measured}; one Adam step\n\n{'':16}{'parameters':>12}{'step, ms':>10}{'x flax':>11}"
        f"{'temporary, MB':>15}{'compiling, s':>14}"
    )
    static = Step(known[FLAX])
    rows = {}
    for name in dict.fromkeys([FLAX, *names]):
        step = static if name == FLAX else Step(known[name])
        seconds = timing.alternate({FLAX: static, name: step}, RUNS.value)
        rows[name] = row = {
            "parameters": step.parameters,
            "milliseconds": 1e3 * statistics.median(seconds[name]),
            "ratio": timing.ratio(seconds[name], seconds[FLAX]),
            "temporary_bytes": step.temporary_bytes,
            "compile_seconds": step.compile_seconds,
        }
        print(
            f"{name:16}{row['parameters']:12,}{row['milliseconds']:10.0f}{row['ratio']:11.2f}"
            f"{row['temporary_bytes'] / 1e6:15,.0f}{row['compile_seconds']:14.1f}",
            flush=True,
        )
        del step  # before the next is made: they need not fit into memory together
    results.write(
        path,
        {**settings(), "depth": DEPTH.value, "machine": machine, "rows": rows},
        {name: row["ratio"] for name, row in rows.items()},
        title="Training step against a static network",
        caption=f"{measured}; {FLAX} has nn.Conv and nn.max_pool alone.",
        axis="times the step of a static network",
        line=1,
        more_is_better=False,
    )


if __name__ == "__main__":
    # Compiling is timed: nothing is to come out of a cache.
    jax.config.update("jax_enable_compilation_cache", False)
    cli.leave(cli.run(main, sys.argv, __doc__))
