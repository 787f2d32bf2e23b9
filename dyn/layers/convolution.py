"""The base of every layer that stands in for `nn.Conv`: its fields, and the steps around attention."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from dyn.layers.attention import (
    global_average,
    he_normal_fan_out,
    per_candidate,
    squeezed_size,
)
from dyn.layers.fields import CheckedModule
from dyn.ops import planner
from dyn.ops.dtypes import broadcast_weights, count_kernel_bytes, float32_or_wider
from dyn.ops.dynamic_conv import convolve_with_geometry, expand_over_space
from dyn.ops.geometry import Geometry, Padding, Problem, resolve_geometry
from dyn.ops.lowerings import (
    convolve_by_sample_kernels,
    map_chunks,
    map_with_kernels,
    num_chunks,
)
from dyn.ops.sharding import (
    automate_sharding,
    count_batch_shards,
    find_batch_shards,
    map_shards,
    mesh_axes,
)

Array = jax.Array

# The lowerings for per-sample kernels that are no mixture of candidates.
SAMPLE_LOWERINGS = ("taps", "patches", "samples", "reference", "fused")


class HasAttention(Protocol):
    """The fields of a layer whose attention squeezes its context.

    Attributes:
        min_squeeze: lower bound on the size of the squeezed vector.
        attention_norm: 'batch', 'layer' or 'none'.
        use_running_average: for 'batch': None uses batch statistics exactly when the collection
            `batch_stats` is mutable.
        param_dtype: dtype of the parameters.
    """

    min_squeeze: int
    attention_norm: str
    use_running_average: bool | None
    param_dtype: Any

    @property
    def reduction(self) -> float | None:
        """Size of the squeezed vector, as a share of the context's; None if the context is not squeezed."""


class ConvLayer(CheckedModule):
    """`nn.Conv`'s fields, with its names, order, defaults and meaning, and the steps around attention.

    A layer derives from it, adds the fields of its method, and writes its `__call__` out of these steps.

    Attributes:
        features: number of output features.
        kernel_size: one number for each spatial axis; a bare number means one axis.
        strides: one number, or one for each spatial axis.
        padding: 'SAME', 'VALID', 'CAUSAL' (1-D), 'CIRCULAR', 'REFLECT', a number, or pairs.
        input_dilation: 1 + zeros between inputs.
        kernel_dilation: 1 + inputs between kernel positions.
        feature_group_count: number of groups of features.
        use_bias: whether to add a bias.
        mask: zeros and ones of the shape of one kernel, multiplied onto every candidate.
        dtype: dtype of the convolution; None for what inputs and parameters promote to.
        param_dtype: dtype of the parameters.
        precision: as in `jax.lax.conv_general_dilated`.
        kernel_init: initialises each candidate kernel separately; the default is not `nn.Conv`'s but that
            of the papers' code, normal with variance 2 / fan_out.
        bias_init: initialises the bias.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None = 1
    padding: Padding = "SAME"
    input_dilation: int | Sequence[int] | None = 1
    kernel_dilation: int | Sequence[int] | None = 1
    feature_group_count: int = 1
    use_bias: bool = True
    mask: Array | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    kernel_init: nn.initializers.Initializer = he_normal_fan_out
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()

    def flatten_inputs(self, inputs: Array) -> tuple[Array, tuple[int, ...]]:
        """Merges all batch axes into one: returns `[B, *spatial, I]` and the shape of the merged axes."""
        size = resolve_kernel_size(self.kernel_size, inputs)
        return flatten_batch(inputs, len(size) + 1)

    def flatten_context(self, context: Array | None, x: Array, batch: tuple[int, ...]) -> Array:
        """Returns the context of attention, `[B, D]`: the one passed, or the mean of the input over space.

        Args:
            context: `[*batch, D]` or None.
            x: the flat inputs.
            batch: shape of the batch axes that the inputs had.

        Raises:
            ValueError: if the context has other batch axes than the inputs.
        """
        advice = (
            f"{type(self).__name__} has one attention for the whole input: for attention that differs "
            "between positions use a pixel-wise layer."
        )
        return resolve_context(context, x, batch, float32_or_wider(x), advice)

    def flatten_local_context(
        self, context: Array | None, x: Array, batch: tuple[int, ...]
    ) -> Array:
        """Returns a context that may differ between positions: `[B, *grid, D]`, or `[B, D]`.

        Args:
            context: `[*batch, *grid, D]`, `[*batch, D]` or None for the inputs.
            x: the flat inputs.
            batch: shape of the batch axes that the inputs had.

        Raises:
            ValueError: if the context has other batch axes than the inputs, or another number of axes.
        """
        if context is None:
            return x
        check_context(context)
        if context.shape[:-1] == batch:
            return flatten_batch(context, 1)[0]
        rank = x.ndim - 2
        if context.ndim != len(batch) + rank + 1 or context.shape[: len(batch)] != batch:
            raise ValueError(
                f"context must be [*batch, D] or [*batch, *spatial, D] with the inputs' batch axes "
                f"{batch} and {rank} spatial axes; got shape {context.shape}."
            )
        return flatten_batch(context, rank + 1)[0]

    @property
    def is_causal(self) -> bool:
        """Returns whether no output may depend on a later input."""
        return isinstance(self.padding, str) and self.padding.upper() == "CAUSAL"

    def attention_fields(self: HasAttention, context_size: int, dtype: jnp.dtype) -> dict[str, Any]:
        """Returns the fields that an `AttentionBranch` takes from its layer.

        Args:
            context_size: number of features of the context, of which `reduction` is a share.
            dtype: dtype of the attention.
        """
        return {
            "squeezed": squeezed_size(context_size, self.reduction or 0.0, self.min_squeeze),
            "norm": self.attention_norm,
            "use_running_average": self.use_running_average,
            "dtype": dtype,
            "param_dtype": self.param_dtype,
            "name": "attention",
        }

    def make_candidates(self, x: Array, num_kernels: int) -> Array:
        """Returns the parameter `kernel`, `[K, *k, I/G, O]`, masked.

        Raises:
            ValueError: if the groups do not divide the features, the mask has another shape, or K < 1.
        """
        if num_kernels < 1:
            raise ValueError(f"num_kernels={num_kernels} must be 1 or more.")
        kernel = self.param(
            "kernel",
            per_candidate(self.kernel_init),
            (num_kernels, *self.kernel_shape(x)),
            self.param_dtype,
        )
        return self.apply_mask(kernel)

    def kernel_shape(self, x: Array) -> tuple[int, ...]:
        """Returns the shape of one kernel for the flat inputs, `(*k, I/G, O)`.

        Raises:
            ValueError: if the groups do not divide the features.
        """
        groups, in_features = self.feature_group_count, x.shape[-1]
        if self.features < 1 or groups < 1:
            raise ValueError(
                f"features={self.features} and feature_group_count={groups} must be 1 or more."
            )
        if in_features % groups or self.features % groups:
            raise ValueError(
                f"feature_group_count={groups} must divide the {in_features} input features and the "
                f"{self.features} output features."
            )
        size = resolve_kernel_size(self.kernel_size, x)
        return *size, in_features // groups, self.features

    def apply_mask(self, kernel: Array) -> Array:
        """Multiplies kernels `[..., *k, I/G, O]` by the mask, if there is one.

        Raises:
            ValueError: if the mask has another shape than a kernel.
        """
        if self.mask is None:
            return kernel
        rank = 1 if isinstance(self.kernel_size, int) else len(self.kernel_size)
        shape = kernel.shape[-rank - 2 :]
        mask = jnp.asarray(self.mask)
        if mask.shape != shape:
            raise ValueError(f"mask must have the shape of one kernel, {shape}; got {mask.shape}.")
        return kernel * lax.broadcast_to_rank(mask.astype(kernel.dtype), kernel.ndim)

    def resolve_geometry(self, x: Array) -> Geometry:
        """Returns how the kernel slides over the flat inputs."""
        return resolve_geometry(
            x.shape[1:-1],
            resolve_kernel_size(self.kernel_size, x),
            self.strides,
            self.padding,
            self.input_dilation,
            self.kernel_dilation,
            self.feature_group_count,
        )

    def conv_dtype(self, x: Array) -> jnp.dtype:
        """Returns the dtype that the convolution of `x` runs in."""
        if self.dtype is not None:
            return jnp.dtype(self.dtype)
        with jax.numpy_dtype_promotion("standard"):  # also if the caller has forbidden it
            return jnp.promote_types(x.dtype, self.param_dtype)

    def convolve(
        self,
        x: Array,
        kernels: Array,
        mix: Array | None = None,
        *,
        taps: Array | None = None,
        channels: Array | None = None,
        filters: Array | None = None,
        lowering: str = "auto",
    ) -> Array:
        """Computes `dyn.ops.dynamic_conv` with the layer's strides, padding, dilation and groups."""
        weights = (mix, taps, channels, filters)
        geometry = self.resolve_geometry(x)
        return convolve_with_geometry(x, kernels, *weights, geometry, lowering, self.precision)

    def convolve_samples(
        self,
        x: Array,
        make_kernels: Callable[..., Array],
        weights: tuple[Array | None, ...],
        shared: tuple[Array | None, ...] = (),
        lowering: str = "auto",
    ) -> Array:
        """Convolves each sample with its own kernel, which need not be a mixture of candidates.

        Args:
            x: `[B, *spatial, I]`.
            make_kernels: makes the kernels `[b, *k, I/G, O]` of any b samples as
                `make_kernels(*weights, *shared)`; it must not read arrays from elsewhere.
            weights: `[B, ...]` or None each.
            shared: arrays, or None, that all samples share.
            lowering: 'samples' or 'fused' (kernels are made when they are needed, and again in the backward
                pass), 'taps', 'patches' or 'reference' (all are made first); see `dyn.ops.dynamic_conv`.

        Raises:
            ValueError: for a lowering that needs candidates to mix, or cannot do this.
        """
        if lowering not in ("auto", *SAMPLE_LOWERINGS):
            raise ValueError(
                f"lowering={lowering!r} cannot do this: {type(self).__name__} has a kernel for each sample "
                f"and no candidates to mix; write 'auto' or one of {list(SAMPLE_LOWERINGS)}."
            )
        kernel = self.kernel_shape(x)
        if isinstance(x.shape[0], int) and x.shape[0] == 0:
            # There are no kernels to make; any kernel gives the shape of the output.
            return self.convolve(x, jnp.zeros((1, *kernel), x.dtype))
        geometry, itemsize = self.resolve_geometry(x), x.dtype.itemsize
        lowering = self.choose_sample_lowering(x, lowering)

        def convolve(x: Array, weights: tuple, shared: tuple, lowering: str) -> Array:
            def convolve_one(x: Array, w: Array) -> Array:
                return self.convolve(x[None], w[None], lowering=lowering)[0]

            return jax.vmap(convolve_one)(x, make_kernels(*weights, *shared))

        def convolve_chunks(x: Array, weights: tuple, shared: tuple) -> Array:
            return map_chunks(
                lambda x, *weights: convolve(x, weights, shared, "patches"),
                (x, *weights),
                num_chunks(x.shape[0], kernel, geometry, itemsize),
            )

        def convolve_fused(x: Array, weights: tuple, shared: tuple) -> Array:
            def convolve_some(x: Array, *weights: Array | None) -> Array:
                kernels = make_kernels(*weights, *shared)
                return convolve_by_sample_kernels(x, kernels, geometry, self.precision)

            return map_with_kernels(convolve_some, (x, *weights), kernel)

        shards = find_batch_shards(x) if lowering == "fused" else None
        if shards is not None and x.shape[0] % shards.number == 0:
            number, batch = 1 + len(weights), PartitionSpec(shards.axes or None)
            return map_shards(
                lambda x, *others: convolve_fused(x, others[: number - 1], others[number - 1 :]),
                (x, *weights, *shared),
                [batch] * number + [PartitionSpec()] * len(shared),
                batch,
                shards.mesh,
            )
        functions = {"samples": convolve_chunks, "fused": convolve_fused}
        return automate_sharding(
            functions.get(lowering, partial(convolve, lowering=lowering)),
            *(x, weights, shared),
            axes=mesh_axes(x)[:-1],
        )

    def choose_sample_lowering(self, x: Array, lowering: str) -> str:
        """Returns the lowering for a kernel per sample, one of `SAMPLE_LOWERINGS`; 'auto' asks the planner.

        Raises:
            ValueError: for 'fused' where its kernel cannot do this.
        """
        # To the planner, per-sample kernels are one candidate weighted by tap attention.
        problem = Problem(
            x.shape[0],
            (1, *self.kernel_shape(x)),
            self.resolve_geometry(x),
            tap_attention=True,
            per_sample=True,
            itemsize=count_kernel_bytes(x.dtype),
            batch_shards=count_batch_shards(x),
        )
        if lowering == "auto":
            return planner.plan(problem).choice
        if lowering == "fused" and (why := planner.why_impossible(lowering, problem)):
            raise ValueError(f"lowering={lowering!r} cannot do this: {why}.")
        return lowering

    def add_bias(self, y: Array) -> Array:
        """Adds the parameter `bias`, `(O,)`, if `use_bias`."""
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        return y + broadcast_weights(lax.broadcast_to_rank(bias, y.ndim), y)

    def add_mixed_bias(self, y: Array, num_kernels: int, mix: Array | None) -> Array:
        """Adds the parameter `bias`, `(K, O)`, mixed like the kernels, if `use_bias`.

        Args:
            y: `[B, *out, O]`.
            num_kernels: K.
            mix: `[B, K]`, or `[B, ..., K]` with an axis for each of `y`, of its size or one; None for the
                only bias.
        """
        if not self.use_bias:
            return y
        shape = (num_kernels, self.features)
        bias = self.param("bias", per_candidate(self.bias_init), shape, self.param_dtype)
        if mix is None:
            return y + broadcast_weights(lax.broadcast_to_rank(bias[0], y.ndim), y)
        # As exact as the mixture of kernels, even if matrix products are rounded by default.
        mixed = jnp.matmul(mix, bias.astype(mix.dtype), precision=lax.Precision.HIGHEST)
        return y + (expand_over_space if mix.ndim == 2 else broadcast_weights)(mixed, y)


def resolve_context(
    context: Array | None, x: Array, batch: tuple[int, ...], dtype: jnp.dtype, advice: str = ""
) -> Array:
    """Returns the context of attention, `[B, D]`: the one passed, or the mean over the input's positions.

    Args:
        context: `[*batch, D]` or None.
        x: the flat inputs, `[B, *positions, C]`.
        batch: shape of the batch axes that the inputs had.
        dtype: dtype of the mean.
        advice: a sentence for the error message.

    Raises:
        ValueError: if the context has other batch axes than the inputs.
    """
    if context is None:
        return global_average(x, x.ndim - 2, dtype)
    check_context(context)
    if context.shape[:-1] != batch:
        refused = f"context must be [*batch, D] with the inputs' batch axes {batch}; got shape"
        raise ValueError(f"{refused} {context.shape}. {advice}".rstrip())
    return flatten_batch(context, 1)[0]


def check_context(context: Any) -> None:
    """Checks that a context is an array.

    Raises:
        ValueError: if it is not, for example the name of a network's kind of context.
    """
    if not hasattr(context, "shape"):
        raise ValueError(
            f"context={context!r} must be an array with the features that attention looks at, [*batch, D]; "
            "names such as 'block' are for the field context of the networks in dyn.models."
        )


def resolve_kernel_size(kernel_size: int | Sequence[int], inputs: Array) -> tuple[int, ...]:
    """Returns the kernel size as a tuple, one number for each spatial axis.

    Args:
        kernel_size: as in `nn.Conv`, where a bare number means one spatial axis.
        inputs: the layer's input, `[*batch, *spatial, I]`.

    Raises:
        ValueError: if `nn.Conv` would silently convolve one axis of a picture, or if the input has too
            few axes.
    """
    if isinstance(kernel_size, int):
        if inputs.ndim > 3:
            all_axes = ", ".join([str(kernel_size)] * (inputs.ndim - 2))
            raise ValueError(
                f"kernel_size={kernel_size} means one spatial axis, but the input has shape "
                f"{inputs.shape}: write kernel_size=({all_axes}), or kernel_size=({kernel_size},) "
                "for a 1-D convolution over its last spatial axis."
            )
        kernel_size = (kernel_size,)
    size = tuple(kernel_size)
    if not 1 <= len(size) <= 3 or inputs.ndim < len(size) + 1:
        raise ValueError(
            f"kernel_size={size} needs an input [*batch, *spatial, features] with {len(size)} spatial "
            f"axes (1, 2 or 3 are possible); got shape {inputs.shape}."
        )
    return size


def flatten_batch(x: Array, trailing: int) -> tuple[Array, tuple[int, ...]]:
    """Merges all batch axes into one: returns `[B, ...]` and the shape of the merged axes."""
    batch = x.shape[: x.ndim - trailing]
    return x.reshape(math.prod(batch), *x.shape[x.ndim - trailing :]), batch
