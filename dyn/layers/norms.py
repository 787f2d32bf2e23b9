"""Norms with torch's epsilon and momentum, whose variance is exact for inputs far from zero.

Flax computes a variance as E[x^2] - E[x]^2 unless it is told otherwise. In float32 nothing is left of that
difference where the mean is a thousand times the spread. The layer norm here has E[(x - E[x])^2], in two
passes. The batch norm subtracts a centre first: see `compute_moments`.
"""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import canonicalize_dtype
from jax import lax

from dyn.ops import platforms
from dyn.ops.sharding import mesh_axes

Array = jax.Array

# Rounding of the sums is magnified by up to about this number, see `compute_moments`. A guess is near if the
# square of its distance from the mean is at most NEAR variances; a slice has one position in SLICES.
NEAR = SLICES = 16


class BatchNorm(nn.BatchNorm):
    """Flax's batch norm with torch's momentum and epsilon, and an exact variance in one pass.

    Fields, parameters and statistics are flax's; `use_fast_variance` changes nothing.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None
    ) -> Array:
        """Applies the norm; the arguments are flax's."""
        running = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        x = jnp.asarray(x)
        features = sorted({int(axis) % x.ndim for axis in np.atleast_1d(self.axis)})
        axes = tuple(axis for axis in range(x.ndim) if axis not in features)
        shape = tuple(x.shape[axis] for axis in features)
        wide = self.force_float32_reductions
        kept = jnp.float32 if wide else self.param_dtype
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, kept)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, kept)
        # The statistics are promoted, also if the caller has forbidden it.
        with jax.numpy_dtype_promotion("standard"):
            if running:
                mean, var = running_mean.value, running_var.value
            else:
                dtype = jnp.promote_types(self.dtype or x.dtype, jnp.float32 if wide else x.dtype)
                name = None if self.is_initializing() else self.axis_name
                reduction = Reduction(axes, name, self.axis_index_groups)
                mean, var = compute_moments(reduction, dtype, x, running_mean.value, mask)
            if not running and not self.is_initializing():
                for statistic, new in ((running_mean, mean), (running_var, var)):
                    statistic.value = self.momentum * statistic.value + (1 - self.momentum) * new
            expand = partial(jnp.expand_dims, axis=axes)
            factor = lax.rsqrt(expand(var) + self.epsilon)
            args = [x]
            if self.use_scale:
                args.append(self.param("scale", self.scale_init, shape, self.param_dtype))
                factor *= expand(args[-1])
            y = (x - expand(mean)) * factor
            if self.use_bias:
                args.append(self.param("bias", self.bias_init, shape, self.param_dtype))
                y += expand(args[-1])
            return y.astype(canonicalize_dtype(*args, dtype=self.dtype))


class LayerNorm(nn.LayerNorm):
    """Flax's layer norm with torch's epsilon, and a variance in two passes."""

    epsilon: float = 1e-5
    use_fast_variance: bool = False

    @nn.compact
    def __call__(self, x: Array, **fields: Any) -> Array:
        """Applies the norm; the arguments are flax's."""
        with jax.numpy_dtype_promotion("standard"):
            return super().__call__(x, **fields)


class GroupNorm(nn.GroupNorm):
    """Flax's group norm with torch's epsilon, and a variance in two passes.

    It has no statistics, so that a network evaluates as it trains, and a batch may be small.

    Example:
        >>> from functools import partial
        >>> from dyn.layers.norms import GroupNorm
        >>> from dyn.models import ResNet18
        >>> net = ResNet18(num_classes=10, norm=partial(GroupNorm, num_groups=32))
    """

    epsilon: float = 1e-5
    use_fast_variance: bool = False

    @nn.compact
    def __call__(self, x: Array, **fields: Any) -> Array:
        """Applies the norm; the arguments are flax's."""
        with jax.numpy_dtype_promotion("standard"):
            return super().__call__(x, **fields)


@dataclasses.dataclass(frozen=True)
class Reduction:
    """A reduction to means: what they are taken over.

    Attributes:
        axes: those of the array, the batch first.
        axis_name: an axis of `jax.vmap`, `jax.shard_map` or `jax.pmap`, or None.
        groups: groups of indices within that axis, or None for one group.
    """

    axes: tuple[int, ...]
    axis_name: str | None = None
    groups: Any = None

    def average(self, x: Array, mask: Array | None = None) -> Array:
        """Returns the mean of what the mask keeps."""
        mean = jnp.mean(x, self.axes, where=None if mask is None else jnp.asarray(mask, bool))
        if self.axis_name is None:
            return mean
        return lax.pmean(mean, self.axis_name, axis_index_groups=self.groups)

    def expand(self, mean: Array) -> Array:
        """Returns a mean in the shape of the array, with ones."""
        return jnp.expand_dims(mean, self.axes)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def compute_moments(
    reduction: Reduction, dtype: Any, x: Array, guess: Array, mask: Array | None = None
) -> tuple[Array, Array]:
    """Computes a mean and a variance in one pass, as exactly as in two.

        mean = c + E[x - c],    var = E[(x - c)^2] - E[x - c]^2

    This is so for every centre c, but rounding is magnified by 1 + (mean - c)^2 / var. With the mean of a
    slice that has 1/n of the positions as c, that is at most n, whatever the inputs (Cauchy and Schwarz).

    A TPU computes such sums together with the convolution before the norm, if c is known before it. So c is
    the guess there, and the slice counts only if the guess turns out to be far away.

    Args:
        reduction: what to reduce.
        dtype: of the sums.
        x: the inputs.
        guess: what the mean may be, of its shape; it changes no result by more than rounding.
        mask: what counts, to broadcast with `x`; None for all.

    Returns:
        The mean and the variance, without the reduced axes.
    """

    def measure(x: Array) -> tuple[Array, Array]:
        sample = _take_slice(x, reduction.axes) if mask is None else x
        centre = reduction.average(sample.astype(dtype), mask)
        return _measure_from(centre, reduction, x.astype(dtype), mask)[:2]

    # Without spatial axes there is little to read, and different devices must not take different branches.
    spatial = len(reduction.axes) > 1 and reduction.axis_name is None
    if not spatial or platforms.find_platform() != "tpu":
        return measure(x)
    mean, var, distance = _measure_from(guess.astype(dtype), reduction, x.astype(dtype), mask)
    is_near = jnp.all(distance <= NEAR * var)
    return lax.cond(is_near, lambda _: (mean, var), measure, x)


@compute_moments.defjvp
def _differentiate_moments(
    reduction: Reduction, dtype: Any, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    x, _, mask = primals
    mean, var = compute_moments(reduction, dtype, *primals)
    x, tangent = x.astype(dtype), tangents[0].astype(dtype)
    change = _multiply(x - reduction.expand(mean), tangent)
    return (mean, var), (reduction.average(tangent, mask), 2 * reduction.average(change, mask))


def _measure_from(
    centre: Array, reduction: Reduction, x: Array, mask: Array | None
) -> tuple[Array, Array, Array]:
    """Computes mean and variance by a centre, and the square of the distance between mean and centre."""
    x -= reduction.expand(centre)
    mean, square = (reduction.average(term, mask) for term in (x, _multiply(x, x)))
    distance = _multiply(mean, mean)
    # Rounding can make it negative.
    return centre + mean, jnp.maximum(square - distance, 0), distance


def _multiply(a: Array, b: Array) -> Array:
    """Returns the product of real numbers, or the scalar product of complex ones."""
    return jnp.real(jnp.conj(a) * b)


def _take_slice(x: Array, axes: Sequence[int]) -> Array:
    """Returns a slice through the middle of the first spatial axis that can be cut; `x` if none can."""
    for axis in axes[1:]:
        length = x.shape[axis]
        # A batch may lie on several devices, and so may space.
        if isinstance(length, int) and length > 1 and mesh_axes(x)[axis] is None:
            size = -(-length // SLICES)
            return lax.slice_in_dim(x, (length - size) // 2, (length + size) // 2, axis=axis)
    return x


def apply_batch_norm(
    name: str,
    z: Array,
    *,
    use_running_average: bool | None,
    instead: str,
    dtype: jnp.dtype,
    param_dtype: jnp.dtype,
    momentum: float = 0.9,
    scale_init: nn.initializers.Initializer = nn.initializers.ones,
) -> Array:
    """Applies a batch norm that detects training by itself; call it inside a compact method.

    Args:
        name: name of the submodule.
        z: `[B, ..., C]`.
        use_running_average: whether running statistics are used; None: exactly when the collection
            `batch_stats` is not mutable, and a gradient for the parameters then warns.
        instead: what to do if there is nothing to normalise, for the error message.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        momentum: share of the running statistics that a step keeps (1 - torch's).
        scale_init: initialises the scale.

    Raises:
        ValueError: for batch statistics of a single vector.
    """
    module = BatchNorm(
        momentum=momentum,
        scale_init=scale_init,
        dtype=dtype,
        param_dtype=param_dtype,
        name=name,
    )
    running = use_running_average
    if running is None:
        running = not module.is_mutable_collection("batch_stats")
    vectors = math.prod(z.shape[:-1])
    if vectors == 1 and not (running or module.is_initializing()):
        raise ValueError(
            "a batch norm inside attention cannot normalise the one vector of a batch of size 1: its "
            "variance is zero and the attention would ignore the input. Train with two or more "
            f"samples, {instead}, or pass use_running_average=True."
        )
    # An empty batch has no statistics.
    normed = module(z.astype(dtype), use_running_average=running or vectors == 0)
    if running and use_running_average is None:
        warn_if_differentiated(module.variables["params"]["scale"])
    return normed


@jax.custom_jvp
def warn_if_differentiated(parameter: Array) -> Array:
    """Returns the parameter; warns while a program is traced that takes a gradient for it.

    Nothing else tells training from evaluation here. A gradient for the input alone, such as a saliency map,
    does not warn.
    """
    return parameter


@warn_if_differentiated.defjvp
def _warn(primals: tuple[Array], tangents: tuple[Any]) -> tuple[Array, Any]:
    warnings.warn(
        "a network is trained whose attention has a batch norm, with running statistics that are never "
        "updated: pass mutable=['batch_stats'] to apply and keep the collection that it returns (in dyn.nnx: "
        "call train()), or write attention_norm='layer'. To keep the statistics as they are, write "
        "use_running_average=True.",
        stacklevel=2,
    )
    return primals[0], tangents[0]
