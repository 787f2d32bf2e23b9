"""`dynamic_conv`: the one entry to every convolution whose kernel depends on the sample."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from dyn.ops import lowerings, planner
from dyn.ops.window import Array, Padding, Window, resolve


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
        mix: the weight of each candidate: `[B, K]`, or `[B, *out, K]` for a mixture at each output
            position (pixel-wise attention). None stands for weight one and needs K = 1.
        taps: `[B, *k]`, the weight of each kernel position, shared by the candidates; None for one.
        channels: `[B, I]`, the weight of each input feature; None for one. Multiplied onto the inputs, or
            onto each sample's kernel where that is smaller and made anyway.
        filters: `[B, O]`, the weight of each output feature, likewise.
        strides, padding, input_dilation, kernel_dilation, feature_group_count: as in `flax.linen.Conv`.
        lowering: how it is computed: 'auto' (see `explain`), 'reference', 'taps', 'patches', 'outputs',
            'shared' or 'samples'. All give the same numbers; they differ in time and memory.
        precision: as in `jax.lax.conv_general_dilated`.

    Returns:
        `[B, *out, O]` in the inputs' dtype.

    Raises:
        ValueError: if shapes do not fit together, or the named lowering cannot do the case.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.ops import dynamic_conv
        >>> x = jnp.ones((2, 8, 8, 3))
        >>> kernels = jnp.ones((4, 3, 3, 3, 16))
        >>> mix = jnp.array([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]])
        >>> dynamic_conv(x, kernels, mix).shape
        (2, 8, 8, 16)
    """
    inputs, window, pixelwise = check(
        inputs,
        kernels,
        mix,
        taps,
        strides,
        padding,
        input_dilation,
        kernel_dilation,
        feature_group_count,
    )
    features = {"channels": (channels, inputs.shape[-1]), "filters": (filters, kernels.shape[-1])}
    for name, (weights, number) in features.items():
        if weights is not None and weights.shape != (inputs.shape[0], number):
            raise ValueError(
                f"{name} must have the shape {(inputs.shape[0], number)}; got {weights.shape}."
            )
    if lowering == "auto":
        lowering = planner.plan(
            inputs.shape,
            kernels.shape,
            window,
            pixelwise=pixelwise,
            mixed=mix is not None,
            tap_attention=taps is not None,
            itemsize=inputs.dtype.itemsize,
        ).choice
    elif lowering not in lowerings.LOWERINGS:
        raise ValueError(
            f"lowering={lowering!r} is unknown: write 'auto' or one of {list(lowerings.LOWERINGS)}."
        )
    elif why := lowerings.unable(lowering, pixelwise=pixelwise, tap_attention=taps is not None):
        raise ValueError(f"lowering={lowering!r} cannot do this: {why}.")
    out = (inputs.shape[0], *window.output_shape(inputs.shape[1:-1]))
    if any(isinstance(n, int) and n == 0 for n in out):
        # No lowering has to think of it.
        return jnp.zeros((*out, kernels.shape[-1]), inputs.dtype)
    weights = (mix, taps, channels, filters)
    return _dynamic_conv(inputs, kernels, *weights, window, lowering, precision)


# The jit gives the operation a name in the jaxpr, by which `dyn.diagnostics` counts it whatever the
# lowering, and layers of equal shape are traced once.
@partial(jax.jit, static_argnames=("window", "lowering", "precision"))
def _dynamic_conv(
    inputs, kernels, mix, taps, channels, filters, window: Window, lowering: str, precision
) -> Array:
    own_kernels = lowering == "samples" and not (mix is None and taps is None)
    with jax.named_scope(lowering):
        if (
            own_kernels
            and window.groups == 1
            and lowerings.kernels_are_smaller(inputs.shape, kernels.shape[1:], window)
        ):
            return lowerings.samples(
                inputs, kernels, mix, taps, window, precision, channels=channels, filters=filters
            )
        x = inputs if channels is None else inputs * over_space(channels, inputs)
        y = lowerings.LOWERINGS[lowering](x, kernels, mix, taps, window, precision)
        return y if filters is None else y * over_space(filters, y)


def over_space(weights: Array, x: Array) -> Array:
    """Weights `[B, C]` in the dtype and with the axes of `x`, `[B, *spatial, C]`."""
    return weights.astype(x.dtype).reshape(weights.shape[0], *(1,) * (x.ndim - 2), weights.shape[1])


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
    """Prints what `lowering='auto'` would choose for these arguments, and why.

    Args:
        inputs, kernels, mix, taps: arrays, or `jax.ShapeDtypeStruct`s of their shapes; otherwise the
            arguments are those of `dynamic_conv`.
        platform: 'cpu', 'gpu' or 'tpu'; None for the one JAX runs on.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.ops import explain
        >>> shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
        >>> explain(shape(32, 7, 7, 512), shape(4, 3, 3, 512, 512), shape(32, 4),
        ...         platform='tpu')  # doctest: +ELLIPSIS
        dynamic_conv on tpu: ...
    """

    def printed(inputs, kernels, mix, taps):
        x, window, pixelwise = check(
            inputs,
            kernels,
            mix,
            taps,
            strides,
            padding,
            input_dilation,
            kernel_dilation,
            feature_group_count,
        )
        print(
            planner.plan(
                x.shape,
                kernels.shape,
                window,
                pixelwise=pixelwise,
                mixed=mix is not None,
                tap_attention=taps is not None,
                itemsize=x.dtype.itemsize,
                platform=platform,
            )
        )

    jax.eval_shape(printed, inputs, kernels, mix, taps)


def check(
    inputs: Array,
    kernels: Array,
    mix: Array | None,
    taps: Array | None,
    strides: int | Sequence[int] | None,
    padding: Padding,
    input_dilation: int | Sequence[int] | None,
    kernel_dilation: int | Sequence[int] | None,
    groups: int,
) -> tuple[Array, Window, bool]:
    """Holds the arguments of `dynamic_conv` against each other: (padded inputs, window, pixel-wise?)."""
    rank = inputs.ndim - 2
    if rank not in (1, 2, 3):
        raise ValueError(
            f"inputs must be [B, *spatial, I] with 1 to 3 spatial axes; got shape {inputs.shape}."
        )
    if kernels.ndim != rank + 3:
        raise ValueError(
            f"kernels must be [K, *k, I/G, O] with {rank} spatial axes, like the inputs "
            f"{inputs.shape}; got shape {kernels.shape}."
        )
    num_kernels, size = kernels.shape[0], kernels.shape[1:-2]
    if num_kernels < 1 or groups < 1:
        raise ValueError(
            f"there is no kernel in {kernels.shape} with feature_group_count={groups}: both must be positive."
        )
    batch, features = inputs.shape[0], inputs.shape[-1]
    if features != kernels.shape[-2] * groups or kernels.shape[-1] % groups:
        raise ValueError(
            f"kernels {kernels.shape} with feature_group_count={groups} take "
            f"{kernels.shape[-2] * groups} input features and a multiple of {groups} output features; "
            f"the inputs have {features}."
        )
    for name, array in {"inputs": inputs, "kernels": kernels, "mix": mix, "taps": taps}.items():
        if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating point; got {array.dtype}.")
    inputs, window = resolve(
        inputs, size, strides, padding, input_dilation, kernel_dilation, groups
    )
    out = window.output_shape(inputs.shape[1:-1])
    if mix is None:
        if num_kernels != 1:
            raise ValueError(f"mix is needed to choose among {num_kernels} kernels.")
    elif mix.shape not in ((batch, num_kernels), (batch, *out, num_kernels)):
        raise ValueError(
            f"mix must be [B, K] = {(batch, num_kernels)}, or [B, *out, K] = "
            f"{(batch, *out, num_kernels)} for a mixture at each output position; got {mix.shape}."
        )
    if taps is not None and taps.shape != (batch, *size):
        raise ValueError(f"taps must be [B, *k] = {(batch, *size)}; got {taps.shape}.")
    return inputs, window, mix is not None and mix.ndim > 2
