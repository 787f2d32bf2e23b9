"""Deformable convolution in float64, position by position, without JAX."""

import itertools
import math

import numpy as np
import numpy_oracle


def interpolate(x, place):
    """Interpolates `[*spatial, C]` linearly at a place, with zeros beyond the edges."""
    value = np.zeros(x.shape[-1])
    low = np.floor(place).astype(int)
    for corner in itertools.product((0, 1), repeat=len(place)):
        index = low + corner
        if all(0 <= i < n for i, n in zip(index, x.shape[:-1], strict=True)):
            shares = [
                p - l if c else 1 - (p - l) for p, l, c in zip(place, low, corner, strict=True)
            ]
            value += math.prod(shares) * x[tuple(index)]
    return value


def deform_conv(
    inputs, kernel, offsets, mask=None, *, strides=1, padding="SAME", kernel_dilation=1, groups=1
):
    """Computes `dyn.ops.deform_conv` for paddings that add zeros."""
    rank = inputs.ndim - 2

    def per_axis(value):
        return (value,) * rank if isinstance(value, int | str) else tuple(value)

    axes = list(zip(*map(per_axis, (strides, padding, kernel_dilation)), strict=True))
    size, (batch, *out, runs, _, _) = kernel.shape[:-2], offsets.shape
    before = []
    for n, k, (stride, pad, dilation) in zip(inputs.shape[1:-1], size, axes, strict=True):
        reach = (k - 1) * dilation + 1
        pair = (pad, pad) if isinstance(pad, int) else pad
        before.append(
            numpy_oracle._edges(pad, n, reach, stride)[0] if isinstance(pad, str) else pair[0]
        )
    y = np.zeros((batch, *out, kernel.shape[-1]))
    for b, place, (t, tap) in itertools.product(
        range(batch), np.ndindex(*out), enumerate(np.ndindex(*size))
    ):
        start = [
            p * s - a + u * d for p, (s, _, d), a, u in zip(place, axes, before, tap, strict=True)
        ]
        parts = []
        for q, run in enumerate(np.split(inputs[b], runs, axis=-1)):
            weight = 1.0 if mask is None else mask[(b, *place, q, t)]
            parts.append(weight * interpolate(run, start + offsets[(b, *place, q, t)]))
        xs = np.split(np.concatenate(parts), groups)
        ws = np.split(kernel[tap], groups, axis=1)
        y[(b, *place)] += np.concatenate([v @ w for v, w in zip(xs, ws, strict=True)])
    return y
