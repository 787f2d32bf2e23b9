"""Every layer inside flax's own ResNet, and where attention has little to look at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_resnet import assert_trains_inside_flax_resnet
from layer_cases import (
    CONVOLUTIONS,
    filled,
    random_input,
)
from odd_host import ODD_CASES, PLAIN, make_odd_network
from products import thin_out

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_trains_inside_flax_resnet(name):
    assert_trains_inside_flax_resnet(CONVOLUTIONS[name])


@pytest.mark.parametrize(
    "name",
    [n if n in ("ODConv", "DCDConv") else pytest.param(n, marks=pytest.mark.long) for n in PLAIN],
)
def test_odd_layers_train_on_batches_of_any_size(name):
    """Empty, of one and without a batch axis, where `nn.Conv` does: outputs and gradients are finite."""
    net = make_odd_network(name)
    variables = jax.jit(net.init)(jax.random.key(0), random_input(2, 3, 3, 1))

    @jax.jit
    def train(variables, x):
        def loss(params):
            y, state = net.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return jnp.sum(y**2), (y, state)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    for batch in ((0,), (1,), (), (2, 1)):
        # They normalise over samples and positions, and there is one in a batch of one.
        if name in ("DCDConv", "SelectiveKernel") and batch in ((1,), ()):
            with pytest.raises(ValueError, match="larger pictures"):
                train(variables, random_input(*batch, 3, 3, 1))
            continue
        (_, (y, _)), gradient = train(variables, random_input(*batch, 3, 3, 1))
        assert y.shape == (*batch, 1)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y, gradient)))
        assert jax.eval_shape(net.apply, variables, random_input(*batch, 3, 3, 1)).shape == y.shape


@pytest.mark.parametrize(
    ("name", "case"), thin_out([name for name in PLAIN if name != "nn.Conv"], ODD_CASES, step=2)
)
def test_odd_convolutions(name, case):
    """Shapes are those of `nn.Conv`; outputs and gradients are finite, where nothing is averaged, too."""
    shape, fields = ODD_CASES[case]
    layer, x = PLAIN[name](**fields), random_input(*shape)
    variables = filled(layer, x)

    @jax.jit
    def train(params, x):
        def loss(params, x):
            y, state = layer.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return jnp.sum(y**2), (y, state)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    want = jax.eval_shape(PLAIN["nn.Conv"](**fields).init_with_output, jax.random.key(0), x)[0]
    if name in ("DCDConv", "SelectiveKernel") and case == "one number":  # see above
        assert jax.eval_shape(layer.apply, variables, x).shape == want.shape
        return
    (_, (y, state)), gradient = train(variables["params"], x)
    assert y.shape == jax.eval_shape(layer.apply, variables, x).shape == want.shape
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y, state, gradient)))
