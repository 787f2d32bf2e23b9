"""Variables for the tests of warm starts, and the comparison of what networks compute."""

import jax
import jax.numpy as jnp
import numpy as np
from layer_cases import init_shapes

from dyn.layers import GatedConv


def initialised(net, x, seed=3):
    """Variables as `init` makes them, except kernels, so that no initialiser has to be compiled."""
    rng = np.random.default_rng(seed)
    gated = getattr(getattr(net, "conv", net), "func", type(net)) is GatedConv

    def fill(path, leaf):
        names = [part.key for part in path]
        match names[-1]:
            case "scale" | "var" | "temperature":
                zero = names[-3:] == ["spatial", "norm", "scale"]
                return np.full(leaf.shape, 0.0 if zero else 1.0, np.float32)
            case "gates":
                return np.ones(leaf.shape, np.float32)
            case "bias" if gated and "attention" in names:
                return np.ones(leaf.shape, np.float32)
            case "bias" | "mean" | "blend":
                return np.zeros(leaf.shape, np.float32)
        return (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, init_shapes(net, x))


def assert_same(y, expected):
    """To float32 precision, compared with the largest output."""
    assert float(jnp.abs(expected).mean()) > 0.1
    tolerance = 2e-5 * float(jnp.abs(expected).max())
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance)
