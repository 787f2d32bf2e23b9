"""Selective kernels: paths with kernels of several reaches, weighted for each channel by attention.

Li, Wang, Hu, Yang: Selective Kernel Networks. CVPR 2019. https://arxiv.org/abs/1903.06586

The layer is timm's, whose weights are published: every reach is that of the layer's kernel, dilated (timm's
`keep_3x3`, the paper's choice too), and the input may be split between the paths. The paper's squeezed
vector has at least 32 numbers.

Deviations: any number of spatial axes; context from elsewhere; a layer norm in the attention by default, as
in all attention here.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.layers.attention import AttentionBranch, attention_dtype, global_average, round_to_multiple
from dyn.layers.convolution import ConvLayer
from dyn.layers.norms import apply_batch_norm
from dyn.layers.static_conv import Conv
from dyn.ops.dynamic_conv import expand_over_space
from dyn.ops.geometry import Padding
from dyn.ops.sharding import automate_sharding

Array = jax.Array


class SelectiveKernel(ConvLayer):
    """Convolves by kernels of several dilations and selects among the results for each output channel.

        u_p = ReLU(norm_p(conv_p(x)))
        y = sum_p a_p * u_p,    a = softmax over p of V ReLU(norm(U c))

    conv_p is `nn.Conv` with dilation d_p and a batch norm of its own, and c is the mean of sum_p u_p over
    space. A convolution of 3x3 and one of 5x5 with as many numbers, d = (1, 2), are the usual paths.

    The outputs are sums of ReLUs of norms, so nothing need follow: `dyn.models.SelectiveBasicBlock` and
    `SelectiveBottleneck` place the layer in a ResNet as its authors do. As `ResNet(conv=...)` it stands for
    every convolution, and another norm follows each. `dyn.interop.warm_start` cannot start it from a static
    convolution: no second path adds to nothing and still learns.

    All paths have outputs of one size: a named padding is that of each dilated kernel, and numbers, pairs
    and 'VALID' are those of the undilated kernel, with the zeros that a wider kernel needs more.

    Attributes:
        features: number of output features; `nn.Conv`'s other fields follow, see `ConvLayer`. `use_bias`
            adds a bias to the output, and the mask is that of a path's kernel.
        dilations: dilation of each path, beside `kernel_dilation`.
        split_input: whether each path sees an equal part of the input features, or all of them.
        reduction: size of the squeezed vector, as a share of the output features.
        multiple_of: what that size is rounded to a multiple of.
        attention_norm: 'layer', 'batch' (the authors') or 'none'.
        use_running_average: for batch norms, of the paths too: None uses batch statistics exactly when the
            collection `batch_stats` is mutable.
        lowering: of the paths' convolutions, see `dyn.ops.dynamic_conv`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import SelectiveKernel
        >>> layer = SelectiveKernel(features=16, kernel_size=(3, 3), strides=2)
        >>> x = jnp.ones((2, 32, 32, 3))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> y, state = layer.apply(variables, x, mutable=["intermediates"])
        >>> y.shape, state["intermediates"]["attention"]["weights"][0]["path"].shape
        ((2, 16, 16, 16), (2, 2, 16))
    """

    dilations: Sequence[int] = (1, 2)
    split_input: bool = False
    reduction: float = 1 / 16
    multiple_of: int = 8
    attention_norm: str = "layer"
    use_running_average: bool | None = None
    lowering: str = "auto"

    @nn.compact
    def __call__(self, inputs: Array, context: Array | None = None) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, *spatial, I]`, any number of batch axes.
            context: what attention looks at, `[*batch, D]`; None for the mean of the paths' sum over space.

        Returns:
            `[*batch, *out, features]`.

        Raises:
            ValueError: if the kernel, the context or the groups do not fit, the input cannot be split, or
                there is a single number for batch statistics.
        """
        x, batch = self.flatten_inputs(inputs)
        parts = [x] * len(self.dilations)
        if self.split_input:
            if x.shape[-1] % len(parts):
                raise ValueError(
                    f"{x.shape[-1]} input features cannot be split into {len(parts)} equal parts: write "
                    "split_input=False."
                )
            parts = jnp.split(x, len(parts), axis=-1)
        paths = [self.follow_path(n, part) for n, part in enumerate(parts)]
        dtype = attention_dtype(x, self.param_dtype)
        total = functools.reduce(jnp.add, paths)
        if context is None:
            context = global_average(total, x.ndim - 2, dtype)
        else:
            context = self.flatten_context(context, x, batch)
        weights = PathAttention(
            num_paths=len(paths),
            features=self.features,
            squeezed=round_to_multiple(self.features * self.reduction, self.multiple_of, 0.9),
            norm=self.attention_norm,
            use_running_average=self.use_running_average,
            dtype=dtype,
            param_dtype=self.param_dtype,
            name="attention",
        )(context)
        selected = [u * expand_over_space(weights[:, n], u) for n, u in enumerate(paths)]
        y = self.add_bias(functools.reduce(jnp.add, selected))
        return y.reshape(*batch, *y.shape[1:])

    def follow_path(self, number: int, x: Array) -> Array:
        """Returns u_p, of the submodules `path0_conv`, `path0_norm`, ..."""
        dilation = [d * self.dilations[number] for d in self.resolve_geometry(x).kernel_dilation]
        conv = Conv(
            self.features,
            self.kernel_size,
            self.strides,
            self.pad_path(number, x),
            self.input_dilation,
            dilation,
            self.feature_group_count,
            use_bias=False,
            mask=self.mask,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            kernel_init=self.kernel_init,
            lowering=self.lowering,
            name=f"path{number}_conv",
        )
        y = apply_batch_norm(
            f"path{number}_norm",
            conv(x),
            use_running_average=self.use_running_average,
            instead="use larger pictures",
            dtype=self.conv_dtype(x),
            param_dtype=self.param_dtype,
        )
        return nn.relu(y)

    def pad_path(self, number: int, x: Array) -> Padding:
        """Returns the padding that gives a path outputs of the size of the undilated kernel's."""
        if isinstance(self.padding, str) and self.padding.upper() != "VALID":
            return self.padding
        geometry = self.resolve_geometry(x)
        pairs = []
        for size, step, (before, after) in zip(
            geometry.size, geometry.kernel_dilation, geometry.padding, strict=True
        ):
            more = (size - 1) * step * (self.dilations[number] - 1)
            pairs.append((before + more // 2, after + more - more // 2))
        return pairs


class PathAttention(AttentionBranch):
    """Weights P paths for each of O output features: `[B, D]` to `[B, P, O]`, which sum to 1 over the paths.

    Sows them as `path`.

    Attributes:
        num_paths: P.
        features: O.
    """

    num_paths: int
    features: int

    @nn.compact
    def __call__(self, context: Array) -> Array:
        """Computes the weights."""
        z = self.squeeze_context(context)
        logits = self.apply_head("path", z, self.num_paths * self.features, use_bias=False)
        shape = (z.shape[0], self.num_paths, self.features)
        weights = automate_sharding(
            lambda logits: nn.softmax(logits.reshape(shape), axis=1), logits
        )
        self.sow_weights(path=weights)
        return weights
