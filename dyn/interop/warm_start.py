"""Starts a dynamic network as a trained static one, and selects the parameters that came from it.

The study (Bhati and Sherawat, Comprehensive Study Dynamic CNN, section 2.3) starts its dynamic layers from
a trained static network and freezes them, without details. Decided here: the new network computes the old
one's function, so that either the candidates are equal or the attention to them is; and only the candidates
are to be frozen, not their attention, or nothing dynamic would be learned.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from dyn.interop.compensation import (
    fill_warehouses,
    open_gates,
    rest_taps,
    straighten_relus,
    undo_spectral_norms,
)
from dyn.layers.fd_conv import kernel_to_spectrum, spectrum_shape
from dyn.layers.warehouse_sharing import Warehouses
from dyn.ops.dtypes import float32_or_wider

Array = jax.Array
Path = tuple[str, ...]

_SIGMOIDS = ("channel", "filter", "spatial")
_MIXING = (("attention", "kernel"), ("attention", "mixture"))
# The linear layers that compute the attention, the local one and that of the bands of `FDConv`, and the one
# after the latent space of `DCDConv`.
_HEADS = (
    *(("attention", name) for name in _SIGMOIDS),
    *_MIXING,
    ("local", "conv"),
    *(("bands", f"conv{number}") for number in range(1, 10)),
    ("expand",),
)
_SAME_MODEL = ": build both from the same model, so that the same layers have the same names."

_BY_CHANNEL = (
    ": a layer that convolves each channel by itself (Involution, DecoupledDynamicFilter, "
    "SequenceDynamicConv) cannot start from a convolution; leave such layers static, or train from scratch."
)


def warm_start(
    dynamic_variables: Mapping[str, Any],
    static_variables: Mapping[str, Any],
    *,
    awake: bool = True,
    noise: float = 0.1,
    key: Array | None = None,
    warehouses: Warehouses | None = None,
    norm_epsilon: float = 1e-5,
) -> dict[str, Any]:
    """Starts a dynamic network from the variables of a trained static one.

        W_k = c W    or    W_k = c (W + noise |W| e_k),    e_k normal with sum_k e_k = 0

    where |W| is the root mean square of each filter of the trained kernel W. Variables with the same path
    and shape in both networks (the classifier, norms and their statistics, layers that stayed static) are
    copied. A kernel `[*k, I/g, O]` that has become candidates `[K, *k, I/g, O]` gives K of them by the
    formula, and a bias `(O,)` that has become `(K, O)` gives K copies.

    The new network computes the same function for any input, noise and temperature, up to rounding. Where the
    weights of the candidates sum to one (`DynamicConv`, `ODConv`, `PixelDynamicConv`, `FrequencyDynamicConv`,
    `SpectralNormConv`) they start equal, without noise: any mixture of equal kernels is that kernel. The
    attention that mixes them stays as initialised, so that each candidate learns most from the inputs that
    have most of it. The experts of `CondConv` start equal, too: they are paired, with opposite logits, so
    that their weights always have the same sum. All other attention starts neutral, and with `awake=False`
    so does this: its linear layers get kernels of zero, so that it weights all inputs and candidates equally,
    and noise, which sums to zero, makes the candidates different. c undoes the constant factor of the
    attention: 1 for a softmax (`DynamicConv`, `PixelDynamicConv`, `FrequencyDynamicConv` without dilations),
    2 for each of the sigmoids of `ODConv` (so 8, and 4 for a 1x1 kernel or a depthwise one), 2 / K for
    `CondConv`, 1 / K for the kernels of `GatedConv`, whose gates start open, 1 for `DCDConv` and `DCDDense`,
    and 1 / R for the R spectra of `FDConv`. Dense layers start as their convolutions do. The source of the
    context, another input or a `KernelRepresentation`, makes no difference.

    Some layers need an adjustment elsewhere, which `dyn.interop.compensation` describes:

    - `SqueezeExcite`, `EfficientChannelAttention`, `CBAM` and `CoordinateAttention`: gates of one half; the
      block's last norm, before them, is made twice as large for each gate.
    - `DeformableConv`: no offsets, and weights of one half, which a kernel twice as large makes up for.
    - `DynamicReLU`: the coefficients of ReLU, in forms 'A' and 'B'.
    - `SpectralNormConv`: the norm after it, `norm1` or `conv1_norm` for `conv1`, is rescaled. In inference
      this is exact; in training, where norms use the statistics of the batch, up to their epsilon. Noise is
      undone at temperature 1 (elsewhere the difference is the noise times the differences of the candidates'
      spectral norms).
    - `WarehouseConv` and `WarehouseDense`: the cells are the blocks of the trained kernels, each in its own
      cell, which is also its cell at a blend of 1 (kernels are then larger by a thousandth). Shared ones
      need `warehouses`.

    The function is *not* kept by `RotatedConv` with kernels larger than 1x1, because a mixture of a
    kernel's orientations is another kernel, as is the largest response, and by `FrequencyDynamicConv` with
    dilations, which the variables do not show; they still start from the trained kernels. Gates with
    `active=`, and gates at the ends of blocks without a norm named as in `dyn.models`, stay as initialised.
    Errors are a `WarehouseConv` with a `cell_ratio` below 1, which has too few numbers; a `CondConv` with
    another layer's router, unless that is a module `routing` beside it as in `EfficientNet`, because it does
    not know its weights; a `SpectralNormConv` without a norm of such a name; and a `SelectiveKernel` and
    layers that convolve each channel by itself, such as `Involution`, which have no place for a static
    kernel.

    Candidates that are equal under neutral attention stay so: their weights have no gradient, and they have
    equal ones. So with `awake=False, noise=0` a `DynamicConv` remains a static convolution forever. (The
    sigmoids of `ODConv` learn even then.) Noise leaves mixtures nearly equal for all inputs, whatever its
    size (docs/studies.md has the measurement), which is why mixtures start awake. Candidates that will be
    frozen never differ more than at the start: there write `awake=False` and use more noise.

    Args:
        dynamic_variables: variables of the new network, as initialised.
        static_variables: variables of the trained network: the same model with static layers of the same
            names.
        awake: whether attention stays as initialised where the weights of the candidates have a fixed sum.
        noise: distance of other candidates from the trained kernel, as a share of it; not used for K = 1.
        key: PRNG key of the noise; not needed where none is used.
        warehouses: `net.conv` of a network made by `share_kernels`.
        norm_epsilon: of the norms after `SpectralNormConv`, which variables do not show; MobileNetV3 and
            networks from TensorFlow have 1e-3.

    Returns:
        A copy of `dynamic_variables` that starts as the trained network. Variables without a counterpart
        there (the rest of the attention, its statistics, temperatures) keep their values.

    Raises:
        ValueError: for a variable of the static network whose counterpart is missing or has another shape,
            for a dynamic layer that the static network does not have, for layers that `nn.scan` or `nn.vmap`
            has stacked, for candidates that are weighted by another layer, for warehouses with too few cells,
            and for noise without a key.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from dyn.interop import warm_start
        >>> from dyn.layers import ODConv
        >>> x = jax.random.normal(jax.random.key(0), (2, 9, 3))
        >>> static, dynamic = nn.Conv(8, (3,)), ODConv(8, (3,), num_kernels=4)
        >>> trained = static.init(jax.random.key(1), x)
        >>> variables = dynamic.init(jax.random.key(2), x)
        >>> variables = warm_start(variables, trained)
        >>> y = dynamic.apply(variables, x)
        >>> bool(jnp.allclose(y, static.apply(trained, x), atol=1e-5))
        True
    """
    if noise < 0:
        raise ValueError(f"noise={noise} must be positive, or 0 for equal candidates.")
    if "params" not in dynamic_variables or "params" not in static_variables:
        raise ValueError(
            'pass the variables of both networks, {"params": ..., ...}, not parameters.'
        )
    started: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(
        dict(dynamic_variables), keep_empty_nodes=True
    )
    trained = traverse_util.flatten_dict(dict(static_variables))
    layers = dict(_find_layers(dynamic_variables["params"], ("params",)))
    _check_not_stacked(layers)
    cells, held = fill_warehouses(started, trained, warehouses)
    started |= cells

    for number, (path, value) in enumerate(sorted(trained.items())):
        if path in held:
            continue
        layer = layers.get(path[:-1], {})
        # `FDConv` has the Fourier transform of a kernel.
        transform = path[-1] == "kernel" and "spectrum" in layer
        target = (*path[:-1], "spectrum") if transform else path
        old = started.get(target)
        if hasattr(old, "shape") and old.shape[1:] == (1, *value.shape):
            value = value[None]  # a dense layer's matrix is a kernel of one tap
        if old is None or not hasattr(old, "shape"):
            by_channel = any(other[: len(path)] == (*path[:-1], "attention") for other in started)
            raise ValueError(
                f"{'/'.join(path)}, of shape {value.shape} in the static network, is not in the dynamic "
                f"one{_BY_CHANNEL if by_channel and path[-1] == 'kernel' else _SAME_MODEL}"
            )
        if jnp.issubdtype(value.dtype, jnp.floating):  # noise in bfloat16 would not sum to zero
            value = jnp.asarray(value, float32_or_wider(value))
        if old.shape == (spectrum_shape(value.shape) if transform else value.shape):
            new = kernel_to_spectrum(value) if transform else value
        elif transform and old.shape[1:] == spectrum_shape(value.shape):
            # Several spectra, which add up.
            copies = jnp.broadcast_to(value / len(old), (len(old), *value.shape))
            new = jax.vmap(kernel_to_spectrum)(_add_noise(copies, noise, key, number))
        elif len(old.shape) == len(value.shape) + 1 and old.shape[1:] == value.shape:
            copies = jnp.broadcast_to(value, old.shape)
            router = layers.get((*path[:-2], "routing"))
            equal = awake and (_is_mixture(layer) or _is_routed(layer, router))
            if path[-1] == "kernel" and not equal:
                copies = _add_noise(copies, noise, key, number)
            new = copies * _neutral_scale(layer, len(copies), path, router)
        else:
            raise ValueError(
                f"{'/'.join(path)} has shape {value.shape} in the static network, which does not fit "
                f"{'/'.join(target)} of shape {old.shape} in the dynamic one."
            )
        started[target] = jnp.asarray(new, old.dtype)

    _neutralise_attention(started, trained, layers, awake)
    started |= open_gates(started, trained)
    started |= rest_taps(started, trained)
    started |= straighten_relus(started, trained)
    started |= undo_spectral_norms(started, norm_epsilon)
    return traverse_util.unflatten_dict(started)


def _check_not_stacked(layers: Mapping[Path, Mapping[str, Any]]) -> None:
    """Checks that no layer is a stack, whose first axis could be taken for that of the candidates.

    Raises:
        ValueError: for a layer with attention whose parameters have an axis too many.
    """
    for path, layer in layers.items():
        branch = {**layer, **layer.get("attention", {})}
        heads = [branch.get(name) for name in ("squeeze", "kernel", "filter", "routing")]
        kernels = [head["kernel"] for head in heads if isinstance(head, Mapping)]
        if any(len(kernel.shape) > 2 for kernel in kernels):
            raise ValueError(
                f"{'/'.join(path)} is several layers, stacked by nn.scan or nn.vmap: start them one by one, "
                "with jax.vmap(warm_start) over the stacked axis of their variables in both networks."
            )


def _neutralise_attention(
    started: dict[Path, Any],
    trained: Mapping[Path, Any],
    layers: Mapping[Path, Mapping[str, Any]],
    awake: bool,
) -> None:
    """Sets the kernels of the attention's heads to zero, so that attention does not depend on the input.

    If `awake`, those that mix candidates stay as they are, and the experts of routers are paired.

    Raises:
        ValueError: for a dynamic layer that the static network does not have.
    """
    for path, layer in layers.items():
        if path[-1] == "routing" and (*path, "kernel") not in trained:
            router = started[(*path, "kernel")]
            started[(*path, "kernel")] = _pair(router) if awake else jnp.zeros_like(router)
        if not _has_attention(layer):
            continue
        if (*path, "kernel") not in trained:
            shape = layer.get("kernel", layer.get("spectrum")).shape
            raise ValueError(
                f"the dynamic layer {'/'.join(path)}, with a kernel of shape {shape}, is not in the static "
                f"network{_SAME_MODEL}"
            )
        kept = _MIXING if awake and _is_mixture(layer) else ()
        for head in _HEADS:
            kernel = (*path, *head, "kernel")
            if kernel in started and head not in kept:
                started[kernel] = jnp.zeros_like(started[kernel])


def candidate_kernels(params: Mapping[str, Any]) -> Any:
    """Marks the kernels and biases of dynamic convolutions, which the study freezes.

    They are the parameters that `warm_start` took from a static layer for a dynamic one: `kernel` (or
    `spectrum`) and `bias` of layers with `attention` or `routing`. Attention, static layers, norms and
    classifiers (layers called `head`) are not marked, nor are the cells of a `Warehouse`, and the experts of
    a `CondConv` with another layer's router only if that is a module `routing` beside it.

    With optax and an optimiser `o`, this trains all other parameters:

        optax.chain(o, optax.masked(optax.set_to_zero(), candidate_kernels))

    Args:
        params: the parameters of a network, arrays or their shapes.

    Returns:
        A tree like `params`: True for each leaf to freeze, False for the others.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.interop import candidate_kernels
        >>> from dyn.layers import DynamicConv
        >>> variables = DynamicConv(8, (3,)).init(jax.random.key(0), jnp.ones((2, 9, 3)))
        >>> frozen = candidate_kernels(variables["params"])
        >>> frozen["kernel"], frozen["bias"], frozen["attention"]["kernel"]["bias"]
        (True, True, False)
    """
    layers = dict(_find_layers(params))
    candidates = {
        (*path, name)
        for path, layer in layers.items()
        if (_has_candidates(layer) if _has_attention(layer) else _is_routed_beside(path, layers))
        and path[-1:] != ("head",)
        for name in ("kernel", "spectrum", "bias")
    }
    return traverse_util.path_aware_map(lambda path, _: path in candidates, dict(params))


def _pair(router: Array) -> Array:
    """Pairs the experts of a router `[D, K]`, with opposite logits: their sigmoids add up to K / 2."""
    half = router[:, : router.shape[1] // 2]
    rest = jnp.zeros_like(router[:, 2 * half.shape[1] :])
    return jnp.concatenate([half, -half, rest], axis=1)


def _has_candidates(layer: Mapping[str, Any]) -> bool:
    return "spectrum" in layer or len(layer["kernel"].shape) > 3


def _is_routed_beside(path: Path, layers: Mapping[Path, Mapping[str, Any]]) -> bool:
    """Returns whether a module `routing` beside a layer weights its kernels; others there may be static."""
    routing, kernel = layers.get((*path[:-1], "routing")), layers[path].get("kernel")
    if routing is None or kernel is None:
        return False
    beside = [
        one["kernel"]
        for other, one in layers.items()
        if other[:-1] == path[:-1] and "kernel" in one
    ]
    has_axis = kernel.ndim > 3 and kernel.ndim == max(one.ndim for one in beside)
    return has_axis and kernel.shape[0] == routing["kernel"].shape[-1]


def _find_layers(
    tree: Mapping[str, Any], path: Path = ()
) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yields path and parameters of every layer with a kernel."""
    if any(hasattr(tree.get(name), "shape") for name in ("kernel", "spectrum")):
        yield path, tree
    for name, child in tree.items():
        if isinstance(child, Mapping):
            yield from _find_layers(child, (*path, name))


def _has_attention(layer: Mapping[str, Any]) -> bool:
    return "attention" in layer or "routing" in layer


def _neutral_scale(
    layer: Mapping[str, Any], num_kernels: int, path: Path, router: Mapping[str, Any] | None
) -> float:
    """Returns the factor that makes K equal kernels under neutral attention reproduce one.

    The method is recognised by the names of its parameters, which are fixed.

    Args:
        layer: the parameters of the layer.
        num_kernels: K.
        path: of the kernel, for the message.
        router: the parameters of a module `routing` beside the layer, which layers without attention share.

    Raises:
        ValueError: if the layer's parameters do not show how its candidates are weighted.
    """
    attention = layer.get("attention", {})
    if _is_routed(layer, router):
        return 2 / num_kernels
    if "excite" in attention:  # DCDConv: its filter weights are 1 for zero kernels
        return 1.0
    if "squeeze" in attention or "mixture" in attention:
        return 2.0 ** sum(name in attention for name in _SIGMOIDS)
    if attention or num_kernels == 1:  # GatedConv: open gates add up
        return 1 / num_kernels
    raise ValueError(
        f"{'/'.join(path)} has {num_kernels} candidates that are weighted by another layer: only layers with "
        "attention of their own can be started from a static network."
    )


def _is_mixture(layer: Mapping[str, Any]) -> bool:
    """Returns whether a softmax weights a layer's candidates; gates have a `kernel` without a squeeze."""
    attention = layer.get("attention", {})
    squeezed = "squeeze" in attention and "kernel" in attention
    return "kernel" in layer and ("mixture" in attention or squeezed)


def _is_routed(layer: Mapping[str, Any], router: Mapping[str, Any] | None) -> bool:
    """Returns whether sigmoids of a router, in the layer or beside it, weight a layer's candidates."""
    return "routing" in layer or (router is not None and not layer.get("attention"))


def _add_noise(copies: Array, noise: float, key: Array | None, number: int) -> Array:
    """Adds noise to K equal kernels `[K, ..., O]`: a share of each filter, and zero when summed over K.

    Raises:
        ValueError: if there is no key.
    """
    if not noise or len(copies) == 1:
        return copies
    if key is None:
        raise ValueError(
            f"noise={noise} needs a key, such as key=jax.random.key(0); write noise=0 for equal candidates."
        )
    kernels, key = len(copies), jax.random.fold_in(key, number)
    size = jnp.sqrt(jnp.mean(copies**2, axis=tuple(range(copies.ndim - 1)), keepdims=True))
    normal = jax.random.normal(key, copies.shape, copies.dtype)
    centred = normal - jnp.mean(normal, axis=0, keepdims=True)
    # Centring reduces the variance by (K - 1) / K.
    return copies + noise * size * centred * (kernels / (kernels - 1)) ** 0.5
