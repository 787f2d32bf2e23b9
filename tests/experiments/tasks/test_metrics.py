import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from experiments.configs import common
from experiments.core.errors import UserError
from experiments.core.files import replace_file, to_json
from experiments.runs import writers as boards
from experiments.runs.log import MetricLog, read_rows
from experiments.tasks.metrics import (
    classification_sums,
    confusion_matrix,
    means,
    precision_recall_f1,
)


def test_a_log_gives_back_what_was_written(tmp_path):
    with MetricLog(tmp_path / "run", resume_step=0) as log:
        log.write(10, "train", {"loss": jnp.float32(0.5), "learning_rate": 1e-3})
        log.write(10, "validation", {"loss": np.float32(0.25), "count": np.int64(7)})
        # Readable while the run goes on: nothing waits in a buffer.
        assert log.rows("validation") == [
            {"step": 10, "split": "validation", "loss": 0.25, "count": 7}
        ]
        assert [row["split"] for row in log.rows()] == ["train", "validation"]


def test_what_json_cannot_say_is_null(tmp_path):
    with MetricLog(tmp_path, resume_step=0) as log:
        log.write(1, "train", {"loss": float("nan"), "grad": jnp.array(jnp.inf)})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "split": "train", "loss": None, "grad": None}


def test_a_metric_cannot_hide_the_step(tmp_path):
    with MetricLog(tmp_path, resume_step=0) as log, pytest.raises(ValueError, match="step"):
        log.write(1, "train", {"step": 3})


def test_a_resumed_log_has_no_duplicate_and_no_missing_row(tmp_path):
    with MetricLog(tmp_path, resume_step=-1) as log:
        for step in (10, 20, 30, 40):
            log.write(step, "train", {"loss": float(step)})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 50, "spl')  # killed while writing

    with MetricLog(tmp_path, resume_step=20) as log:
        assert [row["step"] for row in log.rows()] == [10, 20]
        log.write(30, "train", {"loss": 3.0})
        log.write(40, "train", {"loss": 4.0})
    assert [row["step"] for row in read_rows(path)] == [10, 20, 30, 40]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]

    with MetricLog(tmp_path, resume_step=-1) as log:
        assert log.rows() == []


def test_a_torn_last_line_is_left_out_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_rows(path) == []
    path.write_bytes(b'{"step": 1, "split": "train"}\n\x00\xff\x1c\x00')
    assert read_rows(path) == [{"step": 1, "split": "train"}]
    path.write_text('{"step": 1}\n12\n')  # a number is a torn row too
    assert read_rows(path) == [{"step": 1}]
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        read_rows(path)


def test_tensorboard_is_written_beside(tmp_path):
    with MetricLog(tmp_path, resume_step=0, boards=[boards.tensorboard(tmp_path, 0)]) as log:
        log.write(1, "train", {"loss": 0.5, "accuracy": float("nan")})
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"train/loss" in content
    assert b"train/accuracy" not in content


def test_hosts_that_write_one_file_do_not_write_into_one_another(tmp_path, monkeypatch):
    monkeypatch.setattr("os.getpid", lambda: 1)
    monkeypatch.setattr("socket.gethostname", lambda: "one")
    with replace_file(tmp_path / "file") as mine:
        mine.write_text("mine")
        monkeypatch.setattr("socket.gethostname", lambda: "other")
        with replace_file(tmp_path / "file") as theirs:
            theirs.write_text("theirs")
    assert (tmp_path / "file").read_text() == "mine"


def test_replacing_is_all_or_nothing(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with replace_file(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError), replace_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_plain_knows_every_scalar():
    values = {
        "bf16": jnp.array([0.5, jnp.nan], jnp.bfloat16),
        "flag": np.bool_(True),
        "pair": (np.int32(3), None),
        "set": {"b", "a"},
        "type": jnp.zeros((), jnp.int8),
    }
    expected = {"bf16": [0.5, None], "flag": True, "pair": [3, None], "set": ["a", "b"], "type": 0}
    assert to_json(values) == expected


def _sums(logits, labels, mask=None):
    logits = jnp.asarray(logits, jnp.float32)
    mask = jnp.ones(len(labels), bool) if mask is None else jnp.asarray(mask)
    return jax.jit(classification_sums)(logits, jnp.asarray(labels, jnp.int32), mask)


def test_sums_equal_numpys():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(64, 11)).astype(np.float32)
    labels = rng.integers(0, 11, 64)
    mask = rng.random(64) < 0.7
    sums = jax.device_get(_sums(logits, labels, mask))

    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
    np.testing.assert_allclose(sums["loss"], -log_p[np.arange(64), labels][mask].sum(), rtol=1e-5)
    assert sums["correct"] == (best[:, 0] == labels)[mask].sum()
    assert sums["correct5"] == (best == labels[:, None]).any(-1)[mask].sum()
    assert sums["count"] == mask.sum()
    assert {value.dtype for value in sums.values()} == {jnp.dtype("float32")}
    assert means(sums)["accuracy"] == sums["correct"] / sums["count"]
    found = means(sums)
    assert found["top1_error"] == pytest.approx(1 - found["accuracy"])
    assert found["top5_error"] == pytest.approx(1 - found["top5"])


@pytest.mark.parametrize("absent", [(), (3,), (0, 10)])
def test_precision_recall_and_f1_are_scikit_learns_over_the_classes_that_there_are(rng, absent):
    logits = rng.normal(size=(90, 11)).astype(np.float32)
    logits[:, 5] = -9  # never predicted
    mask = rng.random(90) < 0.8
    present = [number for number in range(11) if number not in absent]
    labels = rng.choice(present, 90)
    # A batch and a half.
    parts = [
        jax.device_get(_sums(logits[at], labels[at], mask[at]))
        for at in np.split(np.arange(90), [60])
    ]
    found = means({name: parts[0][name] + parts[1][name] for name in parts[0]})
    seen = np.unique(labels[mask])
    expected = precision_recall_fscore_support(
        labels[mask], logits[mask].argmax(-1), labels=seen, average="macro", zero_division=0
    )[:3]
    np.testing.assert_allclose(
        [found[n] for n in ("precision", "recall", "f1")], expected, rtol=1e-6
    )
    each = precision_recall_f1([0, 3, 0], [0, 6, 2], [4, 4, 0])
    np.testing.assert_allclose(each["precision"], [0, 0.5, np.nan])
    np.testing.assert_allclose(each["recall"], [0, 0.75, np.nan])
    np.testing.assert_allclose(each["f1"], [0, 0.6, np.nan])


def test_of_equal_logits_the_lower_index_is_better():
    # All ten equal: the first is predicted, the first five are among the best five.
    sums = [_sums(np.zeros((1, 10)), [label]) for label in range(10)]
    assert [int(s["correct"]) for s in sums] == [1] + [0] * 9
    assert [int(s["correct5"]) for s in sums] == [1] * 5 + [0] * 5


def test_top5_of_few_classes_is_always_right():
    assert _sums([[3.0, 1.0, 2.0]], [1])["correct5"] == 1


def test_padding_may_hold_anything():
    sums = _sums([[2.0, 1.0], [np.nan, np.inf]], [0, -1], mask=[1.0, 0.0])
    assert np.isfinite(sums["loss"])
    assert (sums["correct"], sums["count"]) == (1, 1)


def test_nan_is_wrong():
    sums = _sums([[np.nan, np.nan], [np.nan, 1.0]], [0, 1])
    assert (sums["correct"], sums["correct5"]) == (0, 0)
    assert np.isnan(sums["loss"])


def test_confusion_matrix_has_the_truth_in_rows():
    matrix = confusion_matrix([0, 0, 2], [0, 1, 1], 3)
    np.testing.assert_array_equal(matrix, [[1, 1, 0], [0, 0, 0], [0, 1, 0]])
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(confusion_matrix([], [], 2), np.zeros((2, 2)))
    # int8 labels would overflow in label * C + prediction.
    assert confusion_matrix(np.array([100], np.int8), np.array([9], np.int8), 101)[100, 9] == 1


@pytest.mark.parametrize(("labels", "predictions"), [([0, 3], [0, 0]), ([0], [-1]), ([0], [0, 1])])
def test_confusion_matrix_refuses_what_it_cannot_count(labels, predictions):
    with pytest.raises(ValueError):
        confusion_matrix(labels, predictions, 3)


def test_weights_and_biases_continues_the_run_of_a_workdir(tmp_path, monkeypatch):
    runs = []

    class Run:
        def __init__(self, **fields):
            self.fields, self.rows, self.finished = fields, [], False
            self.define_metric = lambda *names, **settings: None
            self.log = self.rows.append
            runs.append(self)

        def finish(self):
            self.finished = True

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=Run))
    config = common.get_config()
    config.wandb = "birds"
    for step in (1, 2):
        with MetricLog(tmp_path, 0, boards.open_boards(config, tmp_path, 0)) as log:
            log.write(step, "train", {"loss": 0.5})
    first, second = runs
    assert first.rows == [{"step": 1, "train/loss": 0.5}] and first.finished
    assert first.fields["project"] == "birds" and first.fields["config"]["batch_size"] == 32
    assert second.fields["id"] == first.fields["id"] and second.fields["resume"] == "allow"


def test_a_library_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = common.get_config()
    config.wandb = "birds"
    with pytest.raises(UserError, match="pip install wandb"):
        boards.open_boards(config, tmp_path, 0)
