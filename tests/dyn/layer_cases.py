"""Variables and inputs for tests of layers."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def filled(layer, x, context=None, seed=0, dtype=np.float32):
    """Variables of a layer with a random number everywhere: nothing is zero or one by initialisation.

    They come from the shapes alone, so that no initialiser has to be compiled.
    """
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        values = 0.3 * rng.standard_normal(leaf.shape)
        name = path[-1].key
        if name in ("var", "scale", "temperature"):
            values = 1 + np.abs(values)
        return np.asarray(values, dtype)

    args = (x,) if context is None else (x, context)
    # flax's own norms cannot compute statistics in float64 or bfloat16 under strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        shapes = jax.eval_shape(layer.init, jax.random.key(0), *args)
    return jax.tree_util.tree_map_with_path(fill, shapes)


def random_input(*shape, seed=1, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def shapes_of(tree):
    """`{"attention/squeeze/kernel": (4, 16), ...}`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(k.key for k in path): leaf.shape for path, leaf in leaves}


def sines(shape, phase, amplitude=0.5, frequency=0.37):
    return amplitude * np.sin(frequency * np.arange(math.prod(shape)) + phase).reshape(shape)
