"""What the attention branches of the methods share: context, squeeze, heads, temperature.

Attention is computed in float32 (or wider, if its parameters are) whatever dtype the convolution runs
in: pooling, normalisation, softmax and the division by the temperature lose too much in bfloat16.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array

# torch's kaiming_normal_(mode="fan_out", nonlinearity="relu"), which the papers' code uses throughout.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def global_average(x: Array, spatial_axes: int, dtype: jnp.dtype) -> Array:
    """Mean over the spatial axes: `[B, *spatial, C]` to `[B, C]`."""
    return jnp.mean(x, axis=tuple(range(1, 1 + spatial_axes)), dtype=dtype)


def largest(x: Array, axis: int | tuple[int, ...]) -> Array:
    """The maximum over some axes, with its whole gradient for the first place that has it.

    `jnp.max` shares the gradient out among the places where x equals the maximum. XLA may compute x anew
    for that comparison, with another rounding: then there is no such place, and the gradient is 0 / 0.
    """
    axes = (axis,) if isinstance(axis, int) else axis
    x = jnp.moveaxis(x, axes, range(-len(axes), 0))
    rest = x.ndim - len(axes)
    # Not -1, which says nothing of an empty batch.
    x = x.reshape(*x.shape[:rest], math.prod(x.shape[rest:]))
    first = jnp.argmax(x, axis=-1, keepdims=True) == jnp.arange(x.shape[-1])
    return jnp.sum(jnp.where(first, x, jnp.zeros_like(x)), axis=-1)


def temperature(module: nn.Module) -> Array:
    """The module's softmax temperature: the variable `temperature` of the collection `attention`.

    It is 1 until `dyn.schedules.set_temperature` sets it, and 1 for a model that is applied without
    that collection.
    """
    if not (
        module.has_variable("attention", "temperature") or module.is_mutable_collection("attention")
    ):
        return jnp.ones((), jnp.float32)
    return module.variable("attention", "temperature", jnp.ones, (), jnp.float32).value


def squeeze(
    context: Array,
    features: int,
    *,
    norm: str,
    use_running_average: bool | None,
    dtype: jnp.dtype,
    param_dtype: jnp.dtype,
) -> Array:
    """ReLU(norm(W context)), without bias: `[B, D]` to `[B, features]`.

    Call it inside a compact method: it makes the submodules `squeeze` and `norm` there.

    Args:
        context: what attention looks at, `[B, D]`.
        features: size of the squeezed vector.
        norm: 'batch' (the papers'), 'layer' (works at batch size 1, has no state) or 'none'.
        use_running_average: whether the batch norm uses its running statistics; None: exactly when
            the collection `batch_stats` is not mutable.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.

    Raises:
        ValueError: for an unknown norm, for batch statistics of a single sample, and for a vector of nothing.
    """
    if features < 1:
        raise ValueError(
            f"attention would squeeze its context to {features} numbers: choose a larger reduction or "
            "min_squeeze."
        )
    z = nn.Dense(
        features,
        use_bias=False,
        kernel_init=he_normal_fan_out,
        dtype=dtype,
        param_dtype=param_dtype,
        name="squeeze",
    )(context)
    return nn.relu(
        attention_norm(
            z,
            norm,
            use_running_average=use_running_average,
            dtype=dtype,
            param_dtype=param_dtype,
        )
    )


def attention_norm(
    z: Array,
    norm: str,
    *,
    use_running_average: bool | None,
    dtype: jnp.dtype,
    param_dtype: jnp.dtype,
) -> Array:
    """The norm of a squeezed vector `[B, C]`, as the submodule `norm`; the arguments are `squeeze`'s.

    Raises:
        ValueError: for an unknown norm, and for batch statistics of a single sample.
    """
    types = {"dtype": dtype, "param_dtype": param_dtype}
    match norm:
        case "none":
            return z
        case "layer":
            return nn.LayerNorm(epsilon=1e-5, name="norm", **types)(z)
        case "batch":
            instead = "use attention_norm='layer'"
            return batch_norm(
                "norm", z, use_running_average=use_running_average, instead=instead, **types
            )
    raise ValueError(f"attention_norm={norm!r} is unknown: write 'batch', 'layer' or 'none'.")


def batch_norm(
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
    """A batch norm that finds out by itself whether it is training; call it inside a compact method.

    Args:
        name: of the submodule.
        z: `[B, ..., C]`.
        use_running_average: whether running statistics are used; None: exactly when the collection
            `batch_stats` is not mutable.
        instead: what else one could do where there is nothing to normalise, for the message.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        momentum: share of the running statistics that a step keeps (1 - torch's).
        scale_init: initialises the scale.

    Raises:
        ValueError: for batch statistics of a single vector.
    """
    module = nn.BatchNorm(
        momentum=momentum,
        epsilon=1e-5,
        scale_init=scale_init,
        dtype=dtype,
        param_dtype=param_dtype,
        name=name,
    )
    running = use_running_average
    if running is None:
        running = not module.is_mutable_collection("batch_stats")
    if math.prod(z.shape[:-1]) == 1 and not (running or module.is_initializing()):
        raise ValueError(
            "a batch norm inside attention cannot normalise the one vector of a batch of size 1: its "
            "variance is zero and the attention would ignore the input. Train with two or more "
            f"samples, {instead}, or pass use_running_average=True."
        )
    return module(z.astype(dtype), use_running_average=running)


def head(
    name: str,
    z: Array,
    features: int,
    *,
    dtype: jnp.dtype,
    param_dtype: jnp.dtype,
    use_bias: bool = True,
) -> Array:
    """W z + b, the logits of one kind of attention; call it inside a compact method."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        kernel_init=he_normal_fan_out,
        dtype=dtype,
        param_dtype=param_dtype,
        name=name,
    )(z)


def per_candidate(init: nn.initializers.Initializer) -> nn.initializers.Initializer:
    """Applies an initialiser to each of the K kernels of a stack `[K, ...]` by itself.

    Applied to the stack it would count K as a part of the receptive field and get the fan wrong.
    """

    def init_stack(key: Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> Array:
        keys = jax.random.split(key, shape[0])
        return jnp.stack([init(k, tuple(shape[1:]), dtype) for k in keys])

    return init_stack
