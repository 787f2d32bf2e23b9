"""Pixel-wise dynamic convolution: a separate mixture of kernels at each output position.

The local soft attention of Bhati and Sherawat, Comprehensive Study Dynamic CNN (Virginia Tech), whose
equation 1, W_dyn = sum A W, is evaluated at each position. The image-wise form of that equation is Chen
et al., Dynamic Convolution: Attention over Convolution Kernels. CVPR 2020. https://arxiv.org/abs/1912.03458

The study does not specify its kernel generator. The choices here: two 1x1 layers with a ReLU between them,
a softmax with temperature, and how a context is brought to the output's grid (`move_to_output_grid`).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn.layers.attention import MixtureAttention, global_average
from dyn.layers.convolution import ConvLayer
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.geometry import Geometry
from dyn.ops.sharding import automate_sharding, mesh_axes

Array = jax.Array


class PixelDynamicConv(ConvLayer):
    """Convolves with a mixture of kernels that differs between output positions.

        y[p] = conv(x, sum_k a[p, k] W_k)[p]
        a[p] = softmax((V ReLU(norm(U c[p])) + b) / T)

    at each output position p, where c[p] is the context there: a vector of features on the grid of the
    output. The outputs of the kernels are mixed, which is equivalent and needs no kernel per position: it
    costs K convolutions. On a TPU they are mixed before they are written (`dyn.ops.fused_pixels_tpu`).

    The context may be (D is any number of features):

    * None: the layer's own input, brought to the output's grid.
    * `[*batch, *spatial, D]` on the output's grid, used as it is, or on the input's grid, of which each
      output position takes the vector in the middle of its kernel's window (for 'CAUSAL' the last one), so
      that a strided layer equals the subsampled layer without strides.
    * `[*batch, D]`: one mixture for the whole input, at the cost of one convolution.

    `attention='image'` averages any context over space, which makes the layer image-wise.

    Attributes:
        features: number of output features; `nn.Conv`'s other fields follow, see `ConvLayer`.
        num_kernels: K, the number of candidate kernels.
        reduction: size of the squeezed vector, as a share of the context's.
        min_squeeze: lower bound on that size.
        attention: 'pixel' or 'image'.
        attention_norm: 'none', 'batch' (over positions and samples) or 'layer'.
        use_running_average: for 'batch': None uses batch statistics exactly when the collection
            `batch_stats` is mutable.
        lowering: see `dyn.ops.dynamic_conv`; pixel-wise mixtures need 'outputs', 'shared', 'fused' (on
            TPUs) or 'auto'.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers.pixel_conv import PixelDynamicConv
        >>> layer = PixelDynamicConv(features=16, kernel_size=(3, 3), strides=2, num_kernels=4)
        >>> x = jnp.ones((2, 8, 8, 3))
        >>> y, state = layer.init_with_output(jax.random.key(0), x)
        >>> y.shape
        (2, 4, 4, 16)
        >>> _, state = layer.apply(state, x, mutable=["intermediates"])
        >>> state["intermediates"]["attention"]["weights"][0]["pixel"].shape
        (2, 4, 4, 4)
    """

    num_kernels: int = 4
    reduction: float = 1 / 4
    min_squeeze: int = 16
    attention: str = "pixel"
    attention_norm: str = "none"
    use_running_average: bool | None = None
    lowering: str = "auto"

    @nn.compact
    def __call__(self, inputs: Array, context: Array | None = None) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, *spatial, I]`, any number of batch axes.
            context: what attention looks at, `[*batch, D]` or `[*batch, *spatial, D]`, where `spatial`
                is the input's or the output's; None for the inputs themselves.

        Returns:
            `[*batch, *out, features]`.

        Raises:
            ValueError: if the kernel, the context or the groups do not fit the inputs, or `attention`
                is unknown.
        """
        if self.attention not in ("pixel", "image"):
            raise ValueError(f"attention={self.attention!r} is unknown: write 'pixel' or 'image'.")
        x, batch = self.flatten_inputs(inputs)
        kernel = self.make_candidates(x, self.num_kernels)
        context = self.local_context(context, x, batch)
        fields = self.attention_fields(context.shape[-1], float32_or_wider(x, kernel))
        mix = MixtureAttention(num_kernels=self.num_kernels, **fields)(context)
        x = x.astype(self.conv_dtype(x))
        y = self.add_bias(self.convolve(x, kernel, mix, lowering=self.lowering))
        return y.reshape(*batch, *y.shape[1:])

    def local_context(self, context: Array | None, x: Array, batch: tuple[int, ...]) -> Array:
        """Returns the context of attention: `[B, *out, D]`, or `[B, D]` for one attention per input.

        Raises:
            ValueError: if the context is on neither grid, or has other batch axes than the inputs.
        """
        context = self.flatten_local_context(context, x, batch)
        if context.ndim == 2:
            return context
        if self.attention == "image":
            return global_average(context, x.ndim - 2, float32_or_wider(context))
        return move_to_output_grid(context, x, self.resolve_geometry(x), self.is_causal)


def move_to_output_grid(context: Array, x: Array, geometry: Geometry, causal: bool) -> Array:
    """Brings a context `[B, *spatial, D]` to the grid of a convolution's output: `[B, *out, D]`.

    A context on the output's grid stays as it is. From one on the input's grid, each output position takes
    the vector in the middle of its kernel's window, or the nearest one if that lies in the padding (zeros, if
    the input has no positions). Vectors are selected, not averaged: nothing outside the window has an
    influence (with 'CAUSAL': no later input), and a strided layer remains a subsampled one.

    Args:
        context: `[B, *spatial, D]`, on the grid of the input or of the output.
        x: the input, `[B, *spatial, I]`.
        geometry: how the kernel slides over the input.
        causal: whether to take the last vector of the window instead of the middle one.

    Raises:
        ValueError: if the context lies on neither grid.
    """
    if is_on_output_grid(context, x, geometry):
        return context

    def move(context: Array) -> Array:
        if 0 in geometry.spatial:
            return jnp.zeros(
                (*context.shape[:1], *geometry.out, *context.shape[-1:]), context.dtype
            )
        # A padding that repeats inputs repeats the context, too.
        context = geometry.pad_edges(context)
        for axis in range(geometry.rank):
            index = find_centres(geometry, axis, causal) // geometry.input_dilation[axis]
            index = np.clip(index, 0, geometry.spatial[axis] - 1)
            context = jnp.take(context, index, axis=axis + 1, mode="clip")
        return context

    return automate_sharding(move, context, axes=mesh_axes(context)[:-1])


def is_on_output_grid(context: Array, x: Array, geometry: Geometry) -> bool:
    """Returns whether a context lies on the grid of a convolution's output, or else on that of its input.

    Raises:
        ValueError: if it lies on neither grid.
    """
    spatial, out = x.shape[1:-1], geometry.out
    if context.shape[1:-1] not in (spatial, out):
        raise ValueError(
            f"context lies on a grid of {context.shape[1:-1]}; the input's is {spatial} and the "
            f"output's {out}: it must lie on one of them."
        )
    return context.shape[1:-1] == out


def find_centres(geometry: Geometry, axis: int, causal: bool) -> np.ndarray:
    """Returns the middle of the window of each output along an axis, or its end for `causal`.

    It counts dilated inputs, and may lie outside of them.
    """
    reach = (geometry.size[axis] - 1) * geometry.kernel_dilation[axis]
    start = np.arange(geometry.out[axis]) * geometry.strides[axis] - geometry.padding[axis][0]
    return start + (reach if causal else reach // 2)
