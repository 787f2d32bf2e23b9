"""A loss that is not finite: the step and the examples that it names, and the files that it keeps."""

import json

import jax
import numpy as np
import pytest
from small_runs import change

from experiments.configs import base
from experiments.core.errors import UserError
from experiments.data import Dataset
from experiments.data.pipeline import train_records
from experiments.data.views import Arrays
from experiments.runs.checkpoints import restore_arrays
from experiments.train import bad_step, loop, run_data
from experiments.train.loop import train

pytestmark = pytest.mark.usefixtures("compiled_once")

CHANGES = {
    "model.network": "net2",
    "series.features": 4,
    "batch_size": 8,
    "epochs": 2,
    # The numbers are looked at one step after the one that breaks them.
    "log_every": 4,
    "checkpoint_every": 2,
}
BAD_STEP = 3


def config_with(**changes):
    return change(base.get_config("ucr,name=Toy,smoke"), {**CHANGES, **changes})


@pytest.fixture
def broken_record(monkeypatch):
    """Series, one of which is infinite in one place: its number."""
    config = config_with()
    record = int(train_records(32, config.batch_size, config.seed, BAD_STEP - 1)[5])
    rng = np.random.default_rng(0)
    parts = [
        Arrays(rng.normal(size=(32, 24, 1)).astype(np.float32), np.arange(32) % 2) for _ in range(3)
    ]
    parts[0].inputs[record, 7] = np.inf
    splits = dict(zip(("train", "validation", "test"), parts, strict=True))
    dataset = Dataset("Toy", splits, ("a", "b"), (24, 1))
    monkeypatch.setattr(run_data.data, "load_for_training", lambda *_, **__: dataset)
    return record


@pytest.fixture(scope="module")
def programs():
    return {}


def test_a_loss_that_is_not_finite_names_its_step_and_examples_and_keeps_them(
    broken_record, programs, tmp_path
):
    config = config_with()
    messages = []
    # The same command comes to the same place, from the checkpoint.
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            train(config, tmp_path, programs)
        messages.append(str(caught.value))
        assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"2"}
    assert messages[0] == messages[1]
    records = train_records(32, 8, config.seed, BAD_STEP - 1)
    assert broken_record in records and "The loss is nan at step 3" in messages[0]
    assert f"the examples {', '.join(map(str, records))} of the training split" in messages[0]
    assert f"the inputs of {broken_record} are not finite" in messages[0]

    kept = np.load(tmp_path / "bad_step" / "batch.npz")
    np.testing.assert_array_equal(kept["records"], records)
    assert not np.isfinite(kept["inputs"][list(records).index(broken_record)]).all()
    assert np.isfinite(np.delete(kept["inputs"], list(records).index(broken_record), 0)).all()
    np.testing.assert_array_equal(kept["label"], records % 2)
    # The state before the step is the one of the checkpoint, which happens to lie there.
    names = ("params", "batch_stats", "opt_state", "step", "failed")
    before = restore_arrays(tmp_path / "bad_step" / "checkpoints" / "2", names)
    saved = restore_arrays(tmp_path / "checkpoints" / "2", names)
    jax.tree.map(np.testing.assert_array_equal, before, saved)
    assert before["step"] == 2 and not before["failed"]
    # No later row is written.
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["step"] < BAD_STEP for row in rows)


def test_a_batch_that_cannot_be_kept_does_not_hide_the_error(
    broken_record, programs, tmp_path, monkeypatch
):
    def raise_no_room(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bad_step.np, "savez", raise_no_room)
    with pytest.raises(UserError, match=r"The loss is nan at step 3.* It could not be kept: "):
        train(config_with(), tmp_path / "run", programs)


def test_an_evaluation_that_is_not_finite_keeps_the_state(
    broken_record, programs, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"loss": np.nan})
    run_data.data.load_for_training().splits["train"].inputs[broken_record] = 0
    with pytest.raises(UserError, match=r"The validation loss is nan at step 4\. The state is in"):
        train(config_with(), tmp_path, programs)
