"""Every config of the catalogue trains for hundreds of steps in bfloat16."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from small_runs import small

import experiments.configs
from experiments import data
from experiments.core.config_file import list_configs
from experiments.data import pipeline
from experiments.tasks import make_task
from experiments.train.loss_scale import all_finite
from experiments.train.optimizer import count_steps
from experiments.train.program import compile_program

NAMES = list_configs(Path(experiments.configs.__file__).parent)
LONG = {"dtype": "bfloat16", "data.limit": 64, "epochs": 25}
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("standard_promotion")]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("net")])
def test_a_config_stays_finite_for_200_steps_in_bfloat16(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DYN_DATA_DIR", str(tmp_path))
    config = importlib.import_module(f"experiments.configs.{name}")
    config = small(config, "smoke", **LONG)
    task, dataset = make_task(config), data.load(config.data, config.seed)
    train_split, transform = dataset.splits["train"], task.make_transform(train=True)
    steps = count_steps(config, len(train_split))
    program = compile_program(
        config,
        task,
        len(dataset.classes),
        steps,
        transform(train_split[0], np.random.default_rng(0)),
        task.make_transform(train=False)(train_split[0]),
    )
    batches = pipeline.train_batches(train_split, transform, batch_size=config.batch_size, seed=0)
    state, losses = program.create_state(0), []
    for _ in range(steps.total):
        state, metrics = program.train_step(state, program.shard_batch(next(batches)))
        losses.append(metrics["loss"])
    batches.close()
    # A state that met a loss, a gradient or a statistic that is not finite would have stayed there.
    assert int(state.step) == steps.total == 200 and not bool(state.failed)
    assert bool(all_finite((state.params, state.batch_stats, state.opt_state)))
    assert np.mean(losses[-50:]) < np.mean(losses[:50])
