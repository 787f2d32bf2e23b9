"""Dynamic convolutions in float64, position by position, without JAX."""

import math

import numpy as np


def _edges(name, n, reach, stride):
    """Returns the number of positions that a named padding adds before and after an axis."""
    match name.upper():
        case "VALID":
            return 0, 0
        case "CAUSAL":
            return reach - 1, 0
        case "CIRCULAR" | "REFLECT":
            return (reach - 1) // 2, reach // 2
    total = max(0, (math.ceil(n / stride) - 1) * stride + reach - n)
    less, more = total // 2, total - total // 2
    return (less, more) if name.upper() == "SAME" else (more, less)


def _source(name, position, n):
    """Returns the input at a position of the padded axis, counted from the first input; None for zero."""
    if 0 <= position < n:
        return position
    match name:
        case "CIRCULAR":
            return position % n
        case "REFLECT":
            return 0 if n == 1 else min(position % (2 * n - 2), -position % (2 * n - 2))
    return None


def axis_reads(n, size, *, stride, padding, input_dilation, kernel_dilation):
    """Returns for each output position and tap along one axis the input that is read; None is zero.

    Args:
        n: number of inputs along the axis.
        size: number of taps.
        padding: a name, a number, or a pair of numbers.
    """
    reach = (size - 1) * kernel_dilation + 1
    name = padding.upper() if isinstance(padding, str) else ""
    if name:
        before, after = _edges(name, n, reach, stride)
    else:
        before, after = (padding, padding) if isinstance(padding, int) else padding
    dilated = (n - 1) * input_dilation + 1
    rows = []
    for start in range(-before, dilated + after - reach + 1, stride):
        positions = [start + t * kernel_dilation for t in range(size)]
        if input_dilation > 1:
            rows.append(
                [
                    p // input_dilation if 0 <= p < dilated and p % input_dilation == 0 else None
                    for p in positions
                ]
            )
        else:
            rows.append([_source(name, p, n) for p in positions])
    return rows


def output_shape(spatial, size, axes):
    """Returns the spatial shape of the output; `axes` holds `axis_reads`' keywords for each axis."""
    return tuple(
        len(axis_reads(n, k, **axis)) for n, k, axis in zip(spatial, size, axes, strict=True)
    )


def dynamic_conv(inputs, kernels, mix, taps, axes, groups):
    """Sums x[b, read(p, t)] taps[b, t] sum_k mix[b, (p,) k] W_k[t] over taps t: `y[b, p]`."""
    inputs, kernels, mix, taps = (
        None if array is None else np.asarray(array, np.float64)
        for array in (inputs, kernels, mix, taps)
    )
    size, features = kernels.shape[1:-2], kernels.shape[-1]
    reads = [
        axis_reads(n, k, **axis) for n, k, axis in zip(inputs.shape[1:-1], size, axes, strict=True)
    ]
    out = tuple(map(len, reads))
    y = np.zeros((len(inputs), *out, features))
    for b in range(len(inputs)):
        for position in np.ndindex(*out):
            weights = np.ones(1)
            if mix is not None:
                weights = mix[b] if mix.ndim == 2 else mix[b][position]
            for tap in np.ndindex(*size):
                place = tuple(r[p][t] for r, p, t in zip(reads, position, tap, strict=True))
                if None in place:
                    continue
                kernel = np.tensordot(weights, kernels[(slice(None), *tap)], 1)  # [i, O]
                scale = 1.0 if taps is None else taps[b][tap]
                xs = np.split(inputs[(b, *place)], groups)
                ws = np.split(kernel, groups, axis=1)
                y[(b, *position)] += scale * np.concatenate(
                    [x @ w for x, w in zip(xs, ws, strict=True)]
                )
    return y


def convolve(
    inputs,
    kernels,
    mix=None,
    taps=None,
    *,
    strides=1,
    padding="SAME",
    input_dilation=1,
    kernel_dilation=1,
    feature_group_count=1,
):
    """Computes `dynamic_conv` from the arguments of `dyn.ops.dynamic_conv`."""
    rank = np.ndim(inputs) - 2

    def per_axis(value):
        return (value,) * rank if isinstance(value, int | str) else tuple(value)

    values = map(per_axis, (strides, padding, input_dilation, kernel_dilation))
    names = ("stride", "padding", "input_dilation", "kernel_dilation")
    axes = [dict(zip(names, axis, strict=True)) for axis in zip(*values, strict=True)]
    return dynamic_conv(inputs, kernels, mix, taps, axes, feature_group_count)
