import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from small_runs import small

from experiments.configs import base, odconv
from experiments.core.errors import UserError
from experiments.tasks import make_task
from experiments.tasks.information import information_loss, mixture_information, read_information


def test_information_is_that_of_the_loop_in_float64():
    mixtures = np.random.default_rng(0).dirichlet(np.full(4, 0.5), size=10)
    used, entropies = np.zeros(4), []
    for mixture in mixtures:
        used += mixture / len(mixtures)
        entropies.append(-sum(m * np.log(m) for m in mixture))
    expected = (-sum(m * np.log(m) for m in used) - np.mean(entropies)) / np.log(4)
    assert mixture_information(jnp.asarray(mixtures)) == pytest.approx(expected, rel=1e-5)
    logits = jnp.log(jnp.float32(mixtures))
    check_grads(lambda z: mixture_information(jax.nn.softmax(z)), (logits,), order=1, rtol=0.02)


@pytest.mark.parametrize(
    "mixtures, expected",
    [
        (np.full((6, 3), 1 / 3), 0),
        (np.eye(3)[[0, 0, 0, 0]], 0),  # a kernel, but always the same
        (np.eye(3)[[0, 1, 2, 0, 1, 2]], 1),
    ],
    ids=["equal weights", "one kernel", "a kernel each"],
)
def test_information_is_most_if_each_input_has_its_kernel(mixtures, expected):
    value, gradient = jax.value_and_grad(mixture_information)(jnp.float32(mixtures))
    assert value == pytest.approx(expected, abs=1e-6) and jnp.isfinite(gradient).all()


def test_the_loss_of_a_network_falls_with_what_its_layers_tell():
    layers = {
        "first": {"weights": ({"kernel": jnp.eye(2), "spatial": jnp.ones((2, 3, 3))},)},
        "second": {"attention": {"weights": ({"kernel": jnp.full((2, 2), 0.5)},)}},
        "static": {"sigma": (jnp.ones(()),)},
    }
    assert information_loss(layers) == pytest.approx(0.5)
    with pytest.raises(UserError, match="no layer of this network mixes kernels"):
        information_loss({"static": layers["static"]})


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_training_adds_it_to_the_losses_that_layers_sow(weight):
    task = make_task(small(odconv, **{"mixture.information": weight}))
    model = task.make_model(10, spatial_axes=2)
    inputs = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    variables = model.init(jax.random.key(1), inputs, train=False)
    batch = {"inputs": inputs, "label": jnp.arange(4)}
    loss, (metrics, changed) = task.compute_loss(model, variables, batch, jax.random.key(2), False)
    assert loss == metrics["loss"]
    losses = jax.tree.leaves(changed.get("losses", {}))
    assert bool(losses) == bool(weight) and "intermediates" not in changed
    assert all(0.25 < value <= 0.5 for value in losses)  # untrained mixtures tell little


def test_networks_that_mix_no_kernels_have_no_such_setting():
    assert "mixture" not in base.get_config() and read_information(base.get_config()) == 0
    assert read_information(small(odconv, **{"mixture.information": 0.25})) == 0.25
