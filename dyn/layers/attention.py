"""The attention that layers share: a branch from a context to weights, its squeeze, heads and norms.

Attention is computed in float32 (or wider, if its parameters are), whatever dtype the convolution runs
in: pooling, normalisation, softmax and the division by the temperature lose too much in bfloat16. By
default a TPU rounds the operands of float32 products to bfloat16, and a GPU to TF32, so the products of
attention ask for `ATTENTION_PRECISION`. They are tiny against the convolution.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dyn.layers.norms import LayerNorm, apply_batch_norm
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.sharding import automate_sharding, mesh_axes

Array = jax.Array

ATTENTION_PRECISION = lax.Precision.HIGHEST

# torch's kaiming_normal_(mode="fan_out", nonlinearity="relu"), used throughout the papers' code.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class AttentionBranch(nn.Module, kw_only=True):
    """The base of all attention: turns a context `[B, D]` into weights for parts of a convolution.

    A subclass declares what it weights and writes its `__call__` out of these steps. A `ConvLayer` hands
    the fields below on by `attention_fields`.

    Attributes:
        squeezed: size of the squeezed vector; not used by a branch that does not squeeze.
        norm: 'layer' (has no statistics, works for a batch of one), 'batch' (the papers') or 'none'.
        use_running_average: whether the batch norm uses its running statistics; None: exactly when the
            collection `batch_stats` is not mutable.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        squeeze_bias: whether the squeeze has a bias.
    """

    squeezed: int = 0
    norm: str
    use_running_average: bool | None
    dtype: Any
    param_dtype: Any
    squeeze_bias: bool = False

    def squeeze_context(
        self, context: Array, precision: lax.Precision | None = ATTENTION_PRECISION
    ) -> Array:
        """Returns ReLU(norm(W context)), `[B, squeezed]`; W has no bias, unless `squeeze_bias`.

        Args:
            context: `[B, D]`.
            precision: precision of the product W context.

        Raises:
            ValueError: for an unknown norm, for batch statistics of a single sample, and for a squeezed
                vector of size zero.
        """
        if self.squeezed < 1:
            raise ValueError(
                f"attention would squeeze its context to {self.squeezed} numbers: choose a larger "
                "reduction or min_squeeze."
            )
        fields = {"dtype": self.dtype, "param_dtype": self.param_dtype, "precision": precision}
        context = context.astype(self.dtype)
        z = apply_head("squeeze", context, self.squeezed, use_bias=self.squeeze_bias, **fields)
        return nn.relu(self.normalise(z))

    def normalise(self, z: Array) -> Array:
        """Applies the norm to a vector `[B, C]`, as the submodule `norm`.

        Raises:
            ValueError: for an unknown norm, for batch statistics of a single sample, and for a layer norm
                of a single number.
        """
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        match self.norm:
            case "none":
                return z
            case "layer":
                if z.shape[-1] == 1:
                    raise ValueError(
                        "a layer norm inside attention cannot normalise a single number: it would always be "
                        "zero and the attention would ignore the input. Write attention_norm='none', or "
                        "min_squeeze=2 or more if the layer has it."
                    )
                return LayerNorm(name="norm", **types)(z)
            case "batch":
                return apply_batch_norm(
                    "norm",
                    z,
                    use_running_average=self.use_running_average,
                    instead="use attention_norm='layer'",
                    **types,
                )
        raise ValueError(
            f"attention_norm={self.norm!r} is unknown: write 'batch', 'layer' or 'none'."
        )

    def apply_head(self, name: str, z: Array, features: int, **fields: Any) -> Array:
        """Computes the logits W z + b of one kind of attention, as the submodule `name`."""
        return apply_head(
            name, z, features, dtype=self.dtype, param_dtype=self.param_dtype, **fields
        )

    def read_temperature(self) -> Array:
        """Returns the softmax temperature in the branch's dtype."""
        return read_temperature(self).astype(self.dtype)

    def sow_weights(self, **weights: Array | None) -> None:
        """Sows the weights that are not None as `weights` into the collection `intermediates`."""
        present = {name: w for name, w in weights.items() if w is not None}
        self.sow("intermediates", "weights", present)


class MixtureAttention(AttentionBranch, kw_only=True):
    """Mixes K candidate kernels: `[B, *out, D]` or `[B, D]` to weights `[B, *out, K]` or `[B, K]`.

        a = softmax((V ReLU(norm(U c)) + b) / T),  or without a squeeze  a = softmax((V c + b) / T)

    The weights sum to one. Sows `weights`: `kernel`, `[B, K]`, averaged over positions, and `pixel`, the
    mixture at each position, if there are several.

    Attributes:
        num_kernels: K.
        squeezes: whether the context is squeezed.
        precision: precision of the products at positions. They are not tiny there: in the highest one, six
            passes on a TPU, the squeeze would take a third of the time of K = 4 convolutions 1x1. That of
            products with a vector is the highest.
    """

    num_kernels: int
    squeezes: bool = True
    precision: lax.Precision | None = None

    @nn.compact
    def __call__(self, context: Array) -> Array:
        """Computes the weights of the candidate kernels."""
        # Positions are squeezed and normalised like samples, and stay on their grid: a reshape would cost a
        # TPU a copy.
        precision = ATTENTION_PRECISION if context.ndim == 2 else self.precision
        # Methods are recognised by the names of parameters: gates have a `kernel` without a squeeze.
        z, name = context.astype(self.dtype), "mixture"
        if self.squeezes:
            z, name = self.squeeze_context(context, precision), "kernel"
        logits = self.apply_head(name, z, self.num_kernels, precision=precision)
        mix = nn.softmax(logits / self.read_temperature())
        self.sow_mixture(mix)
        return mix

    def sow_mixture(self, mix: Array) -> None:
        """Sows the mixture `[B, *out, K]`."""
        if mix.ndim == 2:
            self.sow_weights(kernel=mix)
        else:
            mean = global_average(mix, mix.ndim - 2, self.dtype)
            self.sow_weights(kernel=mean, pixel=mix)


def squeezed_size(features: int, reduction: float, least: int) -> int:
    """Returns the size of a squeezed vector: a share of the features, and at least `least`."""
    return max(int(features * reduction), least)


def attention_dtype(x: Array, param_dtype: Any) -> jnp.dtype:
    """Returns the dtype of the attention to an input: float32, or wider if input or parameters are."""
    return float32_or_wider(x, jax.ShapeDtypeStruct((), param_dtype))


def round_to_multiple(size: float, multiple: int, least_share: float = 0.0) -> int:
    """Returns the multiple nearest to a size, one at least; the next one if that is less than a share of it.

    Args:
        size: the exact number.
        multiple: what the result is a multiple of.
        least_share: smallest ratio of the result to the size.
    """
    nearest = max(multiple, int(size + multiple / 2) // multiple * multiple)
    return nearest if nearest >= least_share * size else nearest + multiple


def global_average(x: Array, spatial_axes: int, dtype: jnp.dtype) -> Array:
    """Averages over the spatial axes: `[B, *spatial, C]` to `[B, C]`; zeros if there are no positions."""
    return average_positions(x, tuple(range(1, 1 + spatial_axes)), dtype)


def average_positions(x: Array, axes: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Averages over some axes; zeros instead of 0 / 0 if they have no positions, as a static layer has."""
    reduce = jnp.sum if 0 in [x.shape[axis] for axis in axes] else jnp.mean
    return reduce(x, axis=axes, dtype=dtype)


def reduce_max(x: Array, axis: int | tuple[int, ...]) -> Array:
    """Takes the maximum over some axes; its whole gradient goes to the first position that has it.

    `jnp.max` divides the gradient among all positions where x equals the maximum. XLA may recompute x
    for that comparison, with different rounding: no position is equal then, and the gradient is 0 / 0.
    """
    axes = (axis,) if isinstance(axis, int) else axis
    rest = [n for n in range(x.ndim) if n not in {a % x.ndim for a in axes}]

    def reduce(x: Array) -> Array:
        x = jnp.moveaxis(x, axes, range(-len(axes), 0))
        # The size is written out, because -1 cannot be inferred for an empty batch.
        x = x.reshape(*x.shape[: len(rest)], math.prod(x.shape[len(rest) :]))
        return _take_max(x)

    return automate_sharding(reduce, x, axes=[mesh_axes(x)[n] for n in rest])


@jax.custom_jvp
def _take_max(x: Array) -> Array:
    """Returns the maximum over the last axis."""
    return _find_max(x)[0]


@_take_max.defjvp
def _differentiate_max(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    place = _find_max(lax.stop_gradient(x))[1]
    first = place[..., None] == lax.broadcasted_iota(place.dtype, x.shape, x.ndim - 1)
    change = jnp.sum(jnp.where(first, tangent, jnp.zeros_like(tangent)), axis=-1)
    return _take_max(x), change


def _find_max(x: Array) -> tuple[Array, Array]:
    """Returns the maximum over the last axis and its first place, in one pass; NaN is larger than all."""

    def choose(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
        (a, i), (b, j) = one, other
        equal = (a == b) | ((a != a) & (b != b))
        larger = (a > b) | ((a != a) & (b == b)) | (equal & (i < j))
        return jnp.where(larger, a, b), jnp.where(larger, i, j)

    places = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    least = -jnp.inf if floating else jnp.iinfo(x.dtype).min
    start = jnp.asarray(least, x.dtype), jnp.asarray(np.iinfo(np.int32).max, jnp.int32)
    return lax.reduce((x, places), start, choose, (x.ndim - 1,))


def read_temperature(module: nn.Module) -> Array:
    """Returns the module's softmax temperature: the variable `temperature` of the collection `attention`.

    It is 1 until `dyn.schedules.set_temperature` sets it, and 1 for a model that is applied without
    that collection.
    """
    return read_variable(module, "temperature", jnp.ones)


def read_variable(module: nn.Module, name: str, init: Any) -> Array:
    """Returns a scalar of the collection `attention`, or its initial value without that collection."""
    if not (module.has_variable("attention", name) or module.is_mutable_collection("attention")):
        return init((), jnp.float32)
    return module.variable("attention", name, init, (), jnp.float32).value


def apply_head(
    name: str,
    z: Array,
    features: int,
    *,
    kernel_init: nn.initializers.Initializer = he_normal_fan_out,
    precision: lax.Precision | None = ATTENTION_PRECISION,
    **fields: Any,
) -> Array:
    """Computes W z + b, as the submodule `name`; call it inside a compact method.

    Args:
        name: name of the submodule.
        z: `[..., D]`.
        features: number of outputs.
        kernel_init: initialises W.
        precision: precision of the product.
        fields: other fields of `nn.Dense`.
    """
    return nn.Dense(features, kernel_init=kernel_init, precision=precision, name=name, **fields)(z)


def drop_axis_names(initial: Any) -> Array:
    """Returns the array of an initialiser that may name the axes of a kernel for partitioning.

    The names do not fit what is made of the kernel.
    """
    (array,) = jax.tree.leaves(initial)
    return array


def per_candidate(init: nn.initializers.Initializer) -> nn.initializers.Initializer:
    """Returns an initialiser that applies `init` to each of the K kernels of a stack `[K, ...]`.

    Applied to the whole stack, it would count K as part of the receptive field and get the fan wrong. Where
    `init` names the axes of a kernel for partitioning, the axis of the candidates has no name.
    """

    def init_stack(key: Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> Any:
        keys = jax.random.split(key, shape[0])
        kernels = [init(k, tuple(shape[1:]), dtype) for k in keys]
        stack = jax.tree.map(lambda *arrays: jnp.stack(arrays), *kernels)
        if isinstance(stack, nn.meta.AxisMetadata):
            return stack.add_axis(0, {nn.PARTITION_NAME: None})
        return stack

    return init_stack
