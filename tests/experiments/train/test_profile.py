"""Traces of a few steps."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from experiments.core.errors import UserError
from experiments.train.profile import StepProfiler, parse_steps


def test_steps_are_counted_from_one_and_may_be_left_out():
    assert parse_steps([]) is None
    assert parse_steps(["2", "3"]) == (2, 3)
    for words in (["5"], ["0", "3"], ["4", "3"], ["a", "b"], ["1", "2", "3"]):
        with pytest.raises(UserError, match="--profile=50,60"):
            parse_steps(words)


def test_only_the_steps_of_the_flag_are_traced(tmp_path):
    step = jax.jit(lambda x: jnp.sin(x) @ x)
    x = step(jnp.ones((8, 8)))
    with StepProfiler(tmp_path / "profile", (2, 3), start_step=0) as profiler:
        for number in range(1, 6):
            profiler.begin(number, x)
            x = step(x)
            profiler.end(number, x)
    (path,) = tmp_path.glob("profile/**/*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
    assert sorted(map(int, steps)) == [2, 3]


def test_a_run_that_ends_sooner_leaves_its_trace(tmp_path):
    with StepProfiler(tmp_path / "profile", (1, 9), start_step=0) as profiler:
        profiler.begin(1, jnp.ones(()))
        profiler.end(1, jnp.ones(()))
    assert list(tmp_path.glob("profile/**/*.xplane.pb"))


def test_steps_before_the_checkpoint_cannot_be_traced(tmp_path):
    with pytest.raises(UserError, match="after step 7"):
        StepProfiler(tmp_path, (5, 9), start_step=7)
