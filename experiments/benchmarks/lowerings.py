"""Times every lowering of the dynamic convolution, and the one that `auto` chooses.

    python -m experiments.benchmarks.lowerings --quick

    --fit                       also fits and prints this platform's constants of dyn/ops/planner.py
    --dtype=float32             or bfloat16
    --cases=4x4,depthwise       only cases whose name contains one of these
    --runs=3                    timed rounds of all lowerings, after one that warms up
    --quick                     only small shapes
    --out=runs/benchmarks       the folder of the numbers and the plot

A case is one layer: the stages of a ResNet-18 at 224, 64 and 32 pixels; 1x1, strided, depthwise, grouped
and one-dimensional kernels; pixel-wise mixtures; batches of 1 to 128; and no, one, four or eight candidate
kernels. All lowerings of a case take turns in one process, the forward pass alone and with the gradients of
all inputs, and the fastest run of each counts: compare ratios, not milliseconds. Writes `lowerings.json`
and `.png`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from scipy.optimize import nnls

from dyn.ops import LOWERINGS, dynamic_conv
from dyn.ops.dynamic_conv import check_arguments
from dyn.ops.geometry import Geometry, Problem, resolve_geometry
from dyn.ops.lowerings import why_unsupported
from dyn.ops.planner import Work, count_work, plan, why_unavailable
from experiments.benchmarks import results, timing
from experiments.benchmarks.options import DTYPE, QUICK, RUNS
from experiments.core import cli
from experiments.core.errors import UserError

FIT = flags.DEFINE_bool("fit", False, "Whether the planner's constants are fitted.")
CASES = flags.DEFINE_list("cases", [], "Parts of the names of cases; all cases without it.")

TOLERANCE = 1.15  # times the best lowering
NAMES = tuple(name for name in LOWERINGS if name != "reference")


class Case(NamedTuple):
    """One layer.

    With 0 kernels it is a static convolution. Otherwise kernels larger than 1x1 also have tap attention,
    unless the mixture is pixel-wise.
    """

    batch: int
    spatial: tuple[int, ...]
    inputs: int
    outputs: int
    size: int
    stride: int
    groups: int
    kernels: int
    pixelwise: bool = False

    def __str__(self) -> str:
        places = "x".join(map(str, self.spatial))
        name = f"{self.batch} x {places}, {self.inputs}-{self.outputs}, k{self.size}"
        name += f" s{self.stride}" if self.stride > 1 else ""
        if self.groups > 1:
            name += " depthwise" if self.groups == self.inputs else f" g{self.groups}"
        name += " pixels" if self.pixelwise else ""
        return name + (f", K{self.kernels}" if self.kernels else ", static")

    @property
    def tap_attention(self) -> bool:
        """True if the taps of the kernel are weighted."""
        return self.kernels > 0 and self.size > 1 and not self.pixelwise

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `dynamic_conv` that say how the kernel slides."""
        sliding = {"strides": self.stride, "padding": self.size // 2}
        return {**sliding, "feature_group_count": self.groups}

    def make_arrays(self) -> tuple[Any, ...]:
        """Returns `(inputs, kernels, mix or None, taps or None)`."""
        dtype, rank = jnp.dtype(DTYPE.value), len(self.spatial)
        size, number = (self.size,) * rank, max(1, self.kernels)
        keys = jax.random.split(jax.random.key(0), 4)
        x = jax.random.normal(keys[0], (self.batch, *self.spatial, self.inputs), dtype)
        w = (number, *size, self.inputs // self.groups, self.outputs)
        w = jax.random.normal(keys[1], w) / (self.size**rank * self.inputs / self.groups) ** 0.5
        mix = taps = None
        if self.kernels > 1:
            places = self.geometry.out if self.pixelwise else ()
            mix = jax.nn.softmax(jax.random.normal(keys[2], (self.batch, *places, number)))
        if self.tap_attention:
            taps = jax.nn.sigmoid(jax.random.normal(keys[3], (self.batch, *size)))
        return x, w, mix, taps

    @property
    def geometry(self) -> Geometry:
        """The geometry of the convolution."""
        size = (self.size,) * len(self.spatial)
        return resolve_geometry(self.spatial, size, self.stride, self.size // 2, groups=self.groups)

    @property
    def problem(self) -> Problem:
        """The case, as the planner sees it."""
        x, w, mix, taps = jax.eval_shape(self.make_arrays)
        return check_arguments(x, w, mix, taps, self.geometry)


def square(batch: int, side: int, *rest: int) -> Case:
    """Returns a case with square pictures."""
    return Case(batch, (side, side), *rest)


def list_cases() -> list[Case]:
    """Returns all cases."""
    dynamic = [
        # ResNet-18's stages at 224 pixels
        *(square(16, 56, 64, 64, 3, 1, 1, k) for k in (1, 4)),
        *(square(16, 28, 128, 128, 3, 1, 1, k) for k in (1, 4, 8)),
        *(square(16, 14, 256, 256, 3, 1, 1, k) for k in (1, 4, 8)),
        *(square(16, 7, 512, 512, 3, 1, 1, k) for k in (1, 4)),
        *(square(1, side, f, f, 3, 1, 1, 4) for side, f in ((56, 64), (14, 256), (7, 512))),
        *(square(8, side, f, f, 3, 1, 1, 4) for side, f in ((28, 128), (7, 512))),
        # at 64 and at 32 pixels
        *(square(32, 16, 64, 64, 3, 1, 1, k) for k in (1, 4)),
        *(square(32, 8, 128, 128, 3, 1, 1, k) for k in (1, 4, 8)),
        *(square(32, 4, 256, 256, 3, 1, 1, k) for k in (1, 4, 8)),
        *(square(32, 2, 512, 512, 3, 1, 1, k) for k in (1, 4)),
        *(square(128, side, f, f, 3, 1, 1, 4) for side, f in ((16, 64), (8, 128), (4, 256))),
        square(1, 4, 256, 256, 3, 1, 1, 4),
        square(32, 32, 64, 64, 3, 1, 1, 4),
        # narrow networks
        *(square(32, side, f, f, 3, 1, 1, 4) for side, f in ((8, 16), (4, 32), (2, 64))),
        # strided
        *(square(16, side, f, 2 * f, 3, 2, 1, 4) for side, f in ((56, 64), (28, 128), (14, 256))),
        *(square(32, side, f, 2 * f, 3, 2, 1, 4) for side, f in ((16, 64), (8, 128), (4, 256))),
        *(square(32, side, f, 2 * f, 3, 2, 1, 1) for side, f in ((8, 128), (4, 256))),
        # 1x1
        square(16, 56, 64, 256, 1, 1, 1, 4),
        square(32, 14, 256, 256, 1, 1, 1, 4),
        square(32, 4, 512, 512, 1, 1, 1, 4),
        square(32, 28, 128, 256, 1, 2, 1, 4),
        # series
        Case(32, (176,), 64, 64, 3, 1, 1, 4),
        Case(32, (44,), 128, 128, 3, 1, 1, 4),
        Case(16, (22,), 256, 256, 3, 1, 1, 4),
        Case(16, (176,), 16, 16, 3, 1, 1, 4),
        # grouped and depthwise
        square(32, 14, 256, 256, 3, 1, 32, 4),
        *(square(32, 28, 128, 128, 3, 1, 128, k) for k in (1, 4)),
        square(32, 7, 512, 512, 3, 1, 512, 4),
        # pixel-wise
        *(square(16, 56 * 64 // f, f, f, 3, 1, 1, 4, True) for f in (64, 128, 256, 512)),
        *(square(32, 16 * 64 // f, f, f, 3, 1, 1, 4, True) for f in (64, 256)),
    ]
    static = [
        *(square(16, 56 * 64 // f, f, f, 3, 1, 1, 0) for f in (64, 128, 256, 512)),
        *(square(32, 16 * 64 // f, f, f, 3, 1, 1, 0) for f in (64, 128, 256, 512)),
        *(square(16, 56 * 64 // f, f, 2 * f, 3, 2, 1, 0) for f in (64, 256)),
        *(square(32, 16 * 64 // f, f, 2 * f, 3, 2, 1, 0) for f in (64, 256)),
        *(square(16, 56 * 64 // f, f, 2 * f, 1, 2, 1, 0) for f in (64, 256)),
        square(16, 56, 64, 256, 1, 1, 1, 0),
        *(square(batch, side, 3, 64, 7, 2, 1, 0) for batch, side in ((16, 224), (32, 64))),
        Case(32, (176,), 64, 64, 3, 1, 1, 0),
        square(32, 28, 128, 128, 3, 1, 128, 0),
    ]
    return dynamic + static


def main() -> None:
    """Prints a row for each case as soon as it has been measured."""
    parts = CASES.value or [""]
    cases = [case for case in list_cases() if any(part in str(case) for part in parts)]
    if not cases:
        raise UserError(f"--cases={','.join(parts)}: no name of a case contains any of these.")
    if QUICK.value:
        cases = [c for c in cases if sum(count_work("patches", c.problem)[:3]) < 2.5e9]
    path, machine = results.make_folder() / "lowerings", timing.describe_machine()
    on = f"{machine['devices']} x {machine['device']}, {DTYPE.value}"
    print(f"forward and backward on {on}, milliseconds\n")
    print(f"{'':36}" + "".join(f"{n:>9}" for n in NAMES) + "  auto      x best  x best forward")
    rows: dict[str, dict[str, Any]] = {}
    for case in cases:
        rows[str(case)] = row = measure_case(case)
        times = row["training"]
        cells = "".join(f"{1e3 * times[n]:9.2f}" if n in times else f"{'-':>9}" for n in NAMES)
        print(
            f"{case!s:36}{cells}  {row['auto']:8}{row['regret']['training']:8.2f}"
            f"{row['regret']['forward']:16.2f}",
            flush=True,
        )
    regrets = [row["regret"]["training"] for row in rows.values()]
    within = sum(regret <= TOLERANCE for regret in regrets)
    print(f"\nauto is within {TOLERANCE - 1:.0%} of the best in {within} of {len(rows)} cases")
    if FIT.value:
        print("\n" + fit_prices(cases, [row["training"] for row in rows.values()]))
    results.write_results(
        path,
        {"dtype": DTYPE.value, "runs": RUNS.value, "machine": machine, "cases": rows},
        {name: row["regret"]["training"] for name, row in rows.items()},
        title="Time of `auto` relative to the best lowering",
        caption=f"Forward and backward of one layer on {on}; {within} of {len(rows)} within "
        f"{TOLERANCE - 1:.0%}.",
        axis="times the best lowering",
        line=TOLERANCE,
        more_is_better=False,
    )


def measure_case(case: Case) -> dict[str, Any]:
    """Returns the fastest run of every lowering that supports the case, and `auto` relative to the best."""
    arrays = case.make_arrays()

    def make_step(lowering: str, phase: str) -> Callable[[], Any]:
        def forward(arrays: Any) -> jax.Array:
            x, w, mix, taps = arrays
            return dynamic_conv(x, w, mix, taps=taps, lowering=lowering, **case.arguments)

        def loss(arrays: Any) -> jax.Array:
            return jnp.sum(forward(arrays).astype(jnp.float32) ** 2)

        function = jax.grad(loss) if phase == "training" else forward
        compiled = jax.jit(function).lower(arrays).compile()
        return lambda: jax.block_until_ready(compiled(arrays))

    supported = [
        name for name in NAMES if not (why_unavailable(name) or why_unsupported(name, case.problem))
    ]
    seconds = {}
    for phase in ("forward", "training"):
        steps = {name: make_step(name, phase) for name in supported}
        timed = timing.time_alternately(steps, RUNS.value)
        seconds[phase] = {name: min(runs) for name, runs in timed.items()}
    chosen = plan(case.problem).choice
    regret = {phase: times[chosen] / min(times.values()) for phase, times in seconds.items()}
    return {**seconds, "auto": chosen, "regret": regret}


def fit_prices(cases: list[Case], measured: list[dict[str, float]]) -> str:
    """Returns the prices of `dyn.ops.planner` that choose best, as source code.

    The seconds of each lowering are a sum over its kinds of work: the prices are the least squares of
    relative errors, none of them negative, with more weight on lowerings that are nearly the best of their
    case. Then single prices are changed as long as that improves the choices.
    """
    seconds = np.array([[row.get(name, np.inf) for name in NAMES] for row in measured])
    amounts = np.array(
        [[count_work(name, case.problem) for name in NAMES] for case in cases], float
    )
    best = seconds.min(axis=1)
    prices = np.zeros(amounts.shape[1:])
    for i in range(len(NAMES)):
        able = np.isfinite(seconds[:, i])
        if not able.any():
            continue
        took = seconds[able, i]
        scale = np.maximum(amounts[able, i].max(axis=0), 1e-300)
        weight = np.sqrt(best[able] / took)
        rows = amounts[able, i] / scale / took[:, None] * weight[:, None]
        prices[i] = nnls(rows, weight)[0] / scale

    def mean_log_slowdown(prices: np.ndarray) -> float:
        expected = np.where(np.isfinite(seconds), (amounts * prices).sum(axis=-1), np.inf)
        chosen = np.take_along_axis(seconds, expected.argmin(axis=1)[:, None], axis=1)[:, 0]
        return float(np.log(chosen / best).mean())

    for place in [tuple(p) for _ in range(6) for p in np.argwhere(prices)]:
        for factor in (0.7, 0.8, 0.9, 1.1, 1.25, 1.4):
            moved = prices.copy()
            moved[place] *= factor
            if mean_log_slowdown(moved) < mean_log_slowdown(prices) - 1e-6:
                prices = moved
    lines = [
        f"fitted: {np.exp(mean_log_slowdown(prices)):.3f} times the best, in the geometric mean"
    ]
    for name, row in zip(NAMES, prices, strict=True):
        named = [f"{kind}={v:.2g}" for kind, v in zip(Work._fields, row, strict=True) if v]
        lines.append(f'"{name}": Work({", ".join(named)}),')
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run_command(main, __doc__)
