"""The dtype in which attention and kernels are mixed, and sums over positions are added up; precisions."""

import jax
import jax.numpy as jnp
from jax import lax

_LOW = (None, "default", "fastest", "bfloat16", lax.Precision.DEFAULT)


def float32_or_wider(*arrays: jax.Array | jax.ShapeDtypeStruct) -> jnp.dtype:
    """Returns float32, or the wider dtype that it promotes to with the arrays' dtypes.

    Attention loses too much precision in bfloat16.
    """
    with jax.numpy_dtype_promotion("standard"):  # also if the caller has forbidden it
        return jnp.result_type(jnp.float32, *(a.dtype for a in arrays))


def broadcast_weights(weights: jax.Array, x: jax.Array) -> jax.Array:
    """Rounds weights to the dtype of `x`, such that their gradient is added up in float32 or wider.

    The gradient of weights is a sum over all positions that they apply to. In bfloat16 it would stop growing
    after a few hundred terms, so narrow dtypes are broadcast before they are rounded, not after.

    Args:
        weights: of the rank of `x`, each axis of the size of that of `x` or one.
        x: the array that they will be multiplied with or added to.
    """
    wide = float32_or_wider(x)
    if x.dtype == wide:
        return weights.astype(wide)
    return jnp.broadcast_to(weights.astype(wide), x.shape).astype(x.dtype)


def choose_matrix_precision(dtype: jnp.dtype, precision: lax.PrecisionLike) -> lax.Precision | None:
    """Returns the precision of a TPU's matrix unit, which has two of them for float32.

    None stands for that of `jax.default_matmul_precision`.
    """
    if dtype == jnp.bfloat16:
        return None
    if precision is None:
        # pyrefly: ignore [missing-attribute]
        precision = jax.config.jax_default_matmul_precision
    wanted = precision if isinstance(precision, tuple) else (precision,)
    high = any(one not in _LOW for one in wanted)
    return lax.Precision.HIGHEST if high else lax.Precision.DEFAULT


def count_kernel_bytes(dtype: jnp.dtype) -> int:
    """Returns the bytes of a number in a TPU's kernels, which compute in float32 for float16."""
    return 4 if dtype == jnp.float16 else dtype.itemsize
