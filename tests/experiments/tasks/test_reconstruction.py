import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import small

from experiments import data
from experiments.configs import soundscape_autoencoder
from experiments.core.errors import UserError
from experiments.tasks import make_task
from experiments.train.validate import resolve_config

pytestmark = pytest.mark.usefixtures("standard_promotion", "compiled_once")

TINY = {"autoencoder.widths": (4, 4), "image_size": 8, "epochs": 4, "optimizer.learning_rate": 0.02}


def config_with(argument="digits,smoke", **changes):
    return small(soundscape_autoencoder, argument, **{**TINY, **changes})


def test_the_mean_picture_is_that_of_the_training_split():
    config = config_with()
    dataset = data.load(config.data, 0)
    train, test = (
        np.stack([dataset.splits[name][i]["inputs"] for i in range(len(dataset.splits[name]))])
        for name in ("train", "test")
    )
    mean = train.astype(np.float64).mean(axis=0)
    expected = np.mean(((test - mean) / 255) ** 2)
    found = make_task(config).reference_metrics(dataset)
    assert found == {"mean_picture": pytest.approx(expected, rel=1e-5)}


def test_padding_adds_no_error_and_dead_features_are_counted(rng):
    config = config_with(**{"autoencoder.norm": False})
    model = make_task(config).make_model(10, 2)
    x = jnp.asarray(rng.uniform(size=(4, 8, 8, 1)), jnp.float32)
    variables = jax.tree.map(np.array, jax.jit(model.init)(jax.random.key(0), x))
    # A feature that nothing can move, at 2 by 2 places.
    variables["params"]["encoder"]["conv2"]["kernel"][..., 1] = 0
    outputs = np.asarray(jax.jit(model.apply)(variables, x))
    errors = np.mean((outputs - np.asarray(x)) ** 2, axis=(1, 2, 3))
    codes = np.asarray(jax.jit(lambda v, x: make_task(config).predict(model, v, x))(variables, x))

    sums = jax.jit(lambda v, b: make_task(config).sum_metrics(model, v, b))
    batches = [
        {"inputs": x[:2], "mask": jnp.array([1.0, 1.0])},
        {"inputs": x[2:], "mask": jnp.array([1.0, 0.0])},
    ]
    found = make_task(config).compute_metrics(
        [sums(variables, batch) for batch in batches], None, "test"
    )
    assert found["loss"] == pytest.approx(errors[:3].mean(), rel=1e-5)
    assert found["dead_features"] == int((np.ptp(codes[:3], axis=0) == 0).sum()) >= 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"normalise.mean": (0.5,)}, "from 0 to 1"),
        ({"conv.name": "warehouse"}, "an autoencoder has none"),
    ],
)
def test_what_makes_no_sense_is_said(changes, says):
    with pytest.raises(UserError, match=says):
        resolve_config(config_with(**changes))
