"""Deformable convolution: the input moves the positions of a kernel and weights them.

Dai, Qi, Xiong, Li, Zhang, Hu, Wei: Deformable Convolutional Networks. ICCV 2017.
https://arxiv.org/abs/1703.06211 (without weights: `modulated=False`)
Zhu, Hu, Lin, Dai: Deformable ConvNets v2: More Deformable, Better Results. CVPR 2019.
https://arxiv.org/abs/1811.11168

Deviations: any number of spatial axes, and all paddings of `nn.Conv`; offsets and weights are computed in
float32, whatever dtype the convolution has, because bfloat16 would round a distance of ten to a sixteenth.
"""

import flax.linen as nn
import jax

from dyn.layers.attention import attention_dtype
from dyn.layers.convolution import ConvLayer, check_context, flatten_batch
from dyn.layers.static_conv import Conv
from dyn.ops.deform_conv import deform_conv

Array = jax.Array


class DeformableConv(ConvLayer):
    """Convolves with kernel positions that are moved and weighted at each output position.

        y[p] = sum_t m[p, t] x(p + t + d[p, t]) W_t
        d = conv_d(c),    m = sigmoid(conv_m(c))

    where x between inputs is interpolated linearly, and zero beyond the edges; c is the context, the input
    by default. One convolution with the layer's own kernel size, strides, padding and dilation computes both
    (equation 1 of the second paper; the submodule `offsets_and_masks`, or `offsets` without weights).

    It starts with zeros, as in the papers' code: with no offsets and weights of one half, so that the layer
    is half of the static convolution with its kernel. `dyn.interop.warm_start` doubles the kernel of a
    trained static convolution, and the layer then starts as that convolution exactly.

    Attributes:
        features: number of output features; `nn.Conv`'s other fields follow, see `ConvLayer`.
        offset_groups: number of equal runs of input features that have offsets and weights of their own.
        modulated: whether kernel positions are weighted (the second paper) or only moved (the first).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import DeformableConv
        >>> layer = DeformableConv(features=16, kernel_size=(3, 3), strides=2)
        >>> x = jnp.ones((2, 8, 8, 3))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> y, state = layer.apply(variables, x, mutable=["intermediates"])
        >>> {k: w.shape for k, w in state["intermediates"]["weights"][0].items()}
        {'offset': (2, 4, 4, 1, 9, 2), 'tap': (2, 4, 4, 1, 9)}
    """

    offset_groups: int = 1
    modulated: bool = True

    @nn.compact
    def __call__(self, inputs: Array, context: Array | None = None) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, *spatial, I]`, any number of batch axes.
            context: what offsets and weights are computed from, `[*batch, *spatial, D]` on the input's grid;
                None for the inputs themselves.

        Returns:
            `[*batch, *out, features]`.

        Raises:
            ValueError: if the kernel, the context or the groups do not fit the inputs.
        """
        x, batch = self.flatten_inputs(inputs)
        kernel = self.param("kernel", self.kernel_init, self.kernel_shape(x), self.param_dtype)
        if self.offset_groups < 1 or x.shape[-1] % self.offset_groups:
            raise ValueError(
                f"offset_groups={self.offset_groups} must divide the {x.shape[-1]} input features."
            )
        offsets, mask = self.locate_taps(
            x if context is None else self.flat_context(context, x, batch)
        )
        dtype = self.conv_dtype(x)
        y = deform_conv(
            x.astype(dtype),
            self.apply_mask(kernel).astype(dtype),
            offsets,
            mask,
            strides=self.strides,
            padding=self.padding,
            input_dilation=self.input_dilation,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
            precision=self.precision,
        )
        y = self.add_bias(y)
        return y.reshape(*batch, *y.shape[1:])

    def locate_taps(self, context: Array) -> tuple[Array, Array | None]:
        """Returns offsets `[B, *out, Q, T, n]` and weights `[B, *out, Q, T]`, or None, and sows them."""
        geometry = self.resolve_geometry(context)
        pairs = self.offset_groups * geometry.taps
        dtype = attention_dtype(context, self.param_dtype)
        numbers = pairs * (geometry.rank + self.modulated)
        maps = Conv(
            numbers,
            self.kernel_size,
            self.strides,
            self.padding,
            self.input_dilation,
            self.kernel_dilation,
            kernel_init=nn.initializers.zeros_init(),
            dtype=dtype,
            param_dtype=self.param_dtype,
            name="offsets_and_masks" if self.modulated else "offsets",
        )(context.astype(dtype))
        shape = (*maps.shape[:-1], self.offset_groups, geometry.taps)
        offsets = maps[..., : pairs * geometry.rank].reshape(*shape, geometry.rank)
        sown, mask = {"offset": offsets}, None
        if self.modulated:
            mask = nn.sigmoid(maps[..., pairs * geometry.rank :]).reshape(shape)
            sown["tap"] = mask
        self.sow("intermediates", "weights", sown)
        return offsets, mask

    def flat_context(self, context: Array, x: Array, batch: tuple[int, ...]) -> Array:
        """Returns a context as `[B, *spatial, D]`.

        Raises:
            ValueError: if it is not on the input's grid.
        """
        check_context(context)
        spatial = x.shape[1:-1]
        if context.shape[:-1] != (*batch, *spatial):
            raise ValueError(
                f"context must be [*batch, *spatial, D] with the inputs' batch axes {batch} and their grid "
                f"{spatial}: offsets differ between positions; got shape {context.shape}."
            )
        return flatten_batch(context, len(spatial) + 1)[0]
