"""The comparison of a network with the one whose norms are folded."""

import jax
import numpy as np
from layer_cases import filled

from dyn.interop import fold_norms


def assert_folds(net, x, number):
    """Asserts that some norms are folded and outputs are equal to 1e-5 of the largest; returns the result."""
    variables = filled(net, x)
    folded = fold_norms(net, variables, x)
    assert len(folded.folded) == number, folded.kept
    expected = jax.jit(net.apply)(variables, x)
    y = jax.jit(folded.network.apply)(folded.variables, x)
    assert y.dtype == expected.dtype
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    return folded
