"""Pixel-wise dynamic convolution: a mixture of kernels of its own at each output position.

The local soft attention of Bhati and Sherawat, Comprehensive Study Dynamic CNN (Virginia Tech), whose
equation 1, W_dyn = sum A W, it evaluates at each position; the image-wise form of that equation is Chen
et al., Dynamic Convolution: Attention over Convolution Kernels. CVPR 2020. https://arxiv.org/abs/1912.03458

The study prints no architecture for its kernel generator; decided here: two 1x1 layers with a ReLU
between them and a softmax with temperature, and how a context meets the output's grid (`on_output_grid`).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn.layers.attention import global_average, head, squeeze, temperature
from dyn.layers.convolution import ConvLayer, flatten_batch
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.window import Window, resolve

Array = jax.Array


class PixelDynamicConv(ConvLayer):
    """A convolution whose kernel is a mixture that differs from place to place.

        y[p] = conv(x, sum_k a[p, k] W_k)[p]
        a[p] = softmax((V ReLU(norm(U c[p])) + b) / T)

    at each output position p, where c[p] is the context there: a vector of features on the grid of the
    output. The kernels are mixed after they were applied, which is the same and needs no kernel of a
    position's own: the cost is that of K convolutions.

    What the context is (D is any number of features):

    * None: the layer's own input, brought to the output's grid.
    * `[*batch, *spatial, D]`: used as it is if it lies on the output's grid; if on the input's, each
      output position takes the vector at the middle of what its kernel sees (for 'CAUSAL' the newest),
      so that a strided layer is the layer without strides, subsampled.
    * `[*batch, D]`: one mixture for the whole input, at the price of one convolution.

    `attention='image'` averages any context over space and is the image-wise layer in every case.

    Attributes:
        features: `nn.Conv`'s fields come first, in its order; see `ConvLayer`.
        num_kernels: K, the number of candidate kernels.
        reduction: size of the squeezed vector, as a share of the context's.
        min_squeeze: its least size.
        attention: 'pixel' or 'image'.
        attention_norm: 'none', 'batch' (over positions and samples) or 'layer'.
        use_running_average: for 'batch': None uses batch statistics exactly when the collection
            `batch_stats` is mutable.
        lowering: see `dyn.ops.dynamic_conv`; pixel-wise mixtures take 'outputs' or 'shared'.

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
        x, batch = self.flat_inputs(inputs)
        kernel = self.candidate_kernels(x, self.num_kernels)
        mix = MixtureAttention(
            num_kernels=self.num_kernels,
            reduction=self.reduction,
            min_squeeze=self.min_squeeze,
            norm=self.attention_norm,
            use_running_average=self.use_running_average,
            dtype=float32_or_wider(x, kernel),
            param_dtype=self.param_dtype,
            name="attention",
        )(self.local_context(context, x, batch))
        x = x.astype(self.conv_dtype(x))
        y = self.add_bias(self.convolve(x, kernel, mix, lowering=self.lowering))
        return y.reshape(*batch, *y.shape[1:])

    def local_context(self, context: Array | None, x: Array, batch: tuple[int, ...]) -> Array:
        """What attention looks at: `[B, *out, D]`, or `[B, D]` where it is one for the whole input.

        Raises:
            ValueError: if the context is on neither grid, or its batch axes are not the inputs'.
        """
        rank = x.ndim - 2
        if context is None:
            context = x
        elif context.shape[:-1] == batch:
            return flatten_batch(context, 1)[0]
        elif context.ndim == len(batch) + rank + 1 and context.shape[: len(batch)] == batch:
            context = flatten_batch(context, rank + 1)[0]
        else:
            raise ValueError(
                f"context must be [*batch, D] or [*batch, *spatial, D] with the inputs' batch axes "
                f"{batch} and {rank} spatial axes; got shape {context.shape}."
            )
        if self.attention == "image":
            return global_average(context, rank, float32_or_wider(context))
        window = (self.strides, self.padding, self.input_dilation, self.kernel_dilation)
        return on_output_grid(context, x, self.kernel_dims(x), *window)


class MixtureAttention(nn.Module):
    """Weights over K kernels, `[B, *out, K]` or `[B, K]`, from a context `[B, *out, D]` or `[B, D]`.

    Sows `weights`: `kernel`, `[B, K]`, the mixture averaged over positions, and `pixel`, the mixture at
    each of them, if there are several.
    """

    num_kernels: int
    reduction: float
    min_squeeze: int
    norm: str
    use_running_average: bool | None
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, context: Array) -> Array:
        """Weighs the candidate kernels."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        positions, grid = flatten_batch(context.astype(self.dtype), 1)
        z = squeeze(
            positions,
            max(int(context.shape[-1] * self.reduction), self.min_squeeze),
            norm=self.norm,
            use_running_average=self.use_running_average,
            **types,
        )
        logits = head("kernel", z, self.num_kernels, **types)
        mix = nn.softmax(logits / temperature(self).astype(self.dtype))
        mix = mix.reshape(*grid, self.num_kernels)
        if mix.ndim == 2:
            self.sow("intermediates", "weights", {"kernel": mix})
        else:
            mean = global_average(mix, mix.ndim - 2, self.dtype)
            self.sow("intermediates", "weights", {"kernel": mean, "pixel": mix})
        return mix


def on_output_grid(
    context: Array,
    x: Array,
    size: tuple[int, ...],
    strides,
    padding,
    input_dilation,
    kernel_dilation,
) -> Array:
    """A context `[B, *spatial, D]` on the grid of a convolution's output: `[B, *out, D]`.

    On the output's grid already, it stays as it is. On the input's, an output position takes the vector
    in the middle of what its kernel sees, or the nearest where that lies in the padding. It is picked
    and not averaged, so that nothing outside the kernel's reach decides (with 'CAUSAL': no later
    input), and so that strides remain a subsampling.

    Args:
        context: `[B, *spatial, D]`, on the grid of the input or of the output.
        x: the input, `[B, *spatial, I]`.
        size: the kernel size; the other arguments are those of `dyn.ops.dynamic_conv`.

    Raises:
        ValueError: if the context lies on neither grid.
    """
    spatial = x.shape[1:-1]
    padded, window = resolve(x, size, strides, padding, input_dilation, kernel_dilation, 1)
    out = window.output_shape(padded.shape[1:-1])
    if context.shape[1:-1] == out:
        return context
    if context.shape[1:-1] != spatial:
        raise ValueError(
            f"context lies on a grid of {context.shape[1:-1]}; the input's is {spatial} and the "
            f"output's {out}: it must lie on one of them."
        )
    # Padding that wraps or reflects was put onto the input: put it onto the context too.
    context, _ = resolve(context, size, strides, padding, input_dilation, kernel_dilation, 1)
    newest = isinstance(padding, str) and padding.upper() == "CAUSAL"
    for axis, index in enumerate(_seen(window, context.shape[1:-1], out, newest), start=1):
        context = jnp.take(context, index, axis=axis, mode="clip")
    return context


def _seen(
    window: Window, spatial: tuple[int, ...], out: tuple[int, ...], newest: bool
) -> list[np.ndarray]:
    """For each axis and output position, the index of the input in the middle of the kernel."""
    indices = []
    for axis, positions in enumerate(out):
        reach = (window.size[axis] - 1) * window.kernel_dilation[axis]
        middle = reach if newest else reach // 2
        at = np.arange(positions) * window.strides[axis] - window.padding[axis][0] + middle
        at = np.floor_divide(at, window.input_dilation[axis])
        indices.append(np.clip(at, 0, spatial[axis] - 1))
    return indices
