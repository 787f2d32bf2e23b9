"""Traces of a few training steps: which part of which layer takes how long."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.core.errors import UserError

Steps = tuple[int, int]


def parse(words: Sequence[str]) -> Steps | None:
    """`--profile=FIRST,LAST` as two numbers of steps, counted from 1; None where it is not given.

    Raises:
        UserError: if it is anything else.
    """
    if not words:
        return None
    try:
        first, last = map(int, words)
    except ValueError:
        first = last = 0
    if not 1 <= first <= last:
        raise UserError(
            f"--profile={','.join(words)}: write the first and the last step to trace, such as "
            "--profile=50,60."
        )
    return first, last


@contextlib.contextmanager
def tracing(folder: Path, steps: Steps | None, start_step: int) -> Iterator[Callable[..., Any]]:
    """Gives `run(step, function, *arguments)`, which calls the function, and traces some of the steps.

    Args:
        folder: where the trace goes, as TensorBoard's profile plugin and Perfetto read it.
        steps: the first and the last one to trace; None for none.
        start_step: how many steps an earlier run has done.

    Raises:
        UserError: if all of them were done before.
    """
    if steps and steps[0] <= start_step:
        raise UserError(
            f"--profile={steps[0]},{steps[1]}: the run continues behind step {start_step}; name later steps."
        )
    running = False

    def run(step: int, function: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal running
        if steps is None or not steps[0] <= step <= steps[1]:
            return function(*arguments)
        if step == steps[0]:
            # Steps that were begun before are none of the trace's.
            jax.block_until_ready(arguments)
            jax.profiler.start_trace(str(folder))
            running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            result = function(*arguments)
        if step == steps[1]:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            running = False
        return result

    try:
        yield run
    finally:
        if running:
            jax.profiler.stop_trace()
