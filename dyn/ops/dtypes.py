"""The dtype in which attention and kernels are mixed."""

import jax
import jax.numpy as jnp


def float32_or_wider(*arrays: jax.Array | jax.ShapeDtypeStruct) -> jnp.dtype:
    """Returns float32, or the wider dtype that it promotes to with the arrays' dtypes.

    Attention loses too much precision in bfloat16.
    """
    with jax.numpy_dtype_promotion("standard"):  # also if the caller has forbidden it
        return jnp.result_type(jnp.float32, *(a.dtype for a in arrays))
