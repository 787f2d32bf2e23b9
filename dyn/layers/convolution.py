"""What every layer that stands in for `nn.Conv` shares: its fields, and what is done with them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dyn.layers.attention import global_average, he_normal_fan_out, per_candidate
from dyn.ops import dynamic_conv, planner
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.dynamic_conv import over_space
from dyn.ops.lowerings import in_turns, turns
from dyn.ops.window import Padding, Window, resolve

Array = jax.Array


class ConvLayer(nn.Module):
    """`nn.Conv`'s fields, with its names, order, defaults and meaning, and the steps around attention.

    A layer derives from it, adds its method's fields, and writes its `__call__` out of these steps.

    Attributes:
        features: number of output features.
        kernel_size: one number for each spatial axis; a bare number means one axis.
        strides: one number, or one for each spatial axis.
        padding: 'SAME', 'VALID', 'CAUSAL' (1-D), 'CIRCULAR', 'REFLECT', a number, or pairs.
        input_dilation: 1 + zeros between inputs.
        kernel_dilation: 1 + inputs between kernel positions.
        feature_group_count: number of groups of features.
        use_bias: whether a bias is added.
        mask: zeros and ones of the shape of one kernel, multiplied onto every candidate.
        dtype: dtype of the convolution; None for what inputs and parameters promote to.
        param_dtype: dtype of the parameters.
        precision: as in `jax.lax.conv_general_dilated`.
        kernel_init: initialises each candidate kernel by itself; the default is that of the papers'
            code, normal with variance 2 / fan_out, and not `nn.Conv`'s.
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

    def flat_inputs(self, inputs: Array) -> tuple[Array, tuple[int, ...]]:
        """One batch axis instead of any number: (`[B, *spatial, I]`, the axes it stands for)."""
        size = kernel_shape(self.kernel_size, inputs)
        return flatten_batch(inputs, len(size) + 1)

    def flat_context(self, context: Array | None, x: Array, batch: tuple[int, ...]) -> Array:
        """What attention looks at, `[B, D]`: the context given, or the mean of the input over space.

        Args:
            context: `[*batch, D]` or None.
            x: the flat inputs.
            batch: the batch axes that the inputs had.

        Raises:
            ValueError: if the context's batch axes are not the inputs'.
        """
        if context is None:
            return global_average(x, x.ndim - 2, float32_or_wider(x))
        if context.shape[:-1] != batch:
            raise ValueError(
                f"context must be [*batch, D] with the inputs' batch axes {batch}; got shape "
                f"{context.shape}. The attention of {type(self).__name__} is one for the whole input: "
                "for attention that differs from place to place take a pixel-wise layer."
            )
        return flatten_batch(context, 1)[0]

    def candidate_kernels(self, x: Array, num_kernels: int) -> Array:
        """The parameter `kernel`, `[K, *k, I/G, O]`, masked.

        Raises:
            ValueError: if the groups do not divide the features, the mask is of another shape, or there is no
                candidate.
        """
        if num_kernels < 1:
            raise ValueError(f"num_kernels={num_kernels} must be 1 or more.")
        kernel = self.param(
            "kernel",
            per_candidate(self.kernel_init),
            (num_kernels, *self.one_kernel(x)),
            self.param_dtype,
        )
        return self.masked(kernel)

    def one_kernel(self, x: Array) -> tuple[int, ...]:
        """The shape of one kernel for the flat inputs, `(*k, I/G, O)`.

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
        return *self.kernel_dims(x), in_features // groups, self.features

    def masked(self, kernel: Array) -> Array:
        """Kernels `[..., *k, I/G, O]` times the mask, if there is one.

        Raises:
            ValueError: if the mask is of another shape than a kernel.
        """
        if self.mask is None:
            return kernel
        rank = 1 if isinstance(self.kernel_size, int) else len(self.kernel_size)
        one_kernel = kernel.shape[-rank - 2 :]
        if self.mask.shape != one_kernel:
            raise ValueError(
                f"mask must have the shape of one kernel, {one_kernel}; got {self.mask.shape}."
            )
        return kernel * self.mask.astype(kernel.dtype)

    def kernel_dims(self, x: Array) -> tuple[int, ...]:
        """The kernel size, one number for each spatial axis of the flat inputs."""
        return kernel_shape(self.kernel_size, x)

    def window(self, x: Array, groups: int) -> tuple[Array, Window]:
        """How the kernel slides over the flat inputs, and these, padded where zeros cannot say it."""
        return resolve(
            x,
            self.kernel_dims(x),
            self.strides,
            self.padding,
            self.input_dilation,
            self.kernel_dilation,
            groups,
        )

    def conv_dtype(self, x: Array) -> jnp.dtype:
        """The dtype that the convolution of `x` runs in."""
        if self.dtype is not None:
            return jnp.dtype(self.dtype)
        with jax.numpy_dtype_promotion("standard"):  # also where the caller has forbidden it
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
        """`dyn.ops.dynamic_conv` with the layer's strides, padding, dilation and groups."""
        return dynamic_conv(
            x,
            kernels,
            mix,
            taps=taps,
            channels=channels,
            filters=filters,
            strides=self.strides,
            padding=self.padding,
            input_dilation=self.input_dilation,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
            lowering=lowering,
            precision=self.precision,
        )

    def convolve_samples(
        self,
        x: Array,
        kernels: Callable[..., Array],
        weights: tuple[Array | None, ...],
        lowering: str = "auto",
    ) -> Array:
        """Convolves each sample with its own kernel, whatever it is made of.

        Args:
            x: `[B, *spatial, I]`.
            kernels: makes the kernels `[b, *k, I/G, O]` of any b samples from their `weights`.
            weights: `[B, ...]` or None each.
            lowering: 'samples' (kernels are made when they are needed, and again in backward), 'taps',
                'patches' or 'reference' (all are made first); see `dyn.ops.dynamic_conv`.

        Raises:
            ValueError: for a lowering that needs candidates to mix.
        """
        possible = ("taps", "patches", "samples", "reference")
        if lowering not in ("auto", *possible):
            raise ValueError(
                f"lowering={lowering!r} cannot do this: {type(self).__name__} has a kernel for each sample "
                f"and no candidates to mix; write 'auto' or one of {list(possible)}."
            )
        kernel = self.one_kernel(x)
        if isinstance(x.shape[0], int) and x.shape[0] == 0:
            # There are no kernels to make; any other one gives the shape.
            return self.convolve(x, jnp.zeros((1, *kernel), x.dtype))
        if lowering == "auto":
            lowering = self._plan_samples(x, possible)
        if lowering == "samples":
            _, window = self.window(x, self.feature_group_count)
            return in_turns(
                lambda x, *weights: self.convolve_samples(x, kernels, weights, "patches"),
                (x, *weights),
                turns(x.shape, kernel, window, x.dtype.itemsize),
            )
        each = jax.vmap(lambda x, w: self.convolve(x[None], w[None], lowering=lowering)[0])
        return each(x, kernels(*weights))

    def _plan_samples(self, x: Array, possible: Sequence[str]) -> str:
        """The cheapest of some lowerings for a kernel of each sample's own."""
        kernel = self.one_kernel(x)
        x, window = self.window(x, self.feature_group_count)
        plan = planner.plan(
            x.shape,
            (1, *kernel),
            window,
            pixelwise=False,
            mixed=False,
            tap_attention=True,
            itemsize=x.dtype.itemsize,
        )
        return next(e.lowering for e in plan.estimates if e.lowering in possible)

    def add_bias(self, y: Array) -> Array:
        """Adds the parameter `bias`, `(O,)`, if there is to be one."""
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        return y + bias.astype(y.dtype)

    def add_mixed_bias(self, y: Array, num_kernels: int, mix: Array | None) -> Array:
        """Adds the parameter `bias`, `(K, O)`, mixed like the kernels, if there is to be one."""
        if not self.use_bias:
            return y
        shape = (num_kernels, self.features)
        bias = self.param("bias", per_candidate(self.bias_init), shape, self.param_dtype)
        if mix is None:
            return y + bias[0].astype(y.dtype)
        # As exact as the mixture of kernels, also where matrix products are rounded by default.
        mixed = jnp.matmul(mix, bias.astype(mix.dtype), precision=lax.Precision.HIGHEST)
        return y + over_space(mixed, y)


def kernel_shape(kernel_size: int | Sequence[int], inputs: Array) -> tuple[int, ...]:
    """The kernel size as a tuple, one number for each spatial axis.

    Args:
        kernel_size: as in `nn.Conv`, where a bare number means one spatial axis.
        inputs: the layer's input, `[*batch, *spatial, I]`.

    Raises:
        ValueError: where `nn.Conv` would quietly convolve one axis of a picture, or where the input has
            too few axes.
    """
    if isinstance(kernel_size, int):
        if inputs.ndim > 3:
            pictures = ", ".join([str(kernel_size)] * (inputs.ndim - 2))
            raise ValueError(
                f"kernel_size={kernel_size} means one spatial axis, but the input has shape "
                f"{inputs.shape}: write kernel_size=({pictures}), or kernel_size=({kernel_size},) "
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
    """Makes one batch axis of any number of them: (`[B, ...]`, the axes it stands for)."""
    batch = x.shape[: x.ndim - trailing]
    return x.reshape(math.prod(batch), *x.shape[x.ndim - trailing :]), batch
