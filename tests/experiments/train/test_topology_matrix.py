"""A network with batch norm over other numbers of devices: its steps are the same, but for rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from experiments.configs import base
from experiments.tasks import make_task
from experiments.train.optimizer import StepCounts
from experiments.train.program import compile_program
from experiments.train.sharding import shardings_of

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("standard_promotion")]

SHAPE, CLASSES, BATCH, RATE = (8, 8, 1), 3, 16, 0.125


def build(devices):
    """Compiles a ResNet with batch norm, trained by plain gradient descent."""
    axes = {"axis_types": (AxisType.Auto,), "devices": jax.devices()[:devices]}
    mesh = jax.make_mesh((devices,), ("data",), **axes)
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
    steps = StepCounts(per_epoch=10, total=100, annealing=20, auxiliary_ramp=0)
    return compile_program(config, make_task(config), CLASSES, steps, example, example, mesh)


def batch(step):
    rng = np.random.default_rng(step)
    label = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    inputs = rng.standard_normal((BATCH, *SHAPE)) + label[:, None, None, None]
    return {"inputs": inputs.astype(np.float32), "label": label}


def test_a_step_with_batch_norm_is_the_same_over_four_devices_and_one():
    """From wherever one device has come to. Statistics over shards alone, of 4 examples, would differ."""
    four, one = (build(devices) for devices in (4, 1))
    state = one.create_state(0)
    for step in range(31):
        # A copy: a step gives its arguments' memory away.
        same = jax.device_put(jax.tree.map(jnp.copy, state), shardings_of(four.state_shape))
        state, metrics = one.train_step(state, one.shard_batch(batch(step)))
        if step % 10 == 0:
            other, others = four.train_step(same, four.shard_batch(batch(step)))
            np.testing.assert_allclose(others["loss"], metrics["loss"], rtol=0, atol=1e-6)
            # Plain gradient descent: what parameters differ by is the gradient, times the rate.
            for found, wanted in zip(*map(arrays, (other, state)), strict=True):
                np.testing.assert_allclose(found / RATE, wanted / RATE, rtol=1e-6, atol=1e-5)


def arrays(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state.params, state.batch_stats))]
