"""Compares exported programs with the functions that they came from."""

import jax
import numpy as np

from dyn.interop import to_stablehlo

BATCHES = (1, 3, 32)


def example_of(x):
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype)


def assert_same_at_any_batch(function, x, platforms=("cpu", "cuda", "tpu")):
    program = jax.export.deserialize(bytearray(to_stablehlo(function, example_of(x), platforms)))
    assert program.platforms == platforms
    compiled = jax.jit(function)
    for batch in BATCHES:
        got, want = program.call(x[:batch]), compiled(x[:batch])
        assert got.shape == want.shape and got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * max(1, np.abs(want).max()))
