"""Deformable aggregation: the operators of DCNv3 and DCNv4, between two linear layers.

Wang, Dai, Chen, Huang, Li, Zhu, Hu, Lu, Lu, Li, Wang, Qiao: InternImage: Exploring Large-Scale Vision
Foundation Models with Deformable Convolutions. CVPR 2023. https://arxiv.org/abs/2211.05778
Xiong, Li, Chen, Wang, Zhu, Luo, Wang, Lu, Li, Qiao, Lu, Zhou, Dai: Efficient Deformable ConvNets: Rethinking
Dynamic and Sparse Operator for Vision Applications. CVPR 2024. https://arxiv.org/abs/2401.06197

Deviations from the authors' code: any number of spatial axes and of features in a group; the output always
has the input's grid; offsets and weights are computed in float32 or wider.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.layers.attention import attention_dtype
from dyn.layers.convolution import flatten_batch, resolve_kernel_size
from dyn.layers.fields import CheckedModule
from dyn.layers.norms import LayerNorm
from dyn.layers.static_conv import Conv
from dyn.ops.deform_conv import deform_aggregate
from dyn.ops.dtypes import broadcast_weights

Array = jax.Array

xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros_init()


class DeformableAggregation(CheckedModule):
    """Sums values at moved points around each position, by weights that the position computes.

        y = U z + c,    z[p] = sum_k m[p, k] v(p + offset_scale (t_k + d[p, k])),    v = V x + b

    for each of G groups of features, with K points t_k of the kernel. There is no kernel of weights: the
    mask m is all that tells points apart. In version 4 one linear layer of x computes d and m, and m is
    used as it is, any real number. In version 3 two linear layers of f = GELU(norm(depthwise conv of x))
    do, and a softmax over the points follows. Both start with zeros: version 4 with an output of c, version
    3 with a mean over the kernel's points. It keeps the number of features and the grid, like attention in a
    transformer's block, and sows `offset` and `point`, the weights.

    Attributes:
        kernel_size: one odd number for each spatial axis.
        kernel_dilation: 1 + inputs between kernel positions.
        groups: G.
        version: 3 or 4.
        offset_scale: spread of the points.
        remove_center: whether the kernel's middle is no point.
        scale_center: whether each position weighs z against its own value: z (1 - s) + v s, with
            s = sigmoid of a linear layer of f in version 3, and of z in version 4, one for each group.
        depthwise_size: in version 4, size along each axis of a depthwise convolution of x before the linear
            layer of d and m; None for none. In version 3, that of the depthwise convolution; None for
            `kernel_size`.
        dtype: dtype of the values; None for what inputs and parameters promote to.
        param_dtype: dtype of the parameters.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import DeformableAggregation
        >>> layer = DeformableAggregation((3, 3), groups=4)
        >>> x = jnp.ones((2, 8, 8, 64))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> layer.apply(variables, x).shape
        (2, 8, 8, 64)
    """

    kernel_size: int | Sequence[int]
    kernel_dilation: int = 1
    groups: int = 4
    version: int = 4
    offset_scale: float = 1.0
    remove_center: bool = False
    scale_center: bool = False
    depthwise_size: int | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, *spatial, C]`, any number of batch axes.

        Returns:
            An array of the inputs' shape.

        Raises:
            ValueError: if the kernel is not odd, the groups do not divide the features, or the version is
                unknown.
        """
        size = resolve_kernel_size(self.kernel_size, inputs)
        x, batch = flatten_batch(inputs, len(size) + 1)
        features = x.shape[-1]
        if not all(k % 2 for k in size):
            raise ValueError(f"kernel_size={size} must be odd, so that it has a middle.")
        if self.groups < 1 or features % self.groups:
            raise ValueError(f"groups={self.groups} must divide the {features} features.")
        if self.version not in (3, 4):
            raise ValueError(f"version={self.version} is unknown: write 3 or 4.")
        dtype = self.dtype
        if dtype is None:
            with jax.numpy_dtype_promotion("standard"):  # also if the caller has forbidden it
                dtype = jnp.promote_types(x.dtype, self.param_dtype)
        types = {"dtype": dtype, "param_dtype": self.param_dtype}
        values = nn.Dense(features, kernel_init=xavier, **types, name="value")(x.astype(dtype))
        gate_input, offsets, mask = self.place_points(x, size)
        z = deform_aggregate(
            values,
            offsets,
            mask,
            kernel_size=size,
            padding=[(self.kernel_dilation * (k - 1) // 2,) * 2 for k in size],
            kernel_dilation=self.kernel_dilation,
            offset_scale=self.offset_scale,
            remove_center=self.remove_center,
        )
        sown = {"offset": offsets, "point": mask}
        if self.scale_center:
            gate_input = z.astype(mask.dtype) if gate_input is None else gate_input
            head = self.make_head(self.groups, mask.dtype, "center")
            sown["center"] = nn.sigmoid(head(gate_input))
            repeats = features // self.groups
            share = broadcast_weights(jnp.repeat(sown["center"], repeats, axis=-1), z)
            z = z * (1 - share) + values * share
        self.sow("intermediates", "weights", sown)
        y = nn.Dense(features, kernel_init=xavier, **types, name="output")(z)
        return y.reshape(*batch, *y.shape[1:])

    def make_head(self, features: int, dtype: jnp.dtype, name: str) -> nn.Dense:
        """Returns a linear layer that starts with zeros."""
        return nn.Dense(
            features, kernel_init=zeros, dtype=dtype, param_dtype=self.param_dtype, name=name
        )

    def place_points(self, x: Array, size: tuple[int, ...]) -> tuple[Array | None, Array, Array]:
        """Returns f (None in version 4), offsets `[B, *out, G, K, n]` and weights `[B, *out, G, K]`."""
        dtype = attention_dtype(x, self.param_dtype)
        rank, groups = len(size), self.groups
        points = math.prod(size) - self.remove_center
        features = x.astype(dtype)
        if self.version == 3 or self.depthwise_size is not None:
            own = size if self.depthwise_size is None else (self.depthwise_size,) * rank
            features = Conv(
                x.shape[-1],
                own,
                padding=[((k - 1) // 2,) * 2 for k in own],
                feature_group_count=x.shape[-1],
                dtype=dtype,
                param_dtype=self.param_dtype,
                name="depthwise",
            )(features)
        shape = (*x.shape[:-1], groups, points)
        if self.version == 3:
            types = {"dtype": dtype, "param_dtype": self.param_dtype}
            features = LayerNorm(**types, name="depthwise_norm")(features)
            features = nn.gelu(features, approximate=False)
            offsets = self.make_head(groups * points * rank, dtype, "offset")(features)
            logits = self.make_head(groups * points, dtype, "mask")(features).reshape(shape)
            return features, offsets.reshape(*shape, rank), nn.softmax(logits)
        numbers = groups * points * (rank + 1)
        # The authors' kernel wants a multiple of 8.
        maps = self.make_head(-(-numbers // 8) * 8, dtype, "offset_mask")(features)
        maps = maps[..., :numbers].reshape(*x.shape[:-1], groups, points * (rank + 1))
        offsets = maps[..., : points * rank].reshape(*shape, rank)
        return None, offsets, maps[..., points * rank :]
