"""Finished runs that nobody has trained: random parameters, and what a run leaves beside them."""

import csv
import json

import jax
import numpy as np
from small_runs import change

from experiments.configs import common
from experiments.runs.checkpoints import Checkpoints
from experiments.tasks import TASKS, make_task


def read_table(path, **options):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, **options))


def config_with(argument="smoke", **changes):
    config = change(common.get_config(argument), {"batch_size": 4, **changes})
    if "model" in config and "width" in config.model and "model.width" not in changes:
        config.model.width = 4
    return config


def random_variables(config, classes, shape, seed=0):
    model = make_task(config).make_model(len(classes), spatial_axes=len(shape) - 1)
    one = jax.ShapeDtypeStruct((1, *shape), np.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), one)
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        values = 0.3 * rng.standard_normal(leaf.shape)
        if path[-1].key in ("var", "scale", "temperature"):
            values = 1 + np.abs(values)
        return np.asarray(values, leaf.dtype)

    return model, jax.tree_util.tree_map_with_path(fill, shapes)


def write_finished(folder, config, classes, shape, seed=0):
    """A run's folder as `experiments.load` reads it: (model, variables)."""
    model, variables = random_variables(config, classes, shape, seed)
    names = ("params", "batch_stats", "attention")
    arrays = {name: variables.get(name, {}) for name in names}
    checkpoints = Checkpoints(folder / "checkpoints", TASKS[config.task].metric)
    measured = {"loss": 1.0, TASKS[config.task].metric: 0.5}
    checkpoints.save(4, arrays, {"best": {"step": 4}}, measured)
    # The latest is not the best.
    checkpoints.save(6, jax.tree.map(np.zeros_like, arrays), {"best": {"step": 4}})
    checkpoints.close()
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    summary = {"best": {"step": 4}, "classes": list(classes), "shape": list(shape)}
    (folder / "summary.json").write_text(json.dumps(summary))
    return model, {name: arrays[name] for name in names if arrays[name]}
