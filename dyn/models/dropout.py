"""Dropout on meshes with explicit axes."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.ops.dtypes import float32_or_wider
from dyn.ops.sharding import find_explicit_mesh


class Dropout(nn.Dropout):
    """`nn.Dropout`, with the same draws, that also takes arrays on a mesh with explicit axes."""

    def __call__(
        self,
        inputs: jax.Array,
        deterministic: bool | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Sets a random share `rate` of the inputs to zero, and divides the others by `1 - rate`."""
        if find_explicit_mesh(inputs) is None:
            return super().__call__(inputs, deterministic, rng)
        # Flax selects with a mask that is not sharded, which JAX refuses for inputs that are.
        ones = jnp.ones(inputs.shape, float32_or_wider(inputs))
        scale = super().__call__(ones, deterministic, rng)
        scale = jax.sharding.reshard(scale, jax.typeof(inputs).sharding)
        scaled = jnp.where(scale > 0, inputs.astype(scale.dtype) * scale, jnp.zeros_like(scale))
        return scaled.astype(inputs.dtype)
