"""`Conv` against `nn.Conv`: the same parameters, the same numbers, by every lowering."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolution_cases import PORTABLE
from layer_cases import filled, random_input, shapes_of

from dyn.layers import Conv

CASES = {
    "strided": ((2, 7, 7, 4), (6, (3, 3)), {"strides": 2, "padding": 1}),
    "depthwise": ((2, 6, 5, 4), (8, (3, 3)), {"feature_group_count": 4}),
    "1-D, dilated": ((2, 12, 4), (6, 3), {"kernel_dilation": 2, "use_bias": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_flax_conv(case):
    shape, args, fields = CASES[case]
    x = random_input(*shape)
    theirs = nn.Conv(*args, **fields)
    variables = filled(theirs, x)

    @jax.jit
    def compute(variables):
        lowerings = ("auto", *PORTABLE)
        ours = [Conv(*args, **fields, lowering=name).apply(variables, x) for name in lowerings]
        return theirs.apply(variables, x), ours

    want, results = compute(variables)
    for y in results:
        np.testing.assert_allclose(y, want, atol=1e-5)


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
