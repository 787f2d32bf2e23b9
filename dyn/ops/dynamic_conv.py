"""The one entry to every convolution whose kernel depends on the sample."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from dyn.ops import fused_tpu, lowerings, planner
from dyn.ops.dtypes import broadcast_weights, count_kernel_bytes
from dyn.ops.geometry import (
    Array,
    Geometry,
    Padding,
    Problem,
    check_floating,
    resolve_geometry,
)
from dyn.ops.sharding import (
    BatchShards,
    automate_sharding,
    count_batch_shards,
    find_batch_shards,
    map_shards,
    mesh_axes,
)


def dynamic_conv(
    inputs: Array,
    kernels: Array,
    mix: Array | None = None,
    *,
    taps: Array | None = None,
    channels: Array | None = None,
    filters: Array | None = None,
    strides: int | Sequence[int] | None = 1,
    padding: Padding = "SAME",
    input_dilation: int | Sequence[int] | None = 1,
    kernel_dilation: int | Sequence[int] | None = 1,
    feature_group_count: int = 1,
    lowering: str = "auto",
    precision: lax.PrecisionLike = None,
) -> Array:
    """Convolves each sample with its own mixture of K candidate kernels.

        y_b = filters[b] * conv(channels[b] * x_b, sum_k mix[b, k] * taps[b] * W_k)

    Args:
        inputs: `[B, *spatial, I]` with one, two or three spatial axes.
        kernels: `[K, *k, I/G, O]`, the candidates. They are mixed in float32 or wider and then
            rounded to the inputs' dtype.
        mix: weight of each candidate: `[B, K]`, or `[B, *out, K]` for a mixture at each output position
            (pixel-wise attention). None stands for weight one and needs K = 1.
        taps: weight of each kernel position, `[B, *k]`, shared by the candidates; None for one.
        channels: weight of each input feature, `[B, I]`; None for one. It is multiplied onto the inputs, or
            onto each sample's kernel if the lowering makes that anyway and it is smaller.
        filters: weight of each output feature, `[B, O]`, likewise.
        strides, padding, input_dilation, kernel_dilation, feature_group_count: as in `flax.linen.Conv`.
        lowering: how to compute it: 'auto' (see `explain`), 'reference', 'taps', 'patches', 'outputs',
            'shared', 'samples', or 'fused' (on TPUs only). All compute the same numbers; they differ in
            time and memory. 'fused', which 'auto' often chooses on TPUs, has no forward-mode derivatives,
            such as those in `jax.hessian`: name another one for these.
        precision: as in `jax.lax.conv_general_dilated`.

    Returns:
        `[B, *out, O]` in the inputs' dtype.

    Raises:
        ValueError: if shapes do not fit together, or the named lowering does not support the case.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.ops import dynamic_conv
        >>> x = jnp.ones((2, 8, 8, 3))
        >>> kernels = jnp.ones((4, 3, 3, 3, 16))
        >>> mix = jnp.array([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]])
        >>> dynamic_conv(x, kernels, mix).shape
        (2, 8, 8, 16)
    """
    geometry = resolve_geometry(
        inputs.shape[1:-1],
        kernels.shape[1:-2],
        strides,
        padding,
        input_dilation,
        kernel_dilation,
        feature_group_count,
    )
    weights = (mix, taps, channels, filters)
    return convolve_with_geometry(inputs, kernels, *weights, geometry, lowering, precision)


def convolve_with_geometry(
    inputs: Array,
    kernels: Array,
    mix: Array | None,
    taps: Array | None,
    channels: Array | None,
    filters: Array | None,
    geometry: Geometry,
    lowering: str = "auto",
    precision: lax.PrecisionLike = None,
) -> Array:
    """Computes `dynamic_conv` for a geometry that is resolved already."""
    problem = check_arguments(inputs, kernels, mix, taps, geometry)
    features = {"channels": (channels, inputs.shape[-1]), "filters": (filters, kernels.shape[-1])}
    for name, (weights, number) in features.items():
        if weights is not None and weights.shape != (inputs.shape[0], number):
            raise ValueError(
                f"{name} must have the shape {(inputs.shape[0], number)}; got {weights.shape}."
            )
    if lowering == "auto":
        lowering = planner.plan(problem).choice
    elif lowering not in lowerings.LOWERINGS:
        raise ValueError(
            f"lowering={lowering!r} is unknown: write 'auto' or one of {list(lowerings.LOWERINGS)}."
        )
    elif why := planner.why_impossible(lowering, problem):
        raise ValueError(f"lowering={lowering!r} cannot do this: {why}.")
    out = (inputs.shape[0], *geometry.out, kernels.shape[-1])
    # Handle empty outputs here, once for all lowerings.
    if any(isinstance(n, int) and n == 0 for n in out[:-1]):
        return jnp.zeros(out, inputs.dtype)
    inputs = geometry.pad_edges(inputs)
    return _dynamic_conv(
        inputs, kernels, mix, taps, channels, filters, geometry, lowering, precision
    )


# The jit gives the operation a name in the jaxpr, so that `dyn.diagnostics` can count it for any
# lowering, and layers of equal shape are traced once.
@partial(jax.jit, static_argnames=("geometry", "lowering", "precision"))
def _dynamic_conv(
    inputs, kernels, mix, taps, channels, filters, geometry: Geometry, lowering: str, precision
) -> Array:
    convolve = partial(_convolve, geometry=geometry, lowering=lowering, precision=precision)
    weights = (mix, taps, channels, filters)
    shards = find_batch_shards(inputs) if lowering == "fused" else None
    if shards is not None and inputs.shape[0] % shards.number == 0:
        return _convolve_shards(convolve, inputs, kernels, weights, shards)
    axes = (*mesh_axes(inputs)[:-1], mesh_axes(kernels)[-1])
    return automate_sharding(convolve, inputs, kernels, *weights, axes=axes)


def _convolve_shards(
    convolve: Callable[..., Array],
    inputs: Array,
    kernels: Array,
    weights: tuple[Array | None, ...],
    shards: BatchShards,
) -> Array:
    """Convolves the shards of a batch where they are; output features stay sharded like the kernels."""
    batch, features = shards.axes or None, mesh_axes(kernels)[-1]
    of_features = features if isinstance(features, tuple) else (features,)
    if set(of_features) & set(shards.axes):
        features = None  # parameters that are sharded over the devices of the batch are gathered
    spec, inner = PartitionSpec(batch), (None,) * (inputs.ndim - 2)
    specs = (
        spec,
        PartitionSpec(None, *inner, None, features),
        *(spec, spec, spec),
        PartitionSpec(batch, features),
    )
    out = PartitionSpec(batch, *inner, features)
    return map_shards(convolve, (inputs, kernels, *weights), specs, out, shards.mesh)


def _convolve(
    inputs, kernels, mix, taps, channels, filters, geometry: Geometry, lowering: str, precision
) -> Array:
    makes_sample_kernels = lowering == "samples" and not (mix is None and taps is None)
    with jax.named_scope(lowering):
        if (
            makes_sample_kernels
            and geometry.groups == 1
            and lowerings.kernel_is_smaller(kernels.shape[1:], geometry)
        ):
            return lowerings.convolve_by_samples(
                inputs, kernels, mix, taps, geometry, precision, channels=channels, filters=filters
            )
        mixes_kernels = taps is not None or (mix is not None and mix.ndim == 2)
        if lowering == "fused" and mixes_kernels:
            return fused_tpu.convolve_by_fused_kernel(
                inputs, kernels, mix, taps, geometry, precision, channels=channels, filters=filters
            )
        x = inputs if channels is None else inputs * expand_over_space(channels, inputs)
        y = lowerings.LOWERINGS[lowering](x, kernels, mix, taps, geometry, precision)
        return y if filters is None else y * expand_over_space(filters, y)


def expand_over_space(weights: Array, x: Array) -> Array:
    """Brings weights `[B, C]` to the dtype and the axes of `x`, `[B, *spatial, C]`."""
    shape = (weights.shape[0], *(1,) * (x.ndim - 2), weights.shape[1])
    return broadcast_weights(weights.reshape(shape), x)


def explain(
    inputs: Array | jax.ShapeDtypeStruct,
    kernels: Array | jax.ShapeDtypeStruct,
    mix: Array | jax.ShapeDtypeStruct | None = None,
    *,
    taps: Array | jax.ShapeDtypeStruct | None = None,
    strides: int | Sequence[int] | None = 1,
    padding: Padding = "SAME",
    input_dilation: int | Sequence[int] | None = 1,
    kernel_dilation: int | Sequence[int] | None = 1,
    feature_group_count: int = 1,
    platform: str | None = None,
) -> None:
    """Prints the lowering that 'auto' would choose for these arguments, and why.

    Args:
        inputs, kernels, mix, taps: arrays, or `jax.ShapeDtypeStruct`s of their shapes.
        strides, padding, input_dilation, kernel_dilation, feature_group_count: as in `dynamic_conv`.
        platform: as in `plan_for_platform`; None for the one that is planned for.

    Raises:
        ValueError: for arguments that `dynamic_conv` refuses, and for an unknown platform.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.ops import explain
        >>> shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
        >>> explain(shape(32, 7, 7, 512), shape(4, 3, 3, 512, 512), shape(32, 4),
        ...         platform='tpu')  # doctest: +ELLIPSIS
        dynamic_conv on tpu: ...
    """

    geometry = resolve_geometry(
        inputs.shape[1:-1],
        kernels.shape[1:-2],
        strides,
        padding,
        input_dilation,
        kernel_dilation,
        feature_group_count,
    )
    print(planner.plan(check_arguments(inputs, kernels, mix, taps, geometry), platform))


def check_arguments(
    inputs: Array | jax.ShapeDtypeStruct,
    kernels: Array | jax.ShapeDtypeStruct,
    mix: Array | jax.ShapeDtypeStruct | None,
    taps: Array | jax.ShapeDtypeStruct | None,
    geometry: Geometry,
) -> Problem:
    """Returns the problem that the arguments of `dynamic_conv` pose, if they fit together."""
    batch, features, groups = inputs.shape[0], inputs.shape[-1], geometry.groups
    num_kernels, out_features = kernels.shape[0], kernels.shape[-1]
    if num_kernels < 1:
        raise ValueError(f"there is no kernel in kernels of shape {kernels.shape}.")
    if features != kernels.shape[-2] * groups or out_features % groups:
        raise ValueError(
            f"kernels {kernels.shape} with feature_group_count={groups} take "
            f"{kernels.shape[-2] * groups} input features and a multiple of {groups} output features; "
            f"the inputs have {features}."
        )
    check_floating(inputs=inputs, kernels=kernels, mix=mix, taps=taps)
    image, pixel = (batch, num_kernels), (batch, *geometry.out, num_kernels)
    if mix is None and num_kernels != 1:
        raise ValueError(f"mix is needed to choose among {num_kernels} kernels.")
    if mix is not None and mix.shape not in (image, pixel):
        raise ValueError(
            f"mix must be [B, K] = {image}, or [B, *out, K] = {pixel} for a mixture at each output "
            f"position; got {mix.shape}."
        )
    if taps is not None and taps.shape != (batch, *geometry.size):
        raise ValueError(f"taps must be [B, *k] = {(batch, *geometry.size)}; got {taps.shape}.")
    return Problem(
        batch,
        kernels.shape,
        geometry,
        mixed=mix is not None,
        pixelwise=mix is not None and len(mix.shape) > 2,
        tap_attention=taps is not None,
        itemsize=count_kernel_bytes(inputs.dtype),
        batch_shards=count_batch_shards(inputs),
    )
