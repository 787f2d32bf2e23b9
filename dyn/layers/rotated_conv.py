"""Rotated convolution: kernels in n orientations, mixed by attention or pooled.

Pu, Wang, Xia, Han, Wang, Gan, Wang, Song, Huang: Adaptive Rotated Convolution for Rotated Object
Detection. ICCV 2023. https://arxiv.org/abs/2303.07820; and the direction-adaptive units with orientation
pooling of Bhati and Sherawat, Comprehensive Study Dynamic CNN (Virginia Tech).

Deviations from Pu et al.: they predict an angle for each kernel and input; here attention mixes a bank of
n fixed orientations, so that no kernels are interpolated per sample. Their routing is a depthwise
convolution before the pooling; here it is the squeeze and head of the other methods. The poolings are not
theirs.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dyn.layers.attention import (
    ATTENTION_PRECISION,
    MixtureAttention,
    average_positions,
    read_temperature,
    reduce_max,
)
from dyn.layers.convolution import ConvLayer, resolve_kernel_size
from dyn.ops.dtypes import broadcast_weights, float32_or_wider
from dyn.ops.lowerings import assemble_kernels, kernel_is_smaller
from dyn.ops.rotation import rotate_kernels
from dyn.ops.sharding import automate_sharding

Array = jax.Array


class RotatedConv(ConvLayer):
    """Convolves with kernels in n orientations; R_r rotates a kernel by 360 r / n degrees.

        pooling='mixture':    y = conv(x, sum_{k,r} a[k, r] R_r W_k),  a = softmax over all K n
        otherwise:            y_r = conv(x, R_r sum_k a[k] W_k),       a = softmax over K
        pooling='max':        y = max_r y_r
        pooling='mean':       y = mean_r y_r
        pooling='attention':  y = sum_r b_r y_r,   b = softmax_r(v . GAP(ReLU(y_r)) / T)

    with the logits of a from the context, (W ReLU(norm(U context)) + c) / T.

    Rotating the input by 90 degrees rotates every response and moves it a quarter of the circle on,
    y_{r + n/4}(rot90 x) = rot90 y_r(x), if n is divisible by four and the geometry is symmetric (equal
    strides, dilations and padding along both axes, equal padding on both sides, and a stride that divides
    size + padding - reach). After pooling by 'max', 'mean' or 'attention' the layer is therefore
    *equivariant*, y(rot90 x) = rot90 y(x), and its mean over space is *invariant*. 'mixture' is neither,
    because its attention distinguishes orientations. For angles between quarter turns all this is
    approximate, as the grid itself is. A `context` passed to the layer must not change with the rotation;
    the default, a mean over space, does not.

    The pooled forms cost n convolutions ('mean' only one, whose kernel is the mean). A 1x1 kernel has no
    orientation, so that n is 1 for it.

    Attributes:
        features: number of output features; `nn.Conv`'s other fields follow, see `ConvLayer`.
            Only square 2-D kernels.
        num_kernels: K, the number of kernels that are rotated.
        rotations: n.
        pooling: 'mixture', 'max', 'mean' or 'attention'.
        reduction: size of the squeezed vector, as a share of the context's.
        min_squeeze: lower bound on that size.
        attention_norm: 'layer', 'batch' or 'none'; see `dyn.layers`.
        use_running_average: for 'batch': None uses batch statistics exactly when the collection
            `batch_stats` is mutable.
        lowering: see `dyn.ops.dynamic_conv`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers.rotated_conv import RotatedConv
        >>> layer = RotatedConv(features=4, kernel_size=(3, 3), rotations=4, pooling="max")
        >>> x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
        >>> y, variables = layer.init_with_output(jax.random.key(0), x)
        >>> turned = layer.apply(variables, jnp.rot90(x, axes=(1, 2)))
        >>> bool(jnp.allclose(turned, jnp.rot90(y, axes=(1, 2)), atol=1e-5))
        True
    """

    num_kernels: int = 1
    rotations: int = 8
    pooling: str = "mixture"
    reduction: float = 1 / 16
    min_squeeze: int = 16
    attention_norm: str = "layer"
    use_running_average: bool | None = None
    lowering: str = "auto"

    @nn.compact
    def __call__(self, inputs: Array, context: Array | None = None) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, H, W, I]`, any number of batch axes.
            context: what attention looks at, `[*batch, D]`; None for the mean of the inputs over space.

        Returns:
            `[*batch, *out, features]`.

        Raises:
            ValueError: if the kernel is not square and 2-D, if the context or the groups do not fit the
                inputs, for a mask of positions, which would turn with the kernels, or for an unknown
                pooling.
        """
        if self.pooling not in ("mixture", "max", "mean", "attention"):
            raise ValueError(
                f"pooling={self.pooling!r} is unknown: write 'mixture', 'max', 'mean' or 'attention'."
            )
        x, batch = self.flatten_inputs(inputs)
        size = resolve_kernel_size(self.kernel_size, x)
        if len(size) != 2 or size[0] != size[1]:
            raise ValueError(
                f"kernel_size={size} cannot be rotated: RotatedConv needs a square 2-D kernel such as "
                "(3, 3). For other kernels use ODConv or DynamicConv."
            )
        rotations = 1 if size == (1, 1) else self.rotations
        kernel = self.make_candidates(x, self.num_kernels)
        if (
            rotations > 1
            and self.mask is not None
            and _hides_positions(self.mask, kernel.shape[1:])
        ):
            raise ValueError(
                "mask would turn with RotatedConv's kernels, which would show positions that it hides: use "
                "another layer if positions must stay hidden, or write rotations=1."
            )
        dtype = float32_or_wider(x, kernel)
        context = self.flatten_context(context, x, batch)
        mix = self.weight_candidates(context, rotations, dtype)

        x = x.astype(self.conv_dtype(x))
        if self.pooling == "mixture" and mix is not None and self.assembles_kernels(x, mix):
            y = self.convolve_assembled(x, kernel, mix, rotations)
            return self.add_bias(y).reshape(*batch, *y.shape[1:])
        bank = rotate_kernels(kernel, rotations)  # [n, K, k, k, i, O]
        if self.pooling == "mixture":
            candidates = jnp.swapaxes(bank, 0, 1).reshape(-1, *kernel.shape[1:])
            y = self.convolve(x, candidates, mix, lowering=self.lowering)
        elif self.pooling == "mean":
            y = self.convolve(x, jnp.mean(bank, axis=0), mix, lowering=self.lowering)
        elif self.pooling == "max":
            y = reduce_max(self.compute_responses(x, bank, mix), axis=-2)
        else:
            pool = OrientationPool(dtype=dtype, param_dtype=self.param_dtype, name="orientation")
            y = pool(self.compute_responses(x, bank, mix))
        y = self.add_bias(y)
        return y.reshape(*batch, *y.shape[1:])

    def weight_candidates(self, context: Array, rotations: int, dtype: jnp.dtype) -> Array | None:
        """Returns weights of all candidates, `[B, K n]` for 'mixture', else `[B, K]`; None for one."""
        fields = self.attention_fields(context.shape[-1], dtype)
        if self.pooling == "mixture" and rotations > 1:
            number = self.num_kernels * rotations
            branch = RotationAttention(num_kernels=number, rotations=rotations, **fields)
            return branch(context)
        if self.num_kernels > 1:
            return MixtureAttention(num_kernels=self.num_kernels, **fields)(context)
        return None

    def assembles_kernels(self, x: Array, mix: Array) -> bool:
        """Returns whether kernels are made for each sample from the taps of the unrotated ones.

        Only on a TPU, and where a kernel is larger than its picture: mixing n rotated kernels in each kernel
        for TPUs takes longer then than writing and reading one for each sample.
        """
        geometry = self.resolve_geometry(x)
        if self.lowering not in ("auto", "fused") or kernel_is_smaller(
            self.kernel_shape(x), geometry
        ):
            return False
        return self.choose_sample_lowering(x, "auto") == "fused"

    def convolve_assembled(self, x: Array, kernel: Array, mix: Array, rotations: int) -> Array:
        """Convolves with sum_{k,r} a[k, r] R_r W_k, of which each tap is a mixture of the taps of all W_k.

        Args:
            x: `[B, H, W, I]`.
            kernel: `[K, k, k, I, O]`.
            mix: `[B, K n]`.
            rotations: n.
        """
        number, *size, i, o = kernel.shape
        taps = math.prod(size)

        def assemble(mix: Array, kernel: Array) -> Array:
            mix = mix.reshape(-1, number, rotations)
            units = jnp.eye(taps, dtype=mix.dtype).reshape(taps, *size, 1, 1)
            turned = rotate_kernels(units, rotations).reshape(
                rotations, taps, taps
            )  # [n, from, to]
            # [b, to, 1, 1, K from]
            weights = jnp.einsum("bkr,rft->btkf", mix, turned, precision=lax.Precision.HIGHEST)
            weights = weights.reshape(-1, taps, 1, 1, number * taps)
            cells = kernel.reshape(number * taps, i, o)
            return assemble_kernels(weights, cells, x.dtype, fused=True).reshape(-1, *size, i, o)

        return self.convolve_samples(x, assemble, (mix,), (kernel,), "fused")

    def compute_responses(self, x: Array, bank: Array, mix: Array | None) -> Array:
        """Returns the response of each orientation, `[B, *out, n, O]`.

        Args:
            x: `[B, H, W, I]`.
            bank: `[n, K, k, k, I/G, O]`.
            mix: `[B, K]`, or None for K = 1.
        """
        rotations, groups = bank.shape[0], self.feature_group_count

        # One convolution for all orientations. Features run over (G, n, o), so that groups stay contiguous.
        def widen(bank: Array) -> Array:
            wide = jnp.moveaxis(bank.reshape(*bank.shape[:-1], groups, -1), 0, -2)
            return wide.reshape(*wide.shape[:-3], rotations * self.features)

        wide = automate_sharding(widen, bank, axes=())
        y = self.convolve(x, wide, mix, lowering=self.lowering)
        y = y.reshape(*y.shape[:-1], groups, rotations, self.features // groups)
        y = jnp.swapaxes(y, -3, -2)
        return y.reshape(*y.shape[:-2], self.features)


class RotationAttention(MixtureAttention):
    """Mixes K kernels in n orientations, all K n of them candidates, from a context `[B, D]`: `[B, K n]`.

    Sows `weights`: `kernel`, `[B, K n]`, and `orientation`, `[B, n]`, the total of each orientation.

    Attributes:
        rotations: n; the orientations of a kernel are neighbours.
    """

    rotations: int

    def sow_mixture(self, mix: Array) -> None:
        """Sows the mixture and the totals of the orientations."""
        # Not -1 for the kernels: a batch may be empty.
        shape = (mix.shape[0], self.num_kernels // self.rotations, self.rotations)
        orientation = mix.reshape(shape).sum(1)
        self.sow_weights(kernel=mix, orientation=orientation)


def _hides_positions(mask: Any, shape: tuple[int, ...]) -> bool:
    """Returns whether a mask of kernels `[kh, kw, I, O]` differs between positions."""
    return bool(np.ptp(np.broadcast_to(np.asarray(mask, float), shape), axis=(0, 1)).any())


class OrientationPool(nn.Module):
    """Weights the responses of n orientations, `[B, *out, n, O]`, and adds them up: `[B, *out, O]`.

    All orientations are scored by the same vector, each from its own response, so that the weights move
    with the responses when the input is rotated. Only the ReLU makes the scores differ: the mean over
    space of a convolution hardly depends on the order of its taps. Sows `weights`: `orientation`.
    """

    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, responses: Array) -> Array:
        """Pools over orientations by attention."""
        space = tuple(range(1, responses.ndim - 2))
        strength = average_positions(nn.relu(responses), space, self.dtype)  # [B, n, O]
        score = nn.Dense(
            1,
            use_bias=False,
            precision=ATTENTION_PRECISION,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="score",
        )(strength)[..., 0]
        weights = nn.softmax(score / read_temperature(self).astype(self.dtype))
        self.sow("intermediates", "weights", {"orientation": weights})
        weights = weights.reshape(weights.shape[0], *(1,) * len(space), weights.shape[1], 1)
        return jnp.sum(responses * broadcast_weights(weights, responses), axis=-2)
