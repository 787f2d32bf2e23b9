"""Folds the batch norms of a trained network into the convolutions before them, for inference.

    norm(conv(x, W) + b) = conv(x, s W) + s b + t,    s = scale / sqrt(var + eps),  t = bias - s mean

with one s for each output feature. A layer that mixes candidates W_k by attention computes
conv(x, sum_k a_k W_k), so that s goes into every candidate.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.linen.dtypes import canonicalize_dtype
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core as jex_core

from dyn import layers
from dyn.layers.convolution import ConvLayer
from dyn.layers.norms import BatchNorm
from dyn.layers.replacing import Host, ReplacedLayers, is_closed
from dyn.layers.spectral_norm import spectral_norms

Array = jax.Array
Path = tuple[str, ...]
Flat = dict[Path, Any]

# The parameters whose last axis is the output features: scaled all together, they scale the outputs of the
# layer. Every layer of `tests/dyn/layer_cases.py` is tested.
SCALED: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv: ("kernel", "bias"),
    layers.Conv: ("kernel", "bias"),
    layers.ODConv: ("kernel", "bias"),
    layers.DynamicConv: ("kernel", "bias"),
    layers.CondConv: ("kernel", "bias"),
    layers.PixelDynamicConv: ("kernel", "bias"),
    layers.FrequencyDynamicConv: ("kernel", "bias"),
    layers.DeformableConv: ("kernel", "bias"),
    layers.GatedConv: ("kernel", "bias"),
    layers.RotatedConv: ("kernel", "bias"),
    layers.SpectralNormConv: ("kernel", "bias"),
    layers.DCDConv: ("kernel", "bias", "expand/kernel"),
}

# The norms that compute the formula above. A class that derives from them may compute another.
NORMS = (nn.BatchNorm, BatchNorm)


class Folded(NamedTuple):
    """A network without the norms that could be folded.

    Attributes:
        network: called like the network that was folded, with `variables`; for inference only.
        variables: fewer than before: of a norm that was folded only `bias` is left, which is t.
        folded: the paths of the norms that were folded, such as 'stage1_block1/norm1'.
        kept: the paths of the others, and why.
    """

    network: nn.Module
    variables: dict[str, Any]
    folded: tuple[str, ...]
    kept: dict[str, str]


def fold_norms(
    network: nn.Module, variables: Mapping[str, Any], *inputs: Any, **fields: Any
) -> Folded:
    """Folds each batch norm that follows a convolution into its kernels, which computes the same.

    The network is traced, not run, to see which norm has the output of which convolution, and nothing else
    has it; names do not matter, and it may be any Linen network. Norms are folded into `nn.Conv`, `Conv`,
    `ODConv`, `DynamicConv`, `CondConv`, `PixelDynamicConv`, `FrequencyDynamicConv`, `DeformableConv`,
    `GatedConv`, `DCDConv`, `RotatedConv` (unless it pools by attention, or by the maximum with a negative
    scale), and `SpectralNormConv`, which becomes a
    `DynamicConv` of kernels that are divided by their spectral norms. They stay after `FDConv`, whose
    kernels are spectra, after `WarehouseConv`, whose cells several blocks share, and after other layers.
    Norms inside attention stay, too, and so do subclasses of `nn.BatchNorm`, and what is below
    `nn.map_variables`, which would map the folded kernels.

    The outputs are those of the network up to rounding: in float32 about 1e-6 of the largest. A network in
    bfloat16 rounds other kernels than before.

    Args:
        network: the network.
        variables: its variables, trained.
        inputs: the inputs of the network, arrays or `jax.ShapeDtypeStruct`s.
        fields: its other arguments; those that make it run as in inference, such as `train=False`.

    Returns:
        The network without norms, its variables, and what was folded.

    Raises:
        ValueError: if a norm uses the statistics of the batch.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from functools import partial
        >>> from dyn.interop import fold_norms
        >>> from dyn.layers import ODConv
        >>> from dyn.models import BasicBlock, ResNet
        >>> conv = partial(ODConv, num_kernels=2)
        >>> net = ResNet((1,), BasicBlock, num_classes=10, width=4, stem="small", conv=conv)
        >>> x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
        >>> variables = net.init(jax.random.key(0), x)
        >>> folded = fold_norms(net, variables, x)
        >>> folded.folded
        ('stage1_block1/norm1', 'stage1_block1/norm2', 'stem_norm')
        >>> y = folded.network.apply(folded.variables, x)
        >>> bool(jnp.allclose(y, net.apply(variables, x), atol=1e-5))
        True
    """
    flat: Flat = traverse_util.flatten_dict(dict(variables), keep_empty_nodes=True)
    folded: dict[Path, Path] = {}
    spectral: set[Path] = set()
    kept: dict[str, str] = {}
    for norm in _trace_norms(network, variables, inputs, fields):
        reason = _find_obstacle(norm, flat)
        if reason:
            kept["/".join(norm.path)] = reason
            continue
        assert norm.conv is not None
        conv = norm.conv.module
        scale, shift = _compute_affine(norm, flat)
        if type(conv) is layers.SpectralNormConv:
            spectral.add(conv.path)
            _divide_by_spectral_norms(flat, conv)
        for name in SCALED[type(conv)]:
            path = ("params", *conv.path, *name.split("/"))
            if path in flat:
                flat[path] = _cast(np.asarray(flat[path], np.float64) * scale, flat[path])
        for path in [p for p in flat if p[1 : 1 + len(norm.path)] == norm.path]:
            del flat[path]
        like = jax.ShapeDtypeStruct(shift.shape, norm.module.param_dtype)
        flat["params", *norm.path, "bias"] = _cast(shift, like)
        folded[norm.path] = conv.path
    collections = {name: {} for name in variables}
    return Folded(
        ReplacedLayers(Host(network), _FoldedLayers(frozenset(folded), frozenset(spectral))),
        collections | traverse_util.unflatten_dict(flat),
        tuple(sorted("/".join(path) for path in folded)),
        kept,
    )


class Shift(nn.Module):
    """Adds the parameter `bias`: what is left of a norm that was folded.

    Attributes:
        dtype: as of the norm.
        param_dtype: as of the norm.
        use_running_average: as of the norm.
    """

    dtype: Any
    param_dtype: Any
    use_running_average: bool | None

    @nn.compact
    def __call__(
        self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None
    ) -> Array:
        """Returns `x + bias`; the arguments are the norm's.

        Raises:
            ValueError: in training.
        """
        del mask
        if not _merge(self.use_running_average, use_running_average):
            raise ValueError(
                f"{'/'.join(self.path)} was folded into a convolution by fold_norms, and has no statistics "
                "to train with: train the network that was folded."
            )
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
        dtype = canonicalize_dtype(x, bias, dtype=self.dtype)
        with jax.numpy_dtype_promotion("standard"):  # also if the caller has forbidden it
            return (x + jax.lax.broadcast_to_rank(bias, x.ndim)).astype(dtype)


@dataclasses.dataclass(frozen=True)
class _FoldedLayers:
    """Makes what stands in for the norms that were folded, and for convolutions of spectral norm one."""

    norms: frozenset[Path]
    spectral: frozenset[Path]

    def __call__(self, module: Any) -> Any:
        if module.path in self.norms and type(module) in NORMS:

            def make(**place: Any) -> nn.Module:
                return Shift(module.dtype, module.param_dtype, module.use_running_average, **place)

            return make
        if module.path in self.spectral and type(module) is layers.SpectralNormConv:
            names = [field.name for field in dataclasses.fields(layers.DynamicConv)]
            fields = {n: getattr(module, n) for n in names if n not in ("parent", "name")}
            return lambda **place: layers.DynamicConv(**fields, **place)
        return None


@dataclasses.dataclass
class _Conv:
    """A convolution, the output of its last call, and the number of its calls."""

    module: Any
    output: Array
    calls: int = 0


@dataclasses.dataclass
class _Norm:
    """A batch norm, and the convolution whose output it has.

    Attributes:
        module: the norm.
        conv: the convolution; None if it has anything else.
        calls: how often it is called.
        alone: whether nothing else has the output of the convolution.
    """

    module: Any
    conv: _Conv | None
    calls: int = 1
    alone: bool = False

    @property
    def path(self) -> Path:
        """Path of the norm in the network."""
        return self.module.path


def _trace_norms(
    network: nn.Module, variables: Mapping[str, Any], inputs: Any, fields: Any
) -> list[_Norm]:
    """Traces the network, and returns its norms with the convolutions before them.

    Raises:
        ValueError: if a norm uses the statistics of the batch.
    """
    convs: dict[Path, _Conv] = {}
    norms: dict[Path, _Norm] = {}
    inside = False

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal inside
        module = context.module
        if context.method_name != "__call__" or inside:
            return call(*args, **kwargs)
        path = module.path
        if isinstance(module, nn.BatchNorm):
            if path in norms:
                norms[path].calls += 1
                return call(*args, **kwargs)
            if type(module) not in NORMS:
                norms[path] = _Norm(module, None)
                return call(*args, **kwargs)
            argument = kwargs.get("use_running_average", args[1] if len(args) > 1 else None)
            if not _merge(module.use_running_average, argument):
                raise ValueError(
                    f"{'/'.join(path)} uses the statistics of the batch, which only training does: pass the "
                    "arguments of inference, such as train=False."
                )
            conv = next((conv for conv in convs.values() if conv.output is args[0]), None)
            norms[path] = _Norm(module, conv)
            # Two names with nothing between them, if no other operation has the output.
            named = checkpoint_name(args[0], _name("norm", path)) if conv else args[0]
            return call(named, *args[1:], **kwargs)
        inside = is_closed(module)
        try:
            output = call(*args, **kwargs)
        finally:
            inside = False
        if isinstance(module, nn.Conv | ConvLayer) and isinstance(output, jax.Array):
            conv = convs.setdefault(path, _Conv(module, output))
            if conv.output is output and conv.calls:
                return output  # of the layer that replaces this one
            output = checkpoint_name(output, _name("conv", path))
            conv.output, conv.calls = output, conv.calls + 1
        return output

    def apply(variables: Any, *inputs: Any) -> Any:
        with nn.intercept_methods(watch):
            return network.apply(variables, *inputs, **fields)

    jaxpr = jax.make_jaxpr(apply)(variables, *inputs).jaxpr
    alone = set(_find_direct_names(jaxpr))
    for norm in norms.values():
        if norm.conv is not None:
            names = _name("conv", norm.conv.module.path), _name("norm", norm.path)
            norm.alone = names in alone
    return [norms[path] for path in sorted(norms)]


def _name(kind: str, path: Path) -> str:
    return f"{kind} {'/'.join(path)}"


def _merge(field: bool | None, argument: bool | None) -> bool:
    return bool(argument if field is None else field)


def _find_direct_names(jaxpr: Any) -> Iterator[tuple[str, str]]:
    """Yields the pairs of names of which the second is the only operation on the first."""
    uses: dict[Any, list[Any]] = {}
    for eqn in [*jaxpr.eqns, None]:
        for variable in jaxpr.outvars if eqn is None else eqn.invars:
            if not isinstance(variable, jex_core.Literal):
                uses.setdefault(variable, []).append(eqn)
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "name":
            users = uses.get(eqn.outvars[0], [])
            if len(users) == 1 and users[0] is not None and users[0].primitive.name == "name":
                yield eqn.params["name"], users[0].params["name"]
        for inner in jax.tree.leaves(
            list(eqn.params.values()),
            is_leaf=lambda leaf: isinstance(leaf, jex_core.Jaxpr | jex_core.ClosedJaxpr),
        ):
            if isinstance(inner, jex_core.Jaxpr | jex_core.ClosedJaxpr):
                yield from _find_direct_names(getattr(inner, "jaxpr", inner))


def _find_obstacle(norm: _Norm, flat: Flat) -> str:
    """Returns why a norm cannot be folded; '' if it can."""
    module, conv = norm.module, norm.conv
    if type(module) not in NORMS:
        return f"{type(module).__name__} may compute something else than nn.BatchNorm"
    if conv is None:
        return "it does not follow a convolution directly"
    name, layer = "/".join(conv.module.path), type(conv.module)
    if _is_mapped(module) or _is_mapped(conv.module):
        return f"nn.map_variables maps the parameters of {name}, or those of the norm"
    if layer not in SCALED:
        return f"no parameters scale the outputs of {name}, {layer.__name__}"
    features = conv.output.shape[-1]
    if np.atleast_1d(module.axis).tolist() not in ([-1], [conv.output.ndim - 1]):
        return f"it normalises along axis {module.axis}, not the features"
    if np.shape(flat["batch_stats", *norm.path, "var"]) != (features,):
        return "it is one of a stack, which nn.scan or nn.vmap has made"
    if not norm.alone or conv.calls > 1 or norm.calls > 1:
        return f"the norm, {name} or its output is used more than once"
    if layer is layers.RotatedConv and conv.module.pooling in ("max", "attention"):
        scale, _ = _compute_affine(norm, flat)
        if conv.module.pooling == "attention" or np.min(scale, initial=0) < 0:
            return f"{name} pools orientations by {conv.module.pooling}, which does not scale"
    return ""


def _is_mapped(module: Any) -> bool:
    """Returns whether a module gets its variables from `nn.map_variables`, whichever module calls that."""
    # Flax wraps names there: ('stage', 'map_variables(block)', 'conv').
    return any("map_variables(" in name for name in module.scope.debug_path)


def _compute_affine(norm: _Norm, flat: Flat) -> tuple[np.ndarray, np.ndarray]:
    """Returns s and t of a norm, float64."""

    def read(collection: str, name: str, default: float) -> np.ndarray:
        value = flat.get((collection, *norm.path, name))
        return np.asarray(default if value is None else value, np.float64)

    var, mean = read("batch_stats", "var", 1), read("batch_stats", "mean", 0)
    scale = read("params", "scale", 1) / np.sqrt(var + norm.module.epsilon)
    return scale, read("params", "bias", 0) - scale * mean


def _divide_by_spectral_norms(flat: Flat, conv: Any) -> None:
    """Makes the parameters of a `SpectralNormConv` those of the `DynamicConv` that computes the same."""
    path = ("params", *conv.path)
    kernel = jnp.asarray(flat[*path, "kernel"])
    if conv.mask is not None:
        kernel = kernel * jnp.asarray(conv.mask, kernel.dtype)
    wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    matrices = wide.reshape(len(wide), -1, wide.shape[-1])
    u = jnp.asarray(flat.pop(("batch_stats", *conv.path, "u")), wide.dtype)
    _, sigma = spectral_norms(matrices, u, conv.n_steps, conv.epsilon)
    sigma = jnp.maximum(sigma, conv.epsilon).reshape(-1, *(1,) * (wide.ndim - 1))
    flat[*path, "kernel"] = (wide / sigma).astype(kernel.dtype)
    if (*path, "bias") in flat:
        bias = jnp.asarray(flat[*path, "bias"])
        flat[*path, "bias"] = jnp.broadcast_to(bias, (len(wide), *bias.shape))


def _cast(values: np.ndarray, like: Any) -> Array:
    return jnp.asarray(values, like.dtype)
