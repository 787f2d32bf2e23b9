"""The dtype in which attention and kernels are mixed."""

import jax
import jax.numpy as jnp


def float32_or_wider(*arrays: jax.Array) -> jnp.dtype:
    """float32, or what it promotes to with the arrays' dtypes: attention loses too much in bfloat16."""
    with jax.numpy_dtype_promotion("standard"):  # also where the caller has forbidden it elsewhere
        return jnp.result_type(jnp.float32, *(a.dtype for a in arrays))
