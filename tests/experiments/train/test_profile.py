import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from experiments.core.errors import UserError
from experiments.train.profile import parse, tracing


@pytest.mark.parametrize("words", [["5"], ["0", "3"], ["4", "3"], ["a", "b"], ["1", "2", "3"]])
def test_what_is_no_pair_of_steps_is_an_error(words):
    with pytest.raises(UserError, match="--profile=50,60"):
        parse(words)


def test_steps_are_counted_from_one_and_may_be_left_out():
    assert parse([]) is None
    assert parse(["2", "3"]) == (2, 3)


def test_the_steps_asked_for_are_traced_and_no_others(tmp_path):
    step = jax.jit(lambda x: jnp.sin(x) @ x)
    x = step(jnp.ones((8, 8)))
    with tracing(tmp_path / "profile", (2, 3), start_step=0) as run:
        for number in range(1, 6):
            x = run(number, step, x)
    (path,) = tmp_path.glob("profile/**/*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
    assert sorted(map(int, steps)) == [2, 3]


def test_a_run_that_ends_sooner_leaves_its_trace(tmp_path):
    with tracing(tmp_path / "profile", (1, 9), start_step=0) as run:
        assert run(1, lambda x: x + 1, 1) == 2
    assert list(tmp_path.glob("profile/**/*.xplane.pb"))


def test_steps_that_are_done_already_cannot_be_traced(tmp_path):
    with (
        pytest.raises(UserError, match="behind step 7"),
        tracing(tmp_path, (5, 9), start_step=7),
    ):
        pass
