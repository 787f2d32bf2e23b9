"""How a kernel slides over its input: strides, padding, dilation and groups, resolved to plain numbers.

Axis letters, here and in `lowerings`: B batch, P output positions, T taps, K candidate kernels, I and O
input and output features, G groups; i and o are features within a group.
"""

import dataclasses
import itertools
import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Padding = str | int | Sequence[int | tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Window:
    """The static part of a convolution. Hashable, so that it can be a static argument of `jax.jit`.

    Attributes:
        size: kernel size along each spatial axis.
        strides: step along each spatial axis.
        padding: zeros to add `(before, after)` each spatial axis, after `input_dilation`.
        input_dilation: 1 + zeros between neighbouring inputs.
        kernel_dilation: 1 + inputs between neighbouring taps.
        groups: number of groups that the features are cut into.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    groups: int

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.size)

    @property
    def taps(self) -> int:
        """Number of kernel positions, T."""
        return math.prod(self.size)

    def output_shape(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """The spatial shape that comes out for a spatial shape that goes in."""
        return tuple(
            max(0, (before + (n - 1) * dilation + 1 + after - reach) // stride + 1)
            for n, dilation, (before, after), stride, reach in zip(
                spatial, self.input_dilation, self.padding, self.strides, self._reach, strict=True
            )
        )

    @property
    def _reach(self) -> tuple[int, ...]:
        """Inputs that a kernel spans along each axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.size, self.kernel_dilation, strict=True))

    def convolve(self, inputs: Array, kernel: Array, precision: lax.PrecisionLike) -> Array:
        """One ordinary convolution: inputs `[B, *spatial, I]`, kernel `[*k, I/G, O]`."""
        # Channels last for inputs, kernel and outputs alike.
        axes = "0123456789"[: self.rank]
        return lax.conv_general_dilated(
            inputs,
            kernel,
            self.strides,
            self.padding,
            lhs_dilation=self.input_dilation,
            rhs_dilation=self.kernel_dilation,
            dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
            feature_group_count=self.groups,
            precision=precision,
        )

    def shifts(self, inputs: Array, fill: float = 0.0) -> list[Array]:
        """What each tap sees: T arrays `[B, *out, I]`, taps in C order; `fill` beyond the edges.

        Slices of the padded input, and not `lax.conv_general_dilated_patches`: the gradient of that is a
        grouped convolution, which is slow and gathers a sharded batch.
        """
        out = self.output_shape(inputs.shape[1:-1])
        if 0 in out:
            return [jnp.zeros((inputs.shape[0], *out, inputs.shape[-1]), inputs.dtype)] * self.taps
        edges = [
            (before, after, dilation - 1)
            for (before, after), dilation in zip(self.padding, self.input_dilation, strict=True)
        ]
        padded = lax.pad(inputs, jnp.asarray(fill, inputs.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
        shifted = []
        for tap in itertools.product(*map(range, self.size)):
            start = [t * d for t, d in zip(tap, self.kernel_dilation, strict=True)]
            slices = tuple(
                slice(a, a + (n - 1) * stride + 1, stride)
                for a, n, stride in zip(start, out, self.strides, strict=True)
            )
            shifted.append(padded[(slice(None), *slices)])
        return shifted

    def patches(self, inputs: Array) -> Array:
        """What each output position sees: `[B, P, T, I]`."""
        batch, features = inputs.shape[0], inputs.shape[-1]
        stacked = jnp.stack(self.shifts(inputs), axis=-2)
        positions = math.prod(stacked.shape[1:-2])
        return stacked.reshape(batch, positions, self.taps, features)


def resolve(
    inputs: Array,
    size: Sequence[int],
    strides: int | Sequence[int] | None,
    padding: Padding,
    input_dilation: int | Sequence[int] | None,
    kernel_dilation: int | Sequence[int] | None,
    groups: int,
) -> tuple[Array, Window]:
    """Turns `nn.Conv`'s ways to describe a convolution into a `Window`.

    Args:
        inputs: `[B, *spatial, I]`.
        size: kernel size along each spatial axis.
        strides, input_dilation, kernel_dilation: one number for all axes, or one for each; None is 1.
        padding: any padding of `nn.Conv`.
        groups: `feature_group_count`.

    Returns:
        The inputs, padded where zeros cannot express the padding ('CIRCULAR', 'REFLECT'), and the window.

    Raises:
        ValueError: where a length does not match the number of spatial axes, or the padding is unknown.
    """
    size = tuple(size)
    rank = len(size)
    if min(size) < 1 or groups < 1:
        raise ValueError(
            f"a kernel of size {size} in {groups} groups (feature_group_count) is none: both are positive."
        )
    strides = per_axis("strides", strides, rank)
    input_dilation = per_axis("input_dilation", input_dilation, rank)
    kernel_dilation = per_axis("kernel_dilation", kernel_dilation, rank)
    reach = [(k - 1) * d + 1 for k, d in zip(size, kernel_dilation, strict=True)]
    spatial = inputs.shape[1:-1]

    if isinstance(padding, str):
        if max(input_dilation) > 1 and padding.upper() != "VALID":
            raise ValueError(
                f"padding={padding!r} says nothing certain about a dilated input: give a pair of "
                "numbers for each spatial axis."
            )
        match padding.upper():
            case "VALID":
                pairs = [(0, 0)] * rank
            case "SAME" | "SAME_LOWER":
                pairs = lax.padtype_to_pads(spatial, reach, strides, padding.upper())
            case "CAUSAL":
                if rank != 1:
                    raise ValueError(
                        "padding='CAUSAL' is for 1-D convolutions; this kernel has "
                        f"{rank} spatial axes. Give pairs such as [(2, 0), (1, 1)]."
                    )
                pairs = [(reach[0] - 1, 0)]
            case "CIRCULAR" | "REFLECT":
                pairs = [(0, 0)] * rank
                edges = [((r - 1) // 2, r // 2) for r in reach]
                inputs = jnp.pad(
                    inputs,
                    [(0, 0), *edges, (0, 0)],
                    mode="wrap" if padding.upper() == "CIRCULAR" else "reflect",
                )
            case _:
                raise ValueError(
                    f"padding={padding!r} is unknown: write 'SAME', 'SAME_LOWER', 'VALID', "
                    "'CAUSAL', 'CIRCULAR', 'REFLECT', a number, or a pair for each spatial axis."
                )
    else:
        pairs = _pairs(padding, rank)
    for n, dilation, pair in zip(spatial, input_dilation, pairs, strict=True):
        # Not of symbolic sizes: who knows.
        if isinstance(n, int) and 0 < n < -sum(pair) - (n - 1) * (dilation - 1):
            raise ValueError(
                f"padding={padding!r} crops more than there is of the spatial axes {tuple(spatial)}."
            )
    window = Window(
        size,
        strides,
        tuple((int(a), int(b)) for a, b in pairs),
        input_dilation,
        kernel_dilation,
        groups,
    )
    return inputs, window


def _pairs(padding: int | Sequence[int | tuple[int, int]], rank: int) -> list[tuple[int, int]]:
    """A pair of numbers for each axis."""
    each = _whole_numbers(padding, rank)
    if each is not None:
        return [(number, number) for number in each]
    try:
        pairs = [_whole_numbers(pair, 2) for pair in padding]
    except TypeError:  # it is not even a sequence
        pairs = [None] * rank
    if len(pairs) != rank:
        raise ValueError(f"padding={padding!r} has {len(pairs)} entries for {rank} spatial axes.")
    if None in pairs:
        raise ValueError(
            f"padding={padding!r} must be a name such as 'SAME', a whole number, or a number or a pair of "
            f"them for each of {rank} spatial axes."
        )
    return pairs


def _whole_numbers(value: object, length: int) -> tuple[int, ...] | None:
    """So many whole numbers, from one for all of them or a sequence; None if it is neither."""
    try:
        return (operator.index(value),) * length
    except TypeError:
        pass
    try:
        numbers = tuple(map(operator.index, value))
    except TypeError:
        return None
    return numbers if len(numbers) == length else None


def per_axis(name: str, value: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """One number for each of `rank` axes, from one for all of them, one for each, or None (1)."""
    values = _whole_numbers(1 if value is None else value, rank)
    if values is None or min(values) < 1:
        raise ValueError(
            f"{name}={value!r} must be a positive number, or {rank} of them for {rank} spatial axes."
        )
    return values
