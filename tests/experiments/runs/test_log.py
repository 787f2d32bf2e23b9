import contextlib
import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import common
from experiments.core.errors import UserError
from experiments.runs.log import MetricLog, read_rows
from experiments.runs.writers import TensorBoardWriter, open_writers


@contextlib.contextmanager
def opened(workdir, resume_step=0, writers=()):
    with contextlib.closing(MetricLog(workdir, resume_step, writers)) as log:
        yield log


def test_a_log_gives_back_what_was_written(tmp_path):
    with opened(tmp_path / "run", resume_step=0) as log:
        log.write(10, "train", {"loss": jnp.float32(0.5), "learning_rate": 1e-3})
        log.write(10, "validation", {"loss": np.float32(0.25), "count": np.int64(7)})
        # Readable while the run goes on: nothing waits in a buffer.
        assert [row["split"] for row in log.rows()] == ["train", "validation"]
        assert log.rows()[1] == {"step": 10, "split": "validation", "loss": 0.25, "count": 7}


def test_what_json_cannot_say_is_null(tmp_path):
    with opened(tmp_path, resume_step=0) as log:
        log.write(1, "train", {"loss": float("nan"), "grad": jnp.array(jnp.inf)})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "split": "train", "loss": None, "grad": None}


def test_a_metric_cannot_hide_the_step(tmp_path):
    with opened(tmp_path, resume_step=0) as log, pytest.raises(ValueError, match="step"):
        log.write(1, "train", {"step": 3})


def test_a_resumed_log_has_no_duplicate_and_no_missing_row(tmp_path):
    with opened(tmp_path, resume_step=-1) as log:
        for step in (10, 20, 30, 40):
            log.write(step, "train", {"loss": float(step)})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 50, "spl')  # killed while writing

    with opened(tmp_path, resume_step=20) as log:
        assert [row["step"] for row in log.rows()] == [10, 20]
        log.write(30, "train", {"loss": 3.0})
        log.write(40, "train", {"loss": 4.0})
    assert [row["step"] for row in read_rows(path)] == [10, 20, 30, 40]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]

    with opened(tmp_path, resume_step=-1) as log:
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
    with opened(tmp_path, resume_step=0, writers=[TensorBoardWriter(tmp_path, 0)]) as log:
        log.write(1, "train", {"loss": 0.5, "accuracy": float("nan")})
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"train/loss" in content
    assert b"train/accuracy" not in content


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
        with opened(tmp_path, 0, open_writers(config, tmp_path, 0)) as log:
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
        open_writers(config, tmp_path, 0)
