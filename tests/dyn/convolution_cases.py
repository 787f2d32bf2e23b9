"""Cases of `dynamic_conv` that cover every geometry, for the tests of the lowerings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import oracle

from dyn.ops import LOWERINGS, dynamic_conv
from dyn.ops.dynamic_conv import check_arguments
from dyn.ops.geometry import resolve_geometry
from dyn.ops.lowerings import why_unsupported
from dyn.ops.planner import why_unavailable

# `fused` has tests of its own.
PORTABLE = tuple(name for name in LOWERINGS if not why_unavailable(name, "cpu"))

# Unless a case says otherwise: two kernels 3x3, from two to three features, for pictures of 5x4.
USUAL = dict(spatial=(5, 4), size=(3, 3), i=2, o=3, k=2)
CHANGES = {
    "2d": dict(k=3),
    "2d taps": dict(k=3, taps=True),
    "2d one kernel, taps": dict(size=(3, 2), k=1, mix=None, taps=True),
    "2d one kernel, nothing": dict(k=1, mix=None),
    "2d one weighted kernel": dict(k=1),
    "2d pointwise": dict(size=(1, 1), taps=True),
    "2d strided": dict(spatial=(6, 5), taps=True, strides=(2, 3)),
    "2d valid, dilated": dict(
        spatial=(7, 6), size=(3, 2), taps=True, padding="VALID", kernel_dilation=(2, 3)
    ),
    "2d same, strided, dilated": dict(
        spatial=(7, 6), size=(3, 2), taps=True, strides=2, kernel_dilation=2
    ),
    "2d input dilated": dict(
        spatial=(4, 3), taps=True, input_dilation=(2, 3), padding=[(1, 1), (0, 3)], strides=2
    ),
    "2d pairs": dict(taps=True, padding=[(0, 2), (3, 1)], strides=2),
    "2d cropping": dict(spatial=(7, 6), taps=True, padding=[(-1, 1), (1, -2)]),
    "2d number": dict(padding=2),
    "2d circular": dict(size=(3, 2), taps=True, padding="CIRCULAR", strides=2),
    "2d reflect": dict(spatial=(5, 6), size=(3, 2), padding="REFLECT", kernel_dilation=2),
    "2d fewer positions than features": dict(spatial=(2, 2), o=13, k=3, taps=True, strides=2),
    "2d groups": dict(i=4, o=6, k=3, groups=2, taps=True),
    "2d depthwise": dict(i=4, o=4, k=3, groups=4, taps=True),
    "2d depthwise, multiplied": dict(i=3, o=6, groups=3, taps=True),
    "2d depthwise, one kernel": dict(i=4, o=4, k=1, groups=4, mix=None, taps=True),
    "2d pixel-wise": dict(k=3, mix="pixel", strides=2),
    "2d pixel-wise, taps, groups": dict(o=4, k=3, groups=2, mix="pixel", taps=True),
    "1d causal": dict(spatial=(9,), size=(3,), taps=True, padding="CAUSAL", kernel_dilation=2),
    "1d pixel-wise": dict(spatial=(6,), size=(3,), mix="pixel"),
    "1d same, even kernel": dict(spatial=(9,), size=(4,), strides=2),
    "3d": dict(spatial=(4, 3, 3), size=(2, 3, 2), taps=True, strides=(2, 1, 2)),
    "3d pixel-wise": dict(spatial=(2, 3, 2), size=(1, 2, 2), o=2, mix="pixel"),
}
CASES = {name: USUAL | changes for name, changes in CHANGES.items()}
DESCRIPTION = ("spatial", "size", "i", "o", "k", "groups", "batch", "taps", "mix")


def arguments(case):
    """Returns the keywords of `dynamic_conv`, and of `nn.Conv`, that a case names."""
    geometry = {name: value for name, value in case.items() if name not in DESCRIPTION}
    return {**geometry, "feature_group_count": case.get("groups", 1)}


@functools.cache
def random_arrays(name, dtype):
    """Returns random `(inputs, kernels, mix, taps)` of a case, None for those that it lacks."""
    return oracle.random_case(jax.random.key(1), dtype, **CASES[name])


def supported_lowerings(name):
    """Returns the lowerings that can do a case."""
    case = CASES[name]
    x, w, mix, taps = random_arrays(name, jnp.float32)
    geometry = {
        "groups" if k == "feature_group_count" else k: v for k, v in arguments(case).items()
    }
    problem = check_arguments(
        x, w, mix, taps, resolve_geometry(case["spatial"], case["size"], **geometry)
    )
    return [lowering for lowering in PORTABLE if not why_unsupported(lowering, problem)]


def compute_lowerings(name, dtype, *, gradients=False, weights=()):
    """Computes a case by definition and by every lowering that supports it, in one program.

    Args:
        name: the case.
        dtype: dtype of the arrays.
        gradients: whether to compute gradients with respect to all arrays too.
        weights: weights of channels and filters, or nothing.

    Returns:
        Values, or values and gradients, by the names of the lowerings and 'definition'.
    """
    keywords = arguments(CASES[name])
    channels, filters = weights or (None, None)

    def over_space(weights, x):
        return weights.reshape(len(x), *(1,) * (x.ndim - 2), -1)

    def define(x, w, mix, taps, channels, filters, dynamic_conv=oracle.dynamic_conv):
        x = x if channels is None else x * over_space(channels, x)
        y = dynamic_conv(x, w, mix, taps, **keywords)
        return y if filters is None else y * over_space(filters, y)

    def lower(lowering, x, w, mix, taps, channels, filters):
        named = {"taps": taps, "channels": channels, "filters": filters, "lowering": lowering}
        return dynamic_conv(x, w, mix, **named, **keywords)

    def loss(args, function):
        y = function(*args)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=y.dtype).reshape(y.shape))), y

    functions = {"definition": define}
    functions |= {n: functools.partial(lower, n) for n in supported_lowerings(name)}

    args = (*random_arrays(name, dtype), channels, filters)
    if gradients:
        gradient = jax.grad(loss, has_aux=True)
        return jax.jit(lambda args: {n: gradient(args, f) for n, f in functions.items()})(args)
    # Values are compared with numpy, which need not be compiled.
    want = functions.pop("definition")(*args, dynamic_conv=numpy_oracle.convolve)
    results = jax.jit(lambda args: {n: f(*args) for n, f in functions.items()})(args)
    return {"definition": want, **results}


def assert_lowerings_agree(results, dtype, tolerance):
    """Asserts that all lowerings computed what the definition did."""
    want = results.pop("definition")
    assert results
    for lowering, got in results.items():
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert a.dtype == b.dtype == dtype
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * 10, err_msg=lowering)
