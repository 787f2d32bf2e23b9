"""Times every lowering of the dynamic convolution, or estimates its time, and the one that `auto` chooses.

    python -m experiments.benchmarks.lowerings --quick

    --platform=v5e              estimates by the compiler of v4, v5e, v5p, v6e or h100, which need not be
                                here: see docs/accelerators.md; of a GPU, the time of the bytes moved
    --samples=128               samples of each case, instead of its own number
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

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import flags
from scipy.optimize import nnls

from dyn.ops.planner import Work, count_work, find_prices, plan, why_impossible
from experiments.benchmarks import compiling, results
from experiments.benchmarks.chips import CHIPS, Chip, check_compiler
from experiments.benchmarks.lowering_cases import PHASES, Case, list_cases, make_function
from experiments.benchmarks.options import DTYPE, QUICK, RUNS
from experiments.core import cli, timing
from experiments.core.errors import UserError

FIT = flags.DEFINE_bool("fit", False, "Whether the planner's constants are fitted.")
CASES = flags.DEFINE_list("cases", [], "Parts of the names of cases; all cases without it.")
PLATFORM = flags.DEFINE_enum("platform", None, list(CHIPS), "The chip that is compiled for.")
SAMPLES = flags.DEFINE_integer("samples", None, "Samples of each case.", lower_bound=1)

TOLERANCE = 1.15  # times the best lowering


def main() -> None:
    """Prints a row for each case as soon as it has been measured."""
    parts = CASES.value or [""]
    cases = [case for case in list_cases() if any(part in str(case) for part in parts)]
    if not cases:
        raise UserError(f"--cases={','.join(parts)}: no name of a case contains any of these.")
    if QUICK.value:
        cases = [c for c in cases if sum(count_work("patches", c.problem)[:3]) < 2.5e9]
    changed: dict[str, Any] = {"dtype": DTYPE.value}
    if SAMPLES.value:
        changed["batch"] = SAMPLES.value
    cases = list(dict.fromkeys(case._replace(**changed) for case in cases))
    machine, platform, measure = timing.describe_machine(), None, measure_case
    on = f"{machine['devices']} x {machine['device']}, {DTYPE.value}"
    if PLATFORM.value:
        chip = CHIPS[PLATFORM.value]
        check_compiler(chip)
        on, platform = (
            f"{chip.title}, {DTYPE.value}, by its compiler: nothing has run",
            chip.platform,
        )
        measure = partial(estimate_case, chip=chip)
    names = list_names(platform)
    name = "lowerings" + (f"-{PLATFORM.value}" if PLATFORM.value else "")
    path = results.make_folder() / name
    print(f"forward and backward on {on}, milliseconds\n")
    print(f"{'':36}" + "".join(f"{n:>10}" for n in names) + "  auto       x best  x best forward")
    rows: dict[str, dict[str, Any]] = {}
    for case in cases:
        times, chosen = measure(case)
        regret = {phase: times[phase][chosen] / min(times[phase].values()) for phase in PHASES}
        rows[str(case)] = {**times, "auto": chosen, "regret": regret}
        training = times["training"]
        cells = "".join(
            f"{1e3 * training[n]:10.3f}" if n in training else f"{'-':>10}" for n in names
        )
        print(
            f"{case!s:36}{cells}  {chosen:9}{regret['training']:8.2f}{regret['forward']:16.2f}",
            flush=True,
        )
    regrets = [row["regret"]["training"] for row in rows.values()]
    within = sum(regret <= TOLERANCE for regret in regrets)
    print(f"\nauto is within {TOLERANCE - 1:.0%} of the best in {within} of {len(rows)} cases")
    if FIT.value:
        print("\n" + fit_prices(cases, [row["training"] for row in rows.values()], names))
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


def list_names(platform: str | None) -> list[str]:
    """Returns the lowerings that have prices on a platform; None is the one JAX runs on."""
    return list(find_prices(platform).of)


def measure_case(case: Case) -> tuple[dict[str, dict[str, float]], str]:
    """Returns the seconds of the fastest run of every lowering that supports the case, for each phase.

    Beside it is the planner's choice.
    """
    arrays = case.make_arrays()

    def make_step(lowering: str, phase: str) -> Callable[[], Any]:
        compiled = jax.jit(make_function(case, lowering, phase)).lower(arrays).compile()
        return lambda: jax.block_until_ready(compiled(arrays))

    supported = [name for name in list_names(None) if not why_impossible(name, case.problem)]
    seconds = {}
    for phase in PHASES:
        steps = {name: make_step(name, phase) for name in supported}
        timed = timing.time_alternately(steps, RUNS.value)
        seconds[phase] = {name: min(runs) for name, runs in timed.items()}
    return seconds, plan(case.problem).choice


def estimate_case(case: Case, chip: Chip) -> tuple[dict[str, dict[str, float]], str]:
    """Returns the same by the compiler of a chip, in a process of its own."""
    names = list_names(chip.platform)
    request = {"platform": chip.name, "case": case._asdict(), "lowerings": names}
    result = compiling.compile_in_process(request, compiling.LOWERING)
    if "seconds" not in result:
        raise UserError(f"{case}: {result['message']}")
    return result["seconds"], result["auto"]


def fit_prices(cases: list[Case], measured: list[dict[str, float]], names: Sequence[str]) -> str:
    """Returns the prices of `dyn.ops.planner` that choose best, as source code.

    The seconds of each lowering are a sum over its kinds of work: the prices are the least squares of
    relative errors, none of them negative, with more weight on lowerings that are nearly the best of their
    case. Then single prices are changed as long as that improves the choices.
    """
    seconds = np.array([[row.get(name, np.inf) for name in names] for row in measured])
    amounts = np.array(
        [[count_work(name, case.problem) for name in names] for case in cases], float
    )
    best = seconds.min(axis=1)
    prices = np.zeros(amounts.shape[1:])
    for i in range(len(names)):
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
    for name, row in zip(names, prices, strict=True):
        named = [f"{kind}={v:.2g}" for kind, v in zip(Work._fields, row, strict=True) if v]
        lines.append(f'"{name}": Work({", ".join(named)}),')
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run_command(main, __doc__)
