"""`Conv` against `nn.Conv`: the same parameters, the same numbers, by every lowering that there is."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dyn.layers import Conv
from dyn.ops import LOWERINGS
from tests.dyn.layer_cases import random_input, shapes_of

CASES = {
    "plain": ((4, 6, 5, 4), (6, (3, 3)), {}),
    "strided": ((2, 7, 7, 4), (6, (3, 3)), {"strides": 2, "padding": 1}),
    "grouped": ((2, 6, 5, 4), (6, (3, 3)), {"feature_group_count": 2}),
    "depthwise": ((2, 6, 5, 4), (8, (3, 3)), {"feature_group_count": 4}),
    "1x1": ((2, 6, 5, 4), (6, (1, 1)), {"use_bias": False}),
    "1-D, dilated": ((2, 12, 4), (6, 3), {"kernel_dilation": 2}),
    "3-D": ((2, 4, 4, 4, 2), (3, (2, 2, 2)), {"padding": "VALID"}),
    "many batch axes": ((2, 3, 6, 5, 4), (6, (3, 3)), {"padding": "CIRCULAR"}),
}


@pytest.mark.parametrize("lowering", ["auto", *LOWERINGS])
@pytest.mark.parametrize("case", CASES)
def test_it_is_flax_conv(case, lowering):
    shape, args, fields = CASES[case]
    x = random_input(*shape)
    theirs, ours = nn.Conv(*args, **fields), Conv(*args, **fields, lowering=lowering)
    variables = theirs.init(jax.random.key(0), x)
    np.testing.assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), atol=1e-5)


def test_it_starts_as_flax_conv_does():
    x = random_input(2, 6, 5, 4)
    ours = Conv(6, (3, 3)).init(jax.random.key(0), x)
    theirs = nn.Conv(6, (3, 3)).init(jax.random.key(0), x)
    assert shapes_of(ours) == shapes_of(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_mask_hides_weights():
    x, mask = random_input(2, 6, 5, 4), jnp.ones((3, 3, 4, 6)).at[0].set(0)
    layer = Conv(6, (3, 3), mask=mask)
    variables = layer.init(jax.random.key(0), x)
    want = nn.Conv(6, (3, 3), mask=mask).apply(variables, x)
    np.testing.assert_allclose(layer.apply(variables, x), want, atol=1e-5)
    with pytest.raises(ValueError, match="mask must have the shape of one kernel"):
        Conv(6, (3, 3), mask=mask[0]).init(jax.random.key(0), x)


@pytest.mark.parametrize("lowering", [name for name in LOWERINGS if name != "reference"])
def test_gradients(lowering):
    with jax.enable_x64(True):
        x = random_input(2, 4, 3, 2, dtype=np.float64)
        layer = Conv(3, (3, 3), lowering=lowering, param_dtype=jnp.float64)
        params = layer.init(jax.random.key(0), x)
        check_grads(layer.apply, (params, x), order=1, modes=["rev"])
