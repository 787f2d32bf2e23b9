"""Times every lowering of the dynamic convolution, forward and backward, beside what `auto` chooses.

    python -m experiments.benchmarks.lowerings [--quick]

The constants of the platform in `dyn/ops/planner.py` are fitted by hand to what this prints. All lowerings
of a case run in turn in one process, and the median of each counts; trust ratios, not milliseconds.
"""

import itertools
import statistics
import sys
import time

import jax
import jax.numpy as jnp

from dyn.ops import LOWERINGS, dynamic_conv
from dyn.ops.lowerings import unable
from dyn.ops.planner import plan
from dyn.ops.window import resolve

# (batch, side, input features, output features, kernel size, stride): stages of a ResNet-18 at 224 and
# at 64 pixels, those of a narrow network on small pictures, and 1x1 and strided kernels.
SHAPES = [
    (32, 56, 64, 64, 3, 1),
    (32, 28, 128, 128, 3, 1),
    (32, 14, 256, 256, 3, 1),
    (32, 7, 512, 512, 3, 1),
    (32, 16, 64, 64, 3, 1),
    (32, 8, 128, 128, 3, 1),
    (32, 4, 256, 256, 3, 1),
    (32, 2, 512, 512, 3, 1),
    (32, 8, 16, 16, 3, 1),
    (32, 4, 32, 32, 3, 1),
    (8, 28, 128, 128, 3, 1),
    (8, 7, 512, 512, 3, 1),
    (32, 14, 256, 256, 1, 1),
    (32, 28, 128, 256, 3, 2),
]
QUICK = SHAPES[4:10]
RUNS = 5


def main(quick: bool) -> None:
    """Prints a row for each case: milliseconds of each lowering, and how far `auto` is from the best."""
    names = [name for name in LOWERINGS if name != "reference"]
    print(
        f"{'batch side  I    O   k s K taps':34}" + "".join(f"{name:>10}" for name in names), end=""
    )
    print("   auto      times the best")
    worst = []
    for shape, num_kernels in itertools.product(QUICK if quick else SHAPES, (1, 4)):
        # ODConv: tap attention wherever there is more than one tap.
        steps, choice = case(*shape, num_kernels, taps=shape[4] > 1)
        times = alternate(steps)
        regret = times[choice] / min(times.values())
        worst.append(regret)
        label = "{:5} {:4} {:4} {:4} {:2} {}".format(*shape) + f" {num_kernels} {shape[4] > 1!s:5}"
        cells = "".join(f"{times[n] * 1e3:10.2f}" if n in times else f"{'-':>10}" for n in names)
        print(f"{label:34}{cells}   {choice:8}  {regret:6.2f}", flush=True)
    within = sum(r <= 1.15 for r in worst)
    print(f"auto is within 15 % of the best in {within} of {len(worst)} cases")


def case(batch, side, i, o, k, stride, num_kernels, taps):
    """A compiled gradient step of each lowering that can do the case, and the name `auto` chooses."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (batch, side, side, i))
    w = jax.random.normal(keys[1], (num_kernels, k, k, i, o)) / (k * i**0.5)
    mix = (
        jax.nn.softmax(jax.random.normal(keys[2], (batch, num_kernels)))
        if num_kernels > 1
        else None
    )
    scale = jax.nn.sigmoid(jax.random.normal(keys[3], (batch, k, k))) if taps else None
    arguments = {"strides": stride, "padding": k // 2}

    def step(lowering):
        def loss(args):
            x, w, mix, scale = args
            y = dynamic_conv(x, w, mix, taps=scale, lowering=lowering, **arguments)
            return jnp.sum(y * y)

        compiled = jax.jit(jax.grad(loss)).lower((x, w, mix, scale)).compile()
        return lambda: jax.block_until_ready(compiled((x, w, mix, scale)))

    steps = {
        name: step(name)
        for name in LOWERINGS
        if name != "reference" and not unable(name, pixelwise=False, tap_attention=taps)
    }
    window = resolve(x, (k, k), stride, k // 2, 1, 1, 1)[1]
    chosen = plan(
        x.shape, w.shape, window, pixelwise=False, mixed=mix is not None, tap_attention=taps
    )
    return steps, chosen.choice


def alternate(steps):
    """Median seconds of each step, all of them in turn."""
    times = {name: [] for name in steps}
    for run, (name, step) in itertools.product(range(RUNS + 1), steps.items()):
        started = time.perf_counter()
        step()
        if run:  # the first warms up
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
