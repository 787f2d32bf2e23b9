"""A network as a file that JAX runs without Flax and without this library."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import export

from dyn.ops import planner


def to_stablehlo(
    function: Callable[[jax.Array], Any],
    example: jax.ShapeDtypeStruct,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> bytes:
    """Writes a function of a batch, for a batch of any size, as StableHLO.

    What the function closes over, such as the parameters of a network, becomes a part of it.
    `jax.export.deserialize(...).call(batch)` runs it.

    Dynamic convolutions are computed as their planner advises for a batch of 32. For several platforms
    there is one program, and it is planned for a TPU: nowhere are samples taken one after another, which
    only a CPU does well.

    Args:
        function: of an array `[B, ...]` to arrays `[B, ...]`.
        example: shape and dtype of one example, without B.
        platforms: 'cpu', 'cuda', 'rocm' and 'tpu', those that are to run it. None of them is needed here.

    Returns:
        What is to be written to a file.

    Raises:
        ValueError: if the function does something that depends on the size of a batch, or there is no such
            platform.
        ImportError: where `flatbuffers` is missing.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.interop import to_stablehlo
        >>> from dyn.layers import ODConv
        >>> layer = ODConv(8, (3, 3), num_kernels=2)
        >>> variables = layer.init(jax.random.key(0), jnp.ones((2, 6, 6, 3)))
        >>> picture = jax.ShapeDtypeStruct((6, 6, 3), jnp.float32)
        >>> written = to_stablehlo(lambda x: layer.apply(variables, x), picture)
        >>> jax.export.deserialize(bytearray(written)).call(jnp.ones((5, 6, 6, 3))).shape
        (5, 6, 6, 8)
    """
    (batch,) = export.symbolic_shape("batch")
    whole = jax.ShapeDtypeStruct((batch, *example.shape), example.dtype)
    with planner.plan_for_platform(platforms[0] if len(platforms) == 1 else "tpu"):
        # A function of its own: what was traced for this device before is not what is wanted.
        traced = export.export(jax.jit(lambda x: function(x)), platforms=tuple(platforms))
        try:
            return bytes(traced(whole).serialize())
        except jax.errors.InconclusiveDimensionOperation as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"the function depends on the size of a batch: {reason}") from error
