"""Decoupled dynamic filters: a kernel that is a product, or sum, of one per position and one per channel.

Zhou, Jampani, Pi, Liu, Yang: Decoupled Dynamic Filter Networks. CVPR 2021. https://arxiv.org/abs/2104.14107

Deviations from the authors' code: a pointwise convolution comes first if the number of features changes;
1-D and 3-D inputs, every padding of `nn.Conv`, sizes that the stride does not divide, an optional bias, and a
context from elsewhere. A filter of a single tap has no deviation: it is a gate, 2 sigmoid(tap). One of equal
taps becomes zero without a gradient, which would be huge. The squeezed vector has at least `min_squeeze`
numbers. The upsampling form, which fails in their code, is left out.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.layers.attention import AttentionBranch, attention_dtype, global_average, squeezed_size
from dyn.layers.pixel_conv import move_to_output_grid
from dyn.layers.position_conv import PositionConv, arrange_taps

Array = jax.Array


class DecoupledDynamicFilter(PositionConv):
    """Convolves each channel with a filter of its position times a filter of its channel (DDF).

        y[p, c] = sum_t x[read(p, t), c] S[p, t, h(c)] D[t, c]    (or S + D)
        S[p] = sqrt(2 / T) n(W_s x[p] + b_s),    D[c] = sigma[c] n((W_2 ReLU(W_1 mean(x) + b_1) + b_2)[c])

    where n subtracts the mean of the T taps of a filter and divides by their standard deviation, and sigma
    `[T, C]` is a parameter. Each input has filters of its own, at the cost of a depthwise convolution; the
    product of the two is never stored.

    It keeps the number of features; if `features` is another one, a pointwise convolution comes first (see
    `PositionConv`). It cannot be started from a static network by `dyn.interop.warm_start`: its filters do
    not mix channels. The authors put it in place of the 3x3 convolutions of bottlenecks, between pointwise
    ones.

    The context, if it is passed, takes the place of x in S and D; see `PixelDynamicConv` for its forms. With
    a vector S is the same everywhere.

    Attributes:
        features: number of output features; `nn.Conv`'s other fields follow, see `ConvLayer`.
        heads: number of filters S at each position; the first serves the first run of channels, and so on.
        combine: 'mul' for the product of the filters, 'add' for their sum.
        reduction: size of the squeezed vector, as a share of the context's.
        min_squeeze: lower bound on that size.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import DecoupledDynamicFilter
        >>> layer = DecoupledDynamicFilter(features=16, kernel_size=(3, 3), strides=2, padding=1)
        >>> x = jnp.ones((2, 8, 8, 16))
        >>> y, state = layer.init_with_output(jax.random.key(0), x)
        >>> y.shape
        (2, 4, 4, 16)
        >>> _, state = layer.apply(state, x, mutable=["intermediates"])
        >>> {k: w.shape for k, w in state["intermediates"]["attention"]["weights"][0].items()}
        {'position': (2, 4, 4, 3, 3, 1), 'channel': (2, 3, 3, 16)}
    """

    heads: int = 1
    combine: str = "mul"
    reduction: float = 1 / 5
    min_squeeze: int = 4

    @nn.compact
    def __call__(self, inputs: Array, context: Array | None = None) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, *spatial, I]`, any number of batch axes.
            context: what filters are made from, `[*batch, D]` or `[*batch, *spatial, D]`, where `spatial`
                is the input's or the output's; None for the inputs themselves.

        Returns:
            `[*batch, *out, features]`.

        Raises:
            ValueError: if the kernel, the context or the groups do not fit the inputs, for a mask, or if
                `heads` or `combine` is impossible.
        """
        if self.combine not in ("mul", "add"):
            raise ValueError(f"combine={self.combine!r} is unknown: write 'mul' or 'add'.")
        x, batch = self.flatten_inputs(inputs)
        geometry, dtype = self.resolve_geometry(x), attention_dtype(x, self.param_dtype)
        vector = context = self.flatten_local_context(context, x, batch)
        if context.ndim > 2:
            vector = global_average(context, geometry.rank, dtype)
            context = move_to_output_grid(context, x, geometry, self.is_causal)
        x = self.project_inputs(x)
        positions, channels = Filters(
            heads=self.count_groups("heads", self.heads, 1),
            features=self.features,
            size=geometry.size,
            squeezed=squeezed_size(vector.shape[-1], self.reduction, self.min_squeeze),
            norm="none",
            use_running_average=None,
            dtype=dtype,
            param_dtype=self.param_dtype,
            name="attention",
        )(context, vector)
        factors = {"scale" if self.combine == "mul" else "shift": channels}
        y = self.add_bias(self.convolve_positions(x, positions, **factors))
        return y.reshape(*batch, *y.shape[1:])


class Filters(AttentionBranch):
    """Makes the filters of positions, `[B, *out, *k, heads]`, and of channels, `[B, *k, C]`.

    Sows `weights`: `position` and `channel`, the filters.

    Attributes:
        heads: number of filters at each position.
        features: C.
        size: kernel size, k.
    """

    heads: int
    features: int
    size: tuple[int, ...]

    @nn.compact
    def __call__(self, context: Array, vector: Array) -> tuple[Array, Array]:
        """Computes the filters from a context, `[B, *out, D]` or `[B, D]`, and its mean, `[B, D]`."""
        taps, rank = math.prod(self.size), len(self.size)
        gain = math.sqrt(2 / taps)
        # Products at each position are not tiny, so that their precision is the default.
        at_positions = self.apply_head(
            "position", context.astype(self.dtype), self.heads * taps, precision=None
        )
        at_positions = arrange_taps(at_positions, self.heads, self.size)
        at_positions = gain * standardise(at_positions, tuple(range(-1 - rank, -1)))

        z = nn.relu(self.apply_head("squeeze", vector.astype(self.dtype), self.squeezed))
        of_channels = self.apply_head("channel", z, self.features * taps)
        of_channels = arrange_taps(of_channels, self.features, self.size)
        init = nn.initializers.normal(gain)
        std = self.param("std", init, (*self.size, self.features), self.param_dtype)
        of_channels = standardise(of_channels, tuple(range(-1 - rank, -1)))
        of_channels = of_channels * std.astype(self.dtype)[None]
        self.sow_weights(position=at_positions, channel=of_channels)
        return at_positions, of_channels


def standardise(filters: Array, axes: tuple[int, ...], epsilon: float = 1e-10) -> Array:
    """Returns (filters - mean) / (std + epsilon) over some axes, with the unbiased deviation.

    A filter of one tap becomes 2 sigmoid(tap): as a factor it must be bounded, because it multiplies what it
    was made from. One of equal taps becomes zero and has no gradient: that of its deviation is undefined, and
    divided by epsilon any other would be huge.
    """
    taps = math.prod(filters.shape[axis] for axis in axes)
    if taps == 1:
        return 2 * nn.sigmoid(filters)
    centred = filters - jnp.mean(filters, axes, keepdims=True)
    variance = jnp.sum(centred**2, axes, keepdims=True) / (taps - 1)
    varies = variance > 0
    std = jnp.sqrt(jnp.where(varies, variance, jnp.ones_like(variance)))
    return jnp.where(varies, centred / (std + epsilon), jnp.zeros_like(centred))
