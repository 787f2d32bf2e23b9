"""Exports networks for JAX without Flax and without this library."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import export

from dyn.ops.platforms import plan_for_platform


def to_stablehlo(
    function: Callable[[jax.Array], Any],
    example: jax.ShapeDtypeStruct,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> bytes:
    """Serialises a function of a batch as StableHLO, for batches of any size.

    Arrays that the function closes over, such as the parameters of a network, become part of the program.
    `jax.export.deserialize(...).call(batch)` runs it.

    The planner chooses the lowerings of dynamic convolutions for a batch of 32. Several platforms share one
    program, which is planned for a TPU: it never processes samples one after another, which is fast only on
    a CPU.

    Args:
        function: maps an array `[B, ...]` to arrays `[B, ...]`.
        example: shape and dtype of one example, without B.
        platforms: platforms to export for: 'cpu', 'cuda', 'rocm' and 'tpu'. None of them is needed here.

    Returns:
        The bytes of the program.

    Raises:
        ValueError: if the function depends on the size of a batch, or a platform is unknown.
        ImportError: if `flatbuffers` is not installed.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.interop import to_stablehlo
        >>> from dyn.layers import ODConv
        >>> layer = ODConv(8, (3, 3), num_kernels=2)
        >>> variables = layer.init(jax.random.key(0), jnp.ones((2, 6, 6, 3)))
        >>> picture = jax.ShapeDtypeStruct((6, 6, 3), jnp.float32)
        >>> program = to_stablehlo(lambda x: layer.apply(variables, x), picture)
        >>> jax.export.deserialize(bytearray(program)).call(jnp.ones((5, 6, 6, 3))).shape
        (5, 6, 6, 8)
    """
    (batch_size,) = export.symbolic_shape("batch")
    batch = jax.ShapeDtypeStruct((batch_size, *example.shape), example.dtype)
    with plan_for_platform(platforms[0] if len(platforms) == 1 else "tpu"):
        # A new function, because jit would reuse what it has traced for this device.
        exporter = export.export(jax.jit(lambda x: function(x)), platforms=tuple(platforms))
        try:
            return bytes(exporter(batch).serialize())
        except jax.errors.InconclusiveDimensionOperation as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"the function depends on the size of a batch: {reason}") from error
