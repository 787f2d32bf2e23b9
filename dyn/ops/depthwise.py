"""Depthwise convolution as sums of products of single numbers, with a gradient that stays in the cache.

    y[b, p, c] = sum_t x[b, read(p, t), c] w[b, t, c]

XLA's own convolution with as many groups as features takes 10 to 100 times as long on a CPU. The gradient of
the sum above is not fast either: that of the kernel is a sum over all positions for each feature, which XLA
computes one feature after the other, with long strides through memory. So there are two primitives, the
convolution C(x, w) and the gradient of its kernel K(x, dy), which on CPUs handles a few samples at a time.
Both are linear in each argument, and their transposes are the two again: all derivatives exist, forward and
backward, of any order.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from dyn.ops.dtypes import float32_or_wider
from dyn.ops.geometry import Array, Geometry
from dyn.ops.platforms import find_platform

# Bytes of inputs that the gradient of the kernel handles at once.
CHUNK_BYTES = 500_000


def convolve_depthwise(inputs: Array, kernels: Array, geometry: Geometry) -> Array:
    """Convolves each feature by itself, in float32 or wider.

    The gradient of the kernel is a sum over all positions, and bfloat16 would lose it.

    Args:
        inputs: `[B, *spatial, I]`.
        kernels: `[B or 1, *k, 1, O]`, where O is a multiple of I.
        geometry: its groups are the I features.

    Returns:
        `[B, *out, O]` in the inputs' dtype.
    """
    multiplier, wide = kernels.shape[-1] // inputs.shape[-1], float32_or_wider(inputs)
    kernels = kernels.reshape(kernels.shape[0], geometry.taps, kernels.shape[-1]).astype(wide)
    # A primitive does not know how arrays are divided over devices, converters to ONNX do not know it, and
    # narrow inputs stay narrow in memory.
    is_alone = jax.device_count() == 1 and jax.sharding.get_abstract_mesh().empty
    if is_alone and find_platform() != "onnx" and inputs.dtype == wide:
        wider = inputs if multiplier == 1 else jnp.repeat(inputs, multiplier, axis=-1)
        return _conv_p.bind(wider, kernels, geometry=geometry)
    return _add_taps(inputs, kernels, geometry=geometry).astype(inputs.dtype)


def _add_taps(x: Array, w: Array, *, geometry: Geometry) -> Array:
    """Computes C(x, w) for w `[B or 1, T, O]`."""
    multiplier = w.shape[-1] // x.shape[-1]
    w = w.reshape(*w.shape[:2], *(1,) * geometry.rank, w.shape[-1])
    total: Any = sum(
        (x if multiplier == 1 else jnp.repeat(x, multiplier, axis=-1)).astype(w.dtype) * w[:, t]
        for t, x in enumerate(geometry.shift_inputs(x))
    )
    return total


def _sum_products(x: Array, dy: Array, *, geometry: Geometry, shared: bool) -> Array:
    """Computes K(x, dy): `[B, T, O]`, or `[1, T, O]` for a kernel that is shared by all samples."""
    axes = tuple(range(0 if shared else 1, geometry.rank + 1))
    return jnp.stack(
        [jnp.sum(one * dy, axes, keepdims=True) for one in geometry.shift_inputs(x)], axis=1
    ).reshape(1 if shared else x.shape[0], geometry.taps, x.shape[-1])


def _sum_products_in_chunks(x: Array, dy: Array, *, geometry: Geometry, shared: bool) -> Array:
    """Computes `_sum_products` for a few samples at a time, with a sum for each place along the last axis."""
    batch = x.shape[0]
    if not isinstance(batch, int) or batch < 2:
        return _sum_products(x, dy, geometry=geometry, shared=shared)
    size = x.dtype.itemsize * math.prod(x.shape[1:])
    most = max(1, CHUNK_BYTES // size)
    number = next(n for n in range(1, batch + 1) if batch % n == 0 and batch // n <= most)
    rows = tuple(range(0 if shared else 1, geometry.rank))

    def add_chunk(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array | None]:
        x, dy = chunk
        products = [jnp.sum(one * dy, rows) for one in geometry.shift_inputs(x)]
        if shared:
            return total + jnp.stack(products), None
        return total, jnp.sum(jnp.stack(products, axis=1), axis=2)

    cut_x, cut_dy = (a.reshape(number, batch // number, *a.shape[1:]) for a in (x, dy))
    total = jnp.zeros((geometry.taps, geometry.out[-1], x.shape[-1]) if shared else (), x.dtype)
    total, by_sample = lax.scan(add_chunk, total, (cut_x, cut_dy))
    if by_sample is None:
        return jnp.sum(total, axis=1)[None]
    return by_sample.reshape(batch, geometry.taps, x.shape[-1])


def _make_primitive(
    name: str, compute: Callable[..., Array], shape: Callable[..., tuple[int, ...]]
) -> Primitive:
    """Returns a primitive of two arrays that is computed, batched and compiled as a function is."""
    primitive = Primitive(name)

    @primitive.def_impl
    def _(*arrays: Array, **fields: Any) -> Array:
        return jax.jit(partial(compute, **fields))(*arrays)

    @primitive.def_abstract_eval
    def _(a: Any, b: Any, **fields: Any) -> Any:
        return jax.core.ShapedArray(shape(a.shape, b.shape, **fields), a.dtype)

    def batch(arrays: tuple, axes: tuple, **fields: Any) -> tuple[Array, int]:
        return jax.vmap(partial(compute, **fields), axes)(*arrays), 0

    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(compute, multiple_results=False))
    return primitive


def _conv_shape(x: tuple, w: tuple, *, geometry: Geometry) -> tuple[int, ...]:
    return x[0], *geometry.out, x[-1]


def _kernel_shape(x: tuple, dy: tuple, *, geometry: Geometry, shared: bool) -> tuple[int, ...]:
    return 1 if shared else x[0], geometry.taps, x[-1]


_conv_p = _make_primitive("depthwise_conv", _add_taps, _conv_shape)
_kernel_p = _make_primitive("depthwise_conv_kernel", _sum_products, _kernel_shape)
_in_chunks = mlir.lower_fun(_sum_products_in_chunks, multiple_results=False)
mlir.register_lowering(_kernel_p, _in_chunks, platform="cpu")


def _pull_inputs(dy: Array, w: Array, geometry: Geometry) -> Array:
    """Computes the gradient of C's inputs: a convolution of dy with the reversed kernel."""
    return _conv_p.bind(dy, w[:, ::-1], geometry=geometry.transpose())


def _pull_x_from_conv(dy: Array, x: Any, w: Array, *, geometry: Geometry) -> Array:
    return _pull_inputs(dy, w, geometry)


def _pull_w_from_conv(dy: Array, x: Array, w: Any, *, geometry: Geometry) -> Array:
    return _kernel_p.bind(x, dy, geometry=geometry, shared=w.aval.shape[0] != x.shape[0])


def _pull_x_from_kernel(dw: Array, x: Any, dy: Array, *, geometry: Geometry, shared: bool) -> Array:
    return _pull_inputs(dy, dw, geometry)


def _pull_dy_from_kernel(
    dw: Array, x: Array, dy: Any, *, geometry: Geometry, shared: bool
) -> Array:
    return _conv_p.bind(x, dw, geometry=geometry)


ad.defbilinear(_conv_p, _pull_x_from_conv, _pull_w_from_conv)
ad.defbilinear(_kernel_p, _pull_x_from_kernel, _pull_dy_from_kernel)
