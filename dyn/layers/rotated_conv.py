"""Direction-adaptive convolution: kernels in n orientations, mixed by attention or pooled.

Pu, Wang, Xia, Han, Wang, Gan, Wang, Song, Huang: Adaptive Rotated Convolution for Rotated Object
Detection. ICCV 2023. https://arxiv.org/abs/2303.07820; and the direction-adaptive units with orientation
pooling of Bhati and Sherawat, Comprehensive Study Dynamic CNN (Virginia Tech).

Deviations from Pu et al.: they predict an angle for each kernel and each input; here attention mixes a
bank of n fixed orientations, so that no kernel is interpolated for a sample. Their routing is a depthwise
convolution in front of the pooling; here it is the squeeze and head of the other methods. The poolings
are not theirs.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.layers.attention import head, largest, squeeze, temperature
from dyn.layers.convolution import ConvLayer
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.rotation import rotated_bank

Array = jax.Array


class RotatedConv(ConvLayer):
    """A convolution whose kernels come in n orientations; R_r turns a kernel by 360 r / n degrees.

        pooling='mixture':    y = conv(x, sum_{k,r} a[k, r] R_r W_k),  a = softmax over all K n
        otherwise:            y_r = conv(x, R_r sum_k a[k] W_k),       a = softmax over K
        pooling='max':        y = max_r y_r
        pooling='mean':       y = mean_r y_r
        pooling='attention':  y = sum_r b_r y_r,   b = softmax_r(v . GAP(ReLU(y_r)) / T)

    with the logits of a from the context, (W ReLU(norm(U context)) + c) / T.

    What a rotation of the input does, where n is divisible by four and the window turns into itself
    (equal strides, dilations and padding along both axes, equal padding on both sides, and a stride that
    divides size + padding - reach): turning the input by 90 degrees turns every response and passes it
    on by a quarter of the circle, y_{r + n/4}(rot90 x) = rot90 y_r(x). After pooling by 'max', 'mean' or
    'attention' the layer is therefore *equivariant*: y(rot90 x) = rot90 y(x); a mean over space of it is
    *invariant*. 'mixture' is neither: its attention tells orientations apart. For angles between quarter
    turns all this is an approximation, as the grid itself is. A `context` given to the layer must not
    change with the rotation; the layer's own, a mean over space, does not.

    The pooled forms cost n convolutions ('mean' only one, whose kernel is the mean). A 1x1 kernel has no
    orientation: n is 1 for it.

    Attributes:
        features: `nn.Conv`'s fields come first, in its order; see `ConvLayer`. 2-D and square kernels.
        num_kernels: K, the number of kernels that are rotated.
        rotations: n.
        pooling: 'mixture', 'max', 'mean' or 'attention'.
        reduction: size of the squeezed vector, as a share of the context's.
        min_squeeze: its least size.
        attention_norm: 'batch', 'layer' or 'none'.
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
    attention_norm: str = "batch"
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
                inputs, or for an unknown pooling.
        """
        if self.pooling not in ("mixture", "max", "mean", "attention"):
            raise ValueError(
                f"pooling={self.pooling!r} is unknown: write 'mixture', 'max', 'mean' or 'attention'."
            )
        x, batch = self.flat_inputs(inputs)
        size = self.kernel_dims(x)
        if len(size) != 2 or size[0] != size[1]:
            raise ValueError(
                f"kernel_size={size} cannot be rotated: RotatedConv needs a square 2-D kernel such as "
                "(3, 3). For others take ODConv or DynamicConv."
            )
        kernel = self.candidate_kernels(x, self.num_kernels)
        rotations = 1 if size == (1, 1) else self.rotations
        bank = rotated_bank(kernel, rotations)  # [n, K, k, k, i, O]
        mixture = self.pooling == "mixture"
        types = {"dtype": float32_or_wider(x, kernel), "param_dtype": self.param_dtype}
        mix = RotationAttention(
            candidates=self.num_kernels * (rotations if mixture else 1),
            rotations=rotations if mixture else 1,
            reduction=self.reduction,
            min_squeeze=self.min_squeeze,
            norm=self.attention_norm,
            use_running_average=self.use_running_average,
            name="attention",
            **types,
        )(self.flat_context(context, x, batch))

        x = x.astype(self.conv_dtype(x))
        if mixture:
            candidates = jnp.swapaxes(bank, 0, 1).reshape(-1, *kernel.shape[1:])
            y = self.convolve(x, candidates, mix, lowering=self.lowering)
        elif self.pooling == "mean":
            y = self.convolve(x, jnp.mean(bank, axis=0), mix, lowering=self.lowering)
        elif self.pooling == "max":
            y = largest(self.responses(x, bank, mix), axis=-2)
        else:
            y = OrientationPool(name="orientation", **types)(self.responses(x, bank, mix))
        y = self.add_bias(y)
        return y.reshape(*batch, *y.shape[1:])

    def responses(self, x: Array, bank: Array, mix: Array | None) -> Array:
        """What each orientation answers: `[B, *out, n, O]`.

        Args:
            x: `[B, H, W, I]`.
            bank: `[n, K, k, k, I/G, O]`.
            mix: `[B, K]`, or None for K = 1.
        """
        rotations, groups = bank.shape[0], self.feature_group_count
        # One convolution for all: features run over (G, n, o), so that groups stay contiguous.
        wide = jnp.moveaxis(bank.reshape(*bank.shape[:-1], groups, -1), 0, -2)
        wide = wide.reshape(*wide.shape[:-3], rotations * self.features)
        y = self.convolve(x, wide, mix, lowering=self.lowering)
        y = y.reshape(*y.shape[:-1], groups, rotations, self.features // groups)
        y = jnp.swapaxes(y, -3, -2)
        return y.reshape(*y.shape[:-2], self.features)


class RotationAttention(nn.Module):
    """Weights over K candidates from a context `[B, D]`: `[B, K]`, or None where there is only one.

    Sows `weights`: `kernel`, `[B, K]`; and where the candidates are orientations of kernels, n of each
    one after another, `orientation`, `[B, n]`, what each orientation has in all.
    """

    candidates: int
    rotations: int
    reduction: float
    min_squeeze: int
    norm: str
    use_running_average: bool | None
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, context: Array) -> Array | None:
        """Weighs the candidates."""
        if self.candidates == 1:
            return None
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        z = squeeze(
            context.astype(self.dtype),
            max(int(context.shape[-1] * self.reduction), self.min_squeeze),
            norm=self.norm,
            use_running_average=self.use_running_average,
            **types,
        )
        logits = head("kernel", z, self.candidates, **types)
        mix = nn.softmax(logits / temperature(self).astype(self.dtype))
        weights = {"kernel": mix}
        if self.rotations > 1:
            kernels = self.candidates // self.rotations
            weights["orientation"] = mix.reshape(mix.shape[0], kernels, self.rotations).sum(1)
        self.sow("intermediates", "weights", weights)
        return mix


class OrientationPool(nn.Module):
    """Weighs the responses of n orientations, `[B, *out, n, O]`, and adds them up: `[B, *out, O]`.

    Each orientation is scored by its own response, and all by the same vector, so that the weights are
    passed on with the responses when the input is turned. The ReLU is what lets them differ: the mean
    over space of a convolution hardly depends on the order of its taps. Sows `weights`: `orientation`.
    """

    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, responses: Array) -> Array:
        """Pools over orientations by attention."""
        space = tuple(range(1, responses.ndim - 2))
        strength = jnp.mean(nn.relu(responses), axis=space, dtype=self.dtype)  # [B, n, O]
        score = nn.Dense(
            1, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype, name="score"
        )(strength)[..., 0]
        weights = nn.softmax(score / temperature(self).astype(self.dtype))
        self.sow("intermediates", "weights", {"orientation": weights})
        weights = weights.astype(responses.dtype)
        weights = weights.reshape(weights.shape[0], *(1,) * len(space), weights.shape[1], 1)
        return jnp.sum(responses * weights, axis=-2)
