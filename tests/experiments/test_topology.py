"""A network with batch norm over other numbers of devices: the same step, but for rounding, which grows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from experiments import program
from experiments.configs import base
from experiments.data import Dataset
from experiments.recipe import Lengths
from experiments.tasks import TASKS

pytestmark = pytest.mark.usefixtures("standard_promotion")

SHAPE, CLASSES, BATCH, RATE = (8, 8, 1), 3, 16, 0.125


def build(devices, monkeypatch):
    """A compiled ResNet with batch norm, trained by plain gradient descent."""
    axes = {"axis_types": (AxisType.Auto,), "devices": jax.devices()[:devices]}
    monkeypatch.setattr(program, "make_mesh", partial(jax.make_mesh, (devices,), ("data",), **axes))
    config = base.get_config("smoke")
    config.update_from_flattened_dict(
        {
            "model.width": 4,
            "batch_size": BATCH,
            "optimizer.name": "sgd",
            "optimizer.learning_rate": RATE,
            "optimizer.schedule": "plateau",
        }
    )
    example = {"inputs": np.zeros(SHAPE, np.float32), "label": np.int32(0)}
    dataset = Dataset("random", {}, tuple("abc"), SHAPE)
    lengths = Lengths(epoch=10, total=100, annealing=20, ramp=0)
    return program.build(config, TASKS[config.task], dataset, lengths, example, example)


def batch(step):
    rng = np.random.default_rng(step)
    label = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    inputs = rng.standard_normal((BATCH, *SHAPE)) + label[:, None, None, None]
    return {"inputs": inputs.astype(np.float32), "label": label}


def losses_and_first_state(built, steps, nudge=0.0):
    """The losses of some steps, and what there was behind the first: parameters and statistics."""
    state, losses = built.create(0), []
    state = state.replace(params=jax.tree.map(lambda leaf: leaf * (1 + nudge), state.params))
    for step in range(steps):
        state, metrics = built.train_step(state, built.put(batch(step)))
        losses.append(float(metrics["loss"]))
        if step == 0:
            first = jax.tree.map(np.asarray, (state.params, state.batch_stats))
    return np.array(losses), first


def test_batch_statistics_are_of_all_devices_and_what_differs_is_rounding(monkeypatch):
    """Over shards alone, statistics of 4 examples would be others than those of 16, by far more."""
    four, one = (build(devices, monkeypatch) for devices in (4, 1))
    steps = 40
    (losses, first), (others, expected) = (losses_and_first_state(p, steps) for p in (four, one))
    np.testing.assert_allclose(losses[0], others[0], rtol=0, atol=1e-6)
    # A step of plain gradient descent: parameters tell the gradient.
    for found, wanted in zip(*map(jax.tree.leaves, (first, expected)), strict=True):
        np.testing.assert_allclose(found / RATE, wanted / RATE, rtol=0, atol=1e-5)
    # Later losses differ no more than those of one device do after its parameters' last bit is changed.
    nudged, _ = losses_and_first_state(one, steps, nudge=float(jnp.finfo(jnp.float32).eps))
    apart, grown = (np.abs(these - others) for these in (losses, nudged))
    assert apart.max() < 10 * max(grown.max(), 1e-6)
