"""A dynamic network that starts as a trained static one, and which of its parameters came from there.

The study (Bhati and Sherawat, Comprehensive Study Dynamic CNN, section 2.3) starts its dynamic layers from
a trained static network and freezes them, and says no more. Decided here: the candidates are copies that
differ by noise; attention begins neutral, so that the new network computes what the old one did; and what
is to be frozen are the candidates and not their attention, or nothing dynamic would be learned.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from dyn.interop.compensation import fill_warehouses, open_gates, undo_spectral_norms
from dyn.layers.fd_conv import kernel_to_spectrum, spectrum_shape
from dyn.layers.warehouse_sharing import Warehouses

Array = jax.Array
Path = tuple[str, ...]

_SIGMOIDS = ("channel", "filter", "spatial")
# The linear layers that decide the attention, with the local one of `FDConv`, and the one behind the latent
# space of `DCDConv`.
_HEADS = (
    *(("attention", name) for name in (*_SIGMOIDS, "kernel")),
    ("routing",),
    ("local", "conv"),
    ("expand",),
)


def warm_start(
    dynamic_variables: Mapping[str, Any],
    static_variables: Mapping[str, Any],
    *,
    noise: float = 0.1,
    key: Array | None = None,
    warehouses: Warehouses | None = None,
) -> dict[str, Any]:
    """Starts a dynamic network from the variables of a trained static one.

        W_k = c (W + noise |W| e_k),    e_k normal with sum_k e_k = 0

    where |W| is the root mean square of each filter of the trained kernel W. Whatever has the same path
    and shape in both networks (the classifier, norms and their statistics, layers that stayed static) is
    taken over. A kernel `[*k, I/g, O]` that has become candidates `[K, *k, I/g, O]` gives K of them by
    the formula, and a bias `(O,)` that has become `(K, O)` gives K copies.

    The function is kept, for any input, noise and temperature and up to rounding: the linear layers that
    decide the attention get kernels of zero, so that it weighs all inputs and candidates alike, the noise
    adds up to nothing, and c undoes what the attention then amounts to. c is 1 for a softmax
    (`DynamicConv`, `PixelDynamicConv`), 2 for each of the sigmoids of `ODConv` (so 8, and 4 for a 1x1 kernel
    or a depthwise one), 2 / K for `CondConv`, 1 / K for the kernels of `GatedConv`, whose gates begin on,
    and 1 for `DCDConv`, `DCDDense` and `FDConv`. It makes no difference where the context comes from, another
    input or a `KernelRepresentation`.

    Others need something beside them, which `dyn.interop.compensation` describes:

    - `SqueezeExcite` and `CBAM`: gates of one half; the block's last norm, in front of them, is made two or
      four times as large.
    - `SpectralNormConv`: the norm behind it is given what its kernels lose, in inference; in training, where
      norms use the statistics of the batch, to the norms' epsilon. Noise is undone for temperature 1
      (elsewhere the difference is its share times that of the candidates' spectral norms).
    - `WarehouseConv`: the cells are the trained kernels' blocks, each with one of its own, as its blend of 1
      has it too (there kernels are larger by a thousandth). Shared ones need `warehouses`.

    The function *cannot* be kept by `RotatedConv` with kernels larger than 1x1: the mean of a kernel in all
    orientations is another kernel, as is the largest response; it starts from the trained kernels all the
    same. Nor by a `WarehouseConv` with a `cell_ratio` below 1, which has fewer numbers, nor by a
    `CondConv` whose router is another layer's: both are refused. Nor by gates with `active=`, and by a
    `SqueezeExcite`, `CBAM` or `SpectralNormConv` without a norm beside it that is called as those of
    `dyn.models.ResNet` are; those stay as they were made.

    Noise is what the mixture can choose from. Between equal candidates there is nothing to choose: their
    weights have no gradient, they themselves have equal ones, and with `noise=0` a `DynamicConv` remains a
    static convolution for good. (The sigmoids of `ODConv` learn all the same.) Candidates that are to be
    frozen never become more different than the noise made them: take more of it there.

    Args:
        dynamic_variables: of the new network, as its `init` made them.
        static_variables: of the trained one: the same model with static layers, by the same names.
        noise: how far the candidates lie from the trained kernel, as a share of it; none for K = 1.
        key: for the noise; may be left out if that is 0.
        warehouses: of a network made by `share_kernels`, what makes its convolutions (`net.conv`).

    Returns:
        A copy of `dynamic_variables` that starts where the static network ended. What that had not (the
        rest of the attention, its statistics, temperatures) stays as it was.

    Raises:
        ValueError: for a variable of the static network without a counterpart or with one of another
            shape, for a dynamic layer that the static network does not have, for candidates whose weights
            are decided in another layer, for warehouses with too few cells, and for noise without a key.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from dyn.interop import warm_start
        >>> from dyn.layers import ODConv
        >>> x = jax.random.normal(jax.random.key(0), (2, 9, 3))
        >>> static, dynamic = nn.Conv(8, (3,)), ODConv(8, (3,), num_kernels=4)
        >>> trained = static.init(jax.random.key(1), x)
        >>> variables = dynamic.init(jax.random.key(2), x)
        >>> variables = warm_start(variables, trained, key=jax.random.key(3))
        >>> y = dynamic.apply(variables, x)
        >>> bool(jnp.allclose(y, static.apply(trained, x), atol=1e-5))
        True
    """
    if noise < 0 or (noise > 0 and key is None):
        raise ValueError(
            f"noise={noise} must be positive and have a key, such as key=jax.random.key(0); or write "
            "noise=0 for candidates that are equal."
        )
    if "params" not in dynamic_variables or "params" not in static_variables:
        raise ValueError(
            'both networks\' variables are needed, {"params": ..., ...}, not parameters alone.'
        )
    started = traverse_util.flatten_dict(dict(dynamic_variables), keep_empty_nodes=True)
    trained = traverse_util.flatten_dict(dict(static_variables))
    layers = dict(_layers(dynamic_variables["params"], ("params",)))
    cells, held = fill_warehouses(started, trained, warehouses)
    started |= cells

    for number, (path, value) in enumerate(sorted(trained.items())):
        if path in held:
            continue
        layer = layers.get(path[:-1], {})
        # What `FDConv` has instead of a kernel is its Fourier transform.
        transformed = path[-1] == "kernel" and "spectrum" in layer
        target = (*path[:-1], "spectrum") if transformed else path
        mine = started.get(target)
        if not hasattr(mine, "shape"):
            raise ValueError(
                f"{'/'.join(path)}, of shape {value.shape} in the static network, is not in the dynamic "
                "one: build both from the same model, so that the same layers have the same names."
            )
        if mine.shape == (spectrum_shape(value.shape) if transformed else value.shape):
            value = kernel_to_spectrum(value) if transformed else value
        elif len(mine.shape) == len(value.shape) + 1 and mine.shape[1:] == value.shape:
            copies = jnp.broadcast_to(value, mine.shape)
            if path[-1] == "kernel" and noise and len(copies) > 1:
                copies = copies + noise * _different(jax.random.fold_in(key, number), copies)
            value = copies * _scale(layer, len(copies), path)
        else:
            raise ValueError(
                f"{'/'.join(path)} has shape {value.shape} in the static network, and "
                f"{'/'.join(target)} {mine.shape} in the dynamic one: it cannot be started from that."
            )
        started[target] = jnp.asarray(value, mine.dtype)

    for path, layer in layers.items():
        if not _has_attention(layer):
            continue
        if (*path, "kernel") not in trained:
            shape = layer.get("kernel", layer.get("spectrum")).shape
            raise ValueError(
                f"the dynamic layer {'/'.join(path)}, with a kernel of shape {shape}, is not in the static "
                "network: build both from the same model, so that the same layers have the same names."
            )
        # The same attention for every input, whatever the layers in front of the heads say.
        for head in _HEADS:
            decides = (*path, *head, "kernel")
            if decides in started:
                started[decides] = jnp.zeros_like(started[decides])
    started |= open_gates(started, trained)
    started |= undo_spectral_norms(started)
    return traverse_util.unflatten_dict(started)


def candidate_kernels(params: Mapping[str, Any]) -> Any:
    """Which parameters are the kernels and biases of dynamic convolutions: what the study freezes.

    They are those that `warm_start` took from a static layer that has become a dynamic one: `kernel` (or
    `spectrum`) and `bias` beside a layer's own `attention` or `routing`. Their attention, the layers that
    stayed static, norms and classifiers are not among them, nor are the cells of a `Warehouse` and
    the experts of a `CondConv` whose router is another layer's.

    With optax, of an optimiser `o`, all but they learn:

        optax.chain(o, optax.masked(optax.set_to_zero(), candidate_kernels))

    Args:
        params: the parameters of a network, arrays or their shapes.

    Returns:
        A tree like `params`, True for each leaf to freeze and False for the others.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.interop import candidate_kernels
        >>> from dyn.layers import DynamicConv
        >>> variables = DynamicConv(8, (3,)).init(jax.random.key(0), jnp.ones((2, 9, 3)))
        >>> frozen = candidate_kernels(variables["params"])
        >>> frozen["kernel"], frozen["bias"], frozen["attention"]["kernel"]["bias"]
        (True, True, False)
    """
    found = {
        (*path, name)
        for path, layer in _layers(params)
        if _has_attention(layer) and ("spectrum" in layer or len(layer["kernel"].shape) > 3)
        for name in ("kernel", "spectrum", "bias")
    }
    return traverse_util.path_aware_map(lambda path, _: path in found, dict(params))


def _layers(tree: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Every layer in a tree of parameters that has a kernel of its own: its path, and its parameters."""
    if any(hasattr(tree.get(name), "shape") for name in ("kernel", "spectrum")):
        yield path, tree
    for name, child in tree.items():
        if isinstance(child, Mapping):
            yield from _layers(child, (*path, name))


def _has_attention(layer: Mapping[str, Any]) -> bool:
    return "attention" in layer or "routing" in layer


def _scale(layer: Mapping[str, Any], num_kernels: int, path: Path) -> float:
    """c: what K equal candidates are multiplied by, so that neutral attention makes one of them.

    The names of the parameters are fixed for every method; they tell which attention this is.

    Raises:
        ValueError: if the layer's parameters do not say how its candidates are weighed.
    """
    attention = layer.get("attention", {})
    if "routing" in layer:
        return 2 / num_kernels
    if "excite" in attention:  # DCDConv, whose filters' weights are one at zero
        return 1.0
    if "squeeze" in attention:
        return 2.0 ** sum(name in attention for name in _SIGMOIDS)
    if attention or num_kernels == 1:  # gates: the kernels that are on are added
        return 1 / num_kernels
    raise ValueError(
        f"{'/'.join(path)} has {num_kernels} candidates, but the layer has no attention of its own: how "
        "they are weighed elsewhere cannot be seen from its parameters, so it cannot be started."
    )


def _different(key: Array, copies: Array) -> Array:
    """Noise for K equal kernels `[K, ..., O]`: as large as each filter, and zero when added over K."""
    kernels = len(copies)
    size = jnp.sqrt(jnp.mean(copies**2, axis=tuple(range(copies.ndim - 1)), keepdims=True))
    normal = jax.random.normal(key, copies.shape, copies.dtype)
    centred = normal - jnp.mean(normal, axis=0, keepdims=True)
    # What centring takes from the variance.
    return size * centred * (kernels / (kernels - 1)) ** 0.5
