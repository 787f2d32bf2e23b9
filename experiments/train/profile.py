"""Traces a few training steps: which part of which layer takes how long."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.core.errors import UserError

StepRange = tuple[int, int]


def parse_steps(words: Sequence[str]) -> StepRange | None:
    """Reads `--profile=FIRST,LAST` as two steps, counted from 1; None where the flag is absent."""
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


class StepProfiler(contextlib.AbstractContextManager):
    """Traces some steps of a run for TensorBoard's profile plugin or Perfetto.

    Call `begin` before each step and `end` after it; leaving the `with` ends a trace that still runs.
    """

    def __init__(self, folder: Path, steps: StepRange | None, start_step: int):
        """Prepares to write the trace of the first to the last of `steps`, all after `start_step`."""
        if steps and steps[0] <= start_step:
            raise UserError(
                f"--profile={steps[0]},{steps[1]}: the run continues after step {start_step}; name later "
                "steps."
            )
        self._folder, self._steps = folder, steps
        self._running = False
        self._annotation: jax.profiler.StepTraceAnnotation | None = None

    def begin(self, step: int, arguments: Any) -> None:
        """Starts tracing if `step` is to be traced; waits for its arguments before the first."""
        if self._steps is None or not self._steps[0] <= step <= self._steps[1]:
            return
        if step == self._steps[0]:
            jax.block_until_ready(arguments)
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        self._annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
        self._annotation.__enter__()

    def end(self, step: int, results: Any) -> None:
        """Stops tracing after the last step that is to be traced, once its results are there."""
        if self._annotation:
            self._annotation.__exit__(None, None, None)
            self._annotation = None
        if self._running and step == self._steps[1]:
            jax.block_until_ready(results)
            jax.profiler.stop_trace()
            self._running = False

    def __exit__(self, *error: object) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
