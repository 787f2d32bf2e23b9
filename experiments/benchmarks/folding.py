"""Times the inference of a ResNet-18 with each layer, and of the same network with its norms folded.

    python -m experiments.benchmarks.folding

    --side=64                   of a picture in pixels
    --pictures=8                in a batch
    --layers=flax,odconv        names of rows; a few without it
    --dtype=float32             or bfloat16
    --runs=5                    timed pairs, after one that warms up

Both networks take turns in one process, and the median of the pairs' ratios counts. Statistics are those of
a new network, which changes no time.
"""

import statistics

import jax
import jax.numpy as jnp
from absl import flags

from dyn.interop import fold_norms
from experiments.benchmarks.adam_step import CLASSES
from experiments.benchmarks.networks import make_networks
from experiments.benchmarks.options import DTYPE, RUNS
from experiments.core import cli, timing
from experiments.core.errors import UserError, suggest_nearest

SIDE = flags.DEFINE_integer("side", 64, "Side of a picture in pixels.", lower_bound=1)
PICTURES = flags.DEFINE_integer("pictures", 8, "Pictures in a batch.", lower_bound=1)
ROWS = flags.DEFINE_list("layers", ["flax", "Conv", "odconv", "dyconv", "dcd"], "Names of rows.")


def main() -> None:
    """Prints a row for each network as soon as it has been measured."""
    known = make_networks(18)
    for name in ROWS.value:
        if name not in known:
            raise UserError(f"--layers: there is no row {name}{suggest_nearest(name, known)}")
    machine = timing.describe_machine()
    print(
        f"ResNet-18, {SIDE.value} px, batch {PICTURES.value}, {DTYPE.value}, on {machine['cores']} cores of "
        f"{machine['cpu']}; load average before: {machine['load_average']}\n\n"
        f"{'':16}{'norms':>7}{'folded':>8}{'ms':>8}{'ms, folded':>12}{'ratio':>8}{'difference':>12}"
    )
    x = jax.random.normal(jax.random.key(0), (PICTURES.value, SIDE.value, SIDE.value, 3))
    for name in ROWS.value:
        model = known[name](num_classes=CLASSES, dtype=jnp.dtype(DTYPE.value))
        variables = jax.jit(model.init)(jax.random.key(1), x[:2])
        folded = fold_norms(model, variables, x)
        programs = {
            "as trained": (jax.jit(model.apply).lower(variables, x).compile(), variables),
            "folded": (
                jax.jit(folded.network.apply).lower(folded.variables, x).compile(),
                folded.variables,
            ),
        }
        outputs = {key: run(arrays, x) for key, (run, arrays) in programs.items()}
        y, z = outputs["as trained"], outputs["folded"]
        difference = float(jnp.abs(y - z).max() / jnp.abs(y).max())
        steps = {
            key: lambda run=run, arrays=arrays: jax.block_until_ready(run(arrays, x))
            for key, (run, arrays) in programs.items()
        }
        seconds = timing.time_alternately(steps, RUNS.value)
        before, after = (1e3 * statistics.median(seconds[key]) for key in programs)
        ratio = timing.compute_ratio(seconds["folded"], seconds["as trained"])
        norms = len(folded.folded) + len(folded.kept)
        print(
            f"{name:16}{norms:7}{len(folded.folded):8}{before:8.1f}{after:12.1f}{ratio:8.2f}"
            f"{difference:12.1e}",
            flush=True,
        )


if __name__ == "__main__":
    cli.run_command(main, __doc__)
