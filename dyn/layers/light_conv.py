"""Lightweight and dynamic convolutions of sequences: softmax kernels that heads of channels share.

Wu, Fan, Baevski, Dauphin, Auli: Pay Less Attention with Lightweight and Dynamic Convolutions. ICLR 2019.
https://arxiv.org/abs/1901.10430

The authors call the second one dynamic convolution, too; `dyn.layers.DynamicConv` is Chen et al.'s. These are
the convolutions alone: a block of theirs is Dense(2 D), GLU, the convolution, Dense(C). Encoders pad the same
on both sides, decoders on the left ('CAUSAL').

Deviations from the authors' code: any rank, stride, dilation and padding of `nn.Conv`; a pointwise
convolution comes first if the number of features changes; positions beyond the end of a padded sequence are
to be zeroed by the caller. A kernel longer than the sequence reads zeros there, as in their band matrix for
short sequences; their form for long ones renormalises the rest.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.layers.attention import apply_head, attention_dtype
from dyn.layers.pixel_conv import move_to_output_grid
from dyn.layers.position_conv import PositionConv, arrange_taps
from dyn.ops.dynamic_conv import convolve_with_geometry
from dyn.ops.geometry import Geometry
from dyn.ops.sharding import automate_sharding, mesh_axes

Array = jax.Array

# torch's defaults for linear layers, which the authors' code leaves in place, and its Xavier.
_linear_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_xavier_uniform = nn.initializers.xavier_uniform()


class SoftmaxConv(PositionConv):
    """The base of both convolutions: heads, softmax over taps, and dropout of weights.

    Attributes:
        heads: number of kernels, each for a run of C / heads channels; None for 8, or the largest number
            below that divides the features.
        softmax: whether the weights of a kernel are the softmax of its numbers, or these themselves.
        weight_dropout: share of the weights that are dropped in training, after the softmax; the others are
            divided by 1 - weight_dropout.
        deterministic: whether no weights are dropped; None: exactly when the layer is applied without the
            rng `dropout`.
    """

    heads: int | None = None
    softmax: bool = True
    weight_dropout: float = 0.0
    deterministic: bool | None = None

    def count_heads(self) -> int:
        """Returns the number of heads.

        Raises:
            ValueError: if it does not divide the features.
        """
        return self.count_groups("heads", self.heads, 8)

    def drop_weights(self, kernels: Array) -> Array:
        """Drops weights in training.

        Raises:
            ValueError: if the share is not from 0 to below 1.
        """
        if not 0 <= self.weight_dropout < 1:
            raise ValueError(
                f"weight_dropout={self.weight_dropout} must be a share from 0 to below 1."
            )
        keep_all = self.deterministic
        if keep_all is None:
            keep_all = not self.has_rng("dropout")
        if keep_all or self.weight_dropout == 0:
            return kernels
        keep = 1 - self.weight_dropout
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, kernels.shape)

        def drop(kernels: Array, kept: Array) -> Array:
            return jnp.where(kept, kernels / keep, jnp.zeros_like(kernels))

        return automate_sharding(drop, kernels, kept, axes=mesh_axes(kernels))


class LightweightConv(SoftmaxConv):
    """Convolves each channel with the softmax kernel of its head, the same for all inputs.

        y[p, c] = sum_t softmax_t(W[t, h(c)]) x[read(p, t), c]

    The static convolution that `SequenceDynamicConv` is compared with. A layer with H heads has k H weights.

    Attributes:
        features: number of output features; `nn.Conv`'s other fields follow, see `ConvLayer`. The default
            of `kernel_init` is the paper's, Xavier's uniform one.
        heads, softmax, weight_dropout, deterministic: see `SoftmaxConv`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import LightweightConv
        >>> layer = LightweightConv(features=16, kernel_size=(7,), padding="CAUSAL", heads=4)
        >>> x = jnp.ones((2, 20, 16))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> layer.apply(variables, x).shape, variables["params"]["kernel"].shape
        ((2, 20, 16), (7, 1, 4))
    """

    kernel_init: nn.initializers.Initializer = _xavier_uniform

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, *spatial, I]`, any number of batch axes.

        Returns:
            `[*batch, *out, features]`.

        Raises:
            ValueError: if the kernel, the heads or the groups do not fit the inputs, or for a mask.
        """
        x, batch = self.flatten_inputs(inputs)
        geometry, heads = self.resolve_geometry(x), self.count_heads()
        x = self.project_inputs(x)
        shape = (*geometry.size, 1, heads)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        kernel = kernel.astype(attention_dtype(x, self.param_dtype))
        if self.softmax:
            kernel = nn.softmax(kernel, axis=tuple(range(geometry.rank)))
        kernel = jnp.repeat(self.drop_weights(kernel), self.features // heads, axis=-1)
        depthwise = dataclasses.replace(geometry, groups=self.features)
        y = convolve_with_geometry(
            x, kernel[None], None, None, None, None, depthwise, "auto", self.precision
        )
        y = self.add_bias(y)
        return y.reshape(*batch, *y.shape[1:])


class SequenceDynamicConv(SoftmaxConv):
    """Convolves each channel with a softmax kernel that its head has at each position.

        y[p, c] = sum_t softmax_t((V x[p])[t, h(c)]) x[read(p, t), c]

    The dynamic convolution of Wu et al., made for sequences: an alternative to self-attention whose cost
    grows linearly with their length. It is not Chen et al.'s mixture of kernels, `DynamicConv`.

    It keeps the number of features; if `features` is another one, a pointwise convolution comes first (see
    `PositionConv`). It cannot be started from a static network by `dyn.interop.warm_start`: its kernels do
    not mix channels.

    The context, if it is passed, takes the place of x in the kernels; see `PixelDynamicConv` for its forms.
    With a vector the same kernel is used everywhere.

    Attributes:
        features: number of output features; `nn.Conv`'s other fields follow, see `ConvLayer`.
        heads, softmax, weight_dropout, deterministic: see `SoftmaxConv`.
        logit_bias: whether the numbers V x have a bias; not in the paper.
        renorm_padding: whether the softmax is over the taps inside of the sequence only, so that their
            weights sum to one at its ends, too.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import SequenceDynamicConv
        >>> layer = SequenceDynamicConv(features=16, kernel_size=(7,), padding="CAUSAL", heads=4)
        >>> x = jnp.ones((2, 20, 16))
        >>> y, state = layer.init_with_output(jax.random.key(0), x)
        >>> y.shape
        (2, 20, 16)
        >>> _, state = layer.apply(state, x, mutable=["intermediates"])
        >>> state["intermediates"]["weights"][0]["position"].shape
        (2, 20, 7, 4)
    """

    logit_bias: bool = False
    renorm_padding: bool = False

    @nn.compact
    def __call__(self, inputs: Array, context: Array | None = None) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, *spatial, I]`, any number of batch axes.
            context: what kernels are made from, `[*batch, D]` or `[*batch, *spatial, D]`, where `spatial`
                is the input's or the output's; None for the inputs themselves.

        Returns:
            `[*batch, *out, features]`.

        Raises:
            ValueError: if the kernel, the context, the heads or the groups do not fit the inputs, or for a
                mask.
        """
        x, batch = self.flatten_inputs(inputs)
        geometry, heads, dtype = (
            self.resolve_geometry(x),
            self.count_heads(),
            attention_dtype(x, self.param_dtype),
        )
        context = self.flatten_local_context(context, x, batch)
        if context.ndim > 2:
            context = move_to_output_grid(context, x, geometry, self.is_causal)
        x = self.project_inputs(x)
        logits = apply_head(
            "attention",
            context.astype(dtype),
            heads * math.prod(geometry.size),
            kernel_init=_linear_init,
            use_bias=self.logit_bias,
            precision=None,  # products at each position are not tiny
            dtype=dtype,
            param_dtype=self.param_dtype,
        )
        kernels = self.normalise(arrange_taps(logits, heads, geometry.size), geometry)
        kernels = self.drop_weights(kernels)
        self.sow("intermediates", "weights", {"position": kernels})
        y = self.add_bias(self.convolve_positions(x, kernels))
        return y.reshape(*batch, *y.shape[1:])

    def normalise(self, kernels: Array, geometry: Geometry) -> Array:
        """Takes the softmax over taps of `[B, *out, *k, H]`, or of `[B, *k, H]` for all positions."""
        rank, everywhere = geometry.rank, kernels.ndim == geometry.rank + 2

        def normalise(kernels: Array) -> Array:
            if self.renorm_padding:
                if everywhere:
                    kernels = kernels.reshape(kernels.shape[0], *(1,) * rank, *kernels.shape[1:])
                # Finite, so that positions without any inside have a kernel, which reads zeros.
                low = jnp.full((), jnp.finfo(kernels.dtype).min / 2, kernels.dtype)
                kernels = jnp.where(find_inside(geometry), kernels, low)
            return nn.softmax(kernels, axis=tuple(range(-1 - rank, -1)))

        if not self.softmax:
            return kernels
        sharded = 1 if everywhere else 1 + rank
        return automate_sharding(normalise, kernels, axes=mesh_axes(kernels)[:sharded])


def find_inside(geometry: Geometry) -> Array:
    """Returns which taps of each position read inputs and not padding: `[1, *out, *k, 1]`."""
    ones = jnp.ones((1, *geometry.spatial, 1), bool)
    reads = geometry.shift_inputs(ones, fill=False)
    inside = jnp.stack(reads, axis=-2)
    return inside.reshape(1, *geometry.out, *geometry.size, 1)
