"""The static part of a convolution: its geometry, and the problem that a lowering is chosen for.

Axis letters, here and in `lowerings`: B batch, P output positions, T taps, K candidate kernels, I and O
input and output features, G groups; i and o are features within a group.
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Padding = str | int | Sequence[int | tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Geometry of a convolution in plain numbers; hashable, to be a static argument of `jax.jit`.

    Attributes:
        spatial: spatial shape of the input, after `pad_edges`.
        size: kernel size along each spatial axis.
        strides: step along each spatial axis.
        padding: zeros to add `(before, after)` each spatial axis, after `input_dilation`.
        input_dilation: 1 + zeros between neighbouring inputs.
        kernel_dilation: 1 + inputs between neighbouring taps.
        groups: number of groups that the features are cut into.
        extension: inputs to repeat `(before, after)` each spatial axis, by `mode`.
        mode: 'wrap' or 'reflect', as in `jax.numpy.pad`; None if nothing is repeated.
    """

    spatial: tuple[int, ...]
    size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    groups: int = 1
    extension: tuple[tuple[int, int], ...] = ()
    mode: str | None = None

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.size)

    @property
    def taps(self) -> int:
        """Number of kernel positions, T."""
        return math.prod(self.size)

    @functools.cached_property
    def out(self) -> tuple[int, ...]:
        """Spatial shape of the output."""
        reach = _reach(self.size, self.kernel_dilation)
        return tuple(
            max(0, (before + (n - 1) * dilation + 1 + after - r) // stride + 1)
            for n, dilation, (before, after), stride, r in zip(
                self.spatial, self.input_dilation, self.padding, self.strides, reach, strict=True
            )
        )

    @property
    def positions(self) -> int:
        """Number of output positions, P."""
        return math.prod(self.out)

    def transpose(self) -> "Geometry":
        """Returns that of the gradient of the inputs: the outputs' convolved with the reversed kernel."""
        padding = []
        for n, m, reach, (before, _), stride, dilation in zip(
            self.spatial,
            self.out,
            _reach(self.size, self.kernel_dilation),
            self.padding,
            self.strides,
            self.input_dilation,
            strict=True,
        ):
            first = reach - 1 - before  # negative where the padding is wider than the kernel
            padding.append((first, (n - 1) * dilation + reach - 1 - first - (m - 1) * stride))
        return dataclasses.replace(
            self,
            spatial=self.out,
            strides=self.input_dilation,
            padding=tuple(padding),
            input_dilation=self.strides,
            extension=(),
            mode=None,
        )

    def pad_edges(self, inputs: Array) -> Array:
        """Repeats inputs at the edges for the paddings that are not zeros ('CIRCULAR', 'REFLECT')."""
        if self.mode is None:
            return inputs
        return jnp.pad(inputs, [(0, 0), *self.extension, (0, 0)], mode=self.mode)

    def convolve(self, inputs: Array, kernel: Array, precision: lax.PrecisionLike) -> Array:
        """Computes one ordinary convolution: inputs `[B, *spatial, I]`, kernel `[*k, I/G, O]`."""
        # Channels are last in inputs, kernel and outputs alike.
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

    def shift_inputs(self, inputs: Array, fill: float = 0.0) -> list[Array]:
        """Returns the inputs of each tap: T arrays `[B, *out, I]`, taps in C order; `fill` beyond the edges.

        They are slices of the padded input. The gradient of `lax.conv_general_dilated_patches` would be a
        grouped convolution, which is slow and gathers a sharded batch.
        """
        if 0 in self.out:
            empty = jnp.zeros((inputs.shape[0], *self.out, inputs.shape[-1]), inputs.dtype)
            return [empty] * self.taps
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
                for a, n, stride in zip(start, self.out, self.strides, strict=True)
            )
            shifted.append(padded[(slice(None), *slices)])
        return shifted

    def extract_patches(self, inputs: Array) -> Array:
        """Returns the inputs of each output position: `[B, P, T, I]`."""
        batch, features = inputs.shape[0], inputs.shape[-1]
        stacked = jnp.stack(self.shift_inputs(inputs), axis=-2)
        positions = math.prod(stacked.shape[1:-2])
        return stacked.reshape(batch, positions, self.taps, features)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One dynamic convolution without its numbers: all that the choice of a lowering depends on.

    Attributes:
        batch: number of samples; it may be symbolic.
        kernels: shape of the candidates, `(K, *k, I/G, O)`.
        geometry: strides, padding, dilation and groups.
        mixed: whether there is a mixture at all (K > 1, or a weight for the only kernel).
        pixelwise: whether the mixture differs between output positions.
        tap_attention: whether kernel positions are weighted per sample.
        per_sample: whether each sample has a kernel that is no mixture; K is 1 then.
        itemsize: bytes of a number.
        batch_shards: number of parts into which a mesh divides the batch; None if that is unknown.
    """

    batch: int
    kernels: tuple[int, ...]
    geometry: Geometry
    mixed: bool = False
    pixelwise: bool = False
    tap_attention: bool = False
    per_sample: bool = False
    itemsize: int = 4
    batch_shards: int | None = 1

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of the inputs, `(B, *spatial, I)`."""
        features = self.kernels[-2] * self.geometry.groups
        return self.batch, *self.geometry.spatial, features


def resolve_geometry(
    spatial: Sequence[int],
    size: Sequence[int],
    strides: int | Sequence[int] | None = 1,
    padding: Padding = "SAME",
    input_dilation: int | Sequence[int] | None = 1,
    kernel_dilation: int | Sequence[int] | None = 1,
    groups: int = 1,
) -> Geometry:
    """Turns `nn.Conv`'s ways to describe a convolution into plain numbers.

    Args:
        spatial: spatial shape of the input.
        size: kernel size along each spatial axis.
        strides, input_dilation, kernel_dilation: one number for all axes, or one for each; None is 1.
        padding: any padding of `nn.Conv`.
        groups: `feature_group_count`.

    Raises:
        ValueError: if lengths do not match the number of spatial axes, or the padding is unknown.
    """
    spatial, size = tuple(spatial), tuple(size)
    rank = len(size)
    if rank not in (1, 2, 3) or len(spatial) != rank:
        raise ValueError(
            "inputs [B, *spatial, I] and kernels [K, *k, I/G, O] must have the same number of spatial axes, "
            f"1 to 3; got {spatial} and {size}."
        )
    if min(size) < 1 or groups < 1:
        raise ValueError(
            f"kernel size and feature_group_count must be positive; got {size} and {groups}."
        )
    strides = per_axis("strides", strides, rank)
    input_dilation = per_axis("input_dilation", input_dilation, rank)
    kernel_dilation = per_axis("kernel_dilation", kernel_dilation, rank)
    reach = _reach(size, kernel_dilation)
    pairs, extension, mode = _resolve_padding(padding, spatial, reach, strides, input_dilation)
    for n, dilation, pair in zip(spatial, input_dilation, pairs, strict=True):
        # Symbolic sizes cannot be compared; skip the check.
        if isinstance(n, int) and 0 < n < -sum(pair) - (n - 1) * (dilation - 1):
            raise ValueError(
                f"padding={padding!r} crops more than the spatial axes {spatial} hold."
            )
    if mode is not None:
        spatial = tuple(
            n + before + after for n, (before, after) in zip(spatial, extension, strict=True)
        )
    pairs = tuple((int(before), int(after)) for before, after in pairs)
    return Geometry(
        spatial, size, strides, pairs, input_dilation, kernel_dilation, groups, extension, mode
    )


def check_floating(**arrays: Array | jax.ShapeDtypeStruct | None) -> None:
    """Checks that arrays are floating point, each under the name that it has in the message.

    Raises:
        ValueError: for the first that is not; None is left out.
    """
    for name, array in arrays.items():
        if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating point; got {array.dtype}.")


def add_height(geometry: Geometry) -> Geometry:
    """Returns a geometry with two spatial axes, of which the first is one for a sequence."""
    if geometry.rank == 2:
        return geometry
    return Geometry(
        (1, *geometry.spatial),
        (1, *geometry.size),
        (1, *geometry.strides),
        ((0, 0), *geometry.padding),
        (1, *geometry.input_dilation),
        (1, *geometry.kernel_dilation),
    )


def _reach(size: Sequence[int], kernel_dilation: Sequence[int]) -> tuple[int, ...]:
    """Returns the number of inputs that a kernel spans along each axis."""
    return tuple((k - 1) * d + 1 for k, d in zip(size, kernel_dilation, strict=True))


def _resolve_padding(
    padding: Padding,
    spatial: tuple[int, ...],
    reach: tuple[int, ...],
    strides: tuple[int, ...],
    input_dilation: tuple[int, ...],
) -> tuple[Sequence[tuple[int, int]], tuple[tuple[int, int], ...], str | None]:
    """Returns `(padding, extension, mode)` of a `Geometry`."""
    rank = len(reach)
    if not isinstance(padding, str):
        return _padding_pairs(padding, rank), (), None
    name = padding.upper()
    if max(input_dilation) > 1 and name != "VALID":
        raise ValueError(
            f"padding={padding!r} is ambiguous for a dilated input: give a pair of numbers for each "
            "spatial axis."
        )
    zeros = [(0, 0)] * rank
    match name:
        case "VALID":
            return zeros, (), None
        case "SAME" | "SAME_LOWER":
            return lax.padtype_to_pads(spatial, reach, strides, name), (), None
        case "CAUSAL":
            if rank != 1:
                raise ValueError(
                    f"padding='CAUSAL' is for 1-D convolutions; this kernel has {rank} spatial axes. "
                    "Give pairs such as [(2, 0), (1, 1)]."
                )
            return [(reach[0] - 1, 0)], (), None
        case "CIRCULAR" | "REFLECT":
            extension = tuple(((r - 1) // 2, r // 2) for r in reach)
            return zeros, extension, "wrap" if name == "CIRCULAR" else "reflect"
    raise ValueError(
        f"padding={padding!r} is unknown: write 'SAME', 'SAME_LOWER', 'VALID', 'CAUSAL', 'CIRCULAR', "
        "'REFLECT', a number, or a pair for each spatial axis."
    )


def _padding_pairs(padding: Any, rank: int) -> list[tuple[int, int]]:
    """Returns a pair of numbers for each axis."""
    numbers = _whole_numbers(padding, rank)
    if numbers is not None:
        return [(number, number) for number in numbers]
    try:
        pairs: list[Any] = [_whole_numbers(pair, 2) for pair in padding]
    except TypeError:  # not even a sequence
        pairs = [None] * rank
    if len(pairs) != rank:
        raise ValueError(f"padding={padding!r} has {len(pairs)} entries for {rank} spatial axes.")
    if None in pairs:
        raise ValueError(
            f"padding={padding!r} must be a name such as 'SAME', a whole number, or a number or a pair of "
            f"them for each of {rank} spatial axes."
        )
    return pairs


def _whole_numbers(value: Any, length: int) -> tuple[int, ...] | None:
    """Returns `length` whole numbers, from one for all or a sequence; None if the value is neither."""
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
    """Returns one positive number for each axis, from one for all, one for each, or None (1)."""
    values = _whole_numbers(1 if value is None else value, rank)
    if values is None or min(values) < 1:
        raise ValueError(
            f"{name}={value!r} must be a positive number, or {rank} of them for {rank} spatial axes."
        )
    return values
