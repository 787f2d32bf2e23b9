"""Involution: a kernel per position, made from the features there and shared by channels.

Li, Hu, Wang, Li, She, Zhu, Zhang, Chen: Involution: Inverting the Inherence of Convolution for Visual
Recognition. CVPR 2021. https://arxiv.org/abs/2103.06255

Deviations from the authors' code: the norm, by default a layer norm, is theirs with `attention_norm='batch'`;
a pointwise convolution comes first if the number of features changes; 1-D and 3-D inputs, every padding of
`nn.Conv`, dilation, sizes that the stride does not divide, an optional bias, and a context from elsewhere.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn.layers.attention import ATTENTION_PRECISION, AttentionBranch, attention_dtype
from dyn.layers.pixel_conv import find_centres, is_on_output_grid
from dyn.layers.position_conv import PositionConv, arrange_taps
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.geometry import Geometry
from dyn.ops.sharding import automate_sharding, mesh_axes

Array = jax.Array


class Involution(PositionConv):
    """Convolves each channel with a kernel that its group of channels has at each position.

        y[p, c] = sum_t x[read(p, t), c] K[p, t, g(c)],    K[p] = W_2 ReLU(norm(W_1 s[p])) + b_2

    where s[p] are the features at position p, or for a strided layer their mean over the stride's positions
    from there on. The same weights make the kernel at each position and for each size of input. A layer with
    C features has C^2 / 4 + k^2 C^2 / 64 weights with the paper's sizes, where a convolution has k^2 C^2.

    It keeps the number of features; if `features` is another one, a pointwise convolution comes first (see
    `PositionConv`). It cannot be started from a static network by `dyn.interop.warm_start`: its kernels do
    not mix channels.

    The context, if it is passed, takes the place of s; see `PixelDynamicConv` for its forms. With a vector
    the same kernel is used everywhere.

    Attributes:
        features: number of output features; `nn.Conv`'s other fields follow, see `ConvLayer`.
        groups: number of groups of channels, each with a kernel; None for groups of 16 channels as in the
            paper, or for fewer groups if 16 does not divide the features.
        reduction: size of the squeezed vector, as a share of the context's.
        min_squeeze: lower bound on that size.
        attention_norm: 'layer', 'batch' (the paper's, over positions and samples) or 'none'.
        use_running_average: for 'batch': None uses batch statistics exactly when the collection
            `batch_stats` is mutable.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import Involution
        >>> layer = Involution(features=32, kernel_size=(7, 7), strides=2, padding=3)
        >>> x = jnp.ones((2, 8, 8, 32))
        >>> y, state = layer.init_with_output(jax.random.key(0), x)
        >>> y.shape
        (2, 4, 4, 32)
        >>> _, state = layer.apply(state, x, mutable=["intermediates"])
        >>> state["intermediates"]["attention"]["weights"][0]["position"].shape
        (2, 4, 4, 7, 7, 2)
    """

    groups: int | None = None
    reduction: float = 1 / 4
    min_squeeze: int = 4
    attention_norm: str = "layer"
    use_running_average: bool | None = None

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
            ValueError: if the kernel, the context or the groups do not fit the inputs, or for a mask.
        """
        x, batch = self.flatten_inputs(inputs)
        geometry, dtype = self.resolve_geometry(x), attention_dtype(x, self.param_dtype)
        context = self.flatten_local_context(context, x, batch)
        if context.ndim > 2:
            context = average_strides(context.astype(dtype), x, geometry, self.is_causal)
        x = self.project_inputs(x)
        kernels = InvolutionKernels(
            groups=self.count_groups("groups", self.groups, self.features // 16),
            size=geometry.size,
            **self.attention_fields(context.shape[-1], dtype),
        )(context)
        y = self.add_bias(self.convolve_positions(x, kernels))
        return y.reshape(*batch, *y.shape[1:])


class InvolutionKernels(AttentionBranch):
    """Makes the kernels `[B, *out, *k, G]` from a context `[B, *out, D]`, or `[B, *k, G]` from `[B, D]`.

    Sows `weights`: `position`, the kernels.

    Attributes:
        groups: G.
        size: kernel size, k.
    """

    groups: int
    size: tuple[int, ...]

    @nn.compact
    def __call__(self, context: Array) -> Array:
        """Computes the kernels."""
        # As in `MixtureAttention`, products at each position are not tiny.
        precision = ATTENTION_PRECISION if context.ndim == 2 else None
        z = self.squeeze_context(context, precision)
        number = self.groups * int(np.prod(self.size))
        kernels = self.apply_head("kernel", z, number, precision=precision)
        kernels = arrange_taps(kernels, self.groups, self.size)
        self.sow_weights(position=kernels)
        return kernels


def average_strides(context: Array, x: Array, geometry: Geometry, causal: bool) -> Array:
    """Averages a context over the positions from one output to the next: `[B, *out, D]`.

    The first of them is the middle of the output's window. Without strides it is the only one; with symmetric
    padding and a size that the stride divides this is average pooling. Positions outside of the input do not
    count, unless all are: then it is the nearest inside. A context on the grid of the output stays as it is.

    Args:
        context: `[B, *spatial, D]`, on the grid of the input or of the output.
        x: the input, `[B, *spatial, I]`.
        geometry: how the kernel slides over the input.
        causal: whether to average the positions up to the end of the window instead.

    Raises:
        ValueError: if the context lies on neither grid.
    """
    if is_on_output_grid(context, x, geometry):
        return context

    def average(context: Array) -> Array:
        if 0 in geometry.spatial:
            return jnp.zeros(
                (*context.shape[:1], *geometry.out, *context.shape[-1:]), context.dtype
            )
        context = geometry.pad_edges(context)
        for axis, (n, stride) in enumerate(zip(geometry.spatial, geometry.strides, strict=True)):
            steps = np.arange(stride) * (-1 if causal else 1)
            index = find_centres(geometry, axis, causal) + steps[:, None]
            index //= geometry.input_dilation[axis]
            inside = (index >= 0) & (index < n)
            inside[0] |= ~inside.any(0)
            share = inside / inside.sum(0)
            shape = [-1 if i == axis + 1 else 1 for i in range(context.ndim)]
            terms = [
                jnp.take(context, np.clip(i, 0, n - 1), axis=axis + 1, mode="clip")
                * jnp.asarray(w.reshape(shape), context.dtype)
                for i, w in zip(index, share, strict=True)
            ]
            context = functools.reduce(jnp.add, terms)
        return context

    dtype = float32_or_wider(context)
    return automate_sharding(average, context.astype(dtype), axes=mesh_axes(context)[:-1])
