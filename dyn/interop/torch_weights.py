"""Imports weights trained by torch into the networks of `dyn.models`.

These have the padding, strides, epsilon and layers of torchvision and timm (a bottleneck strides in its 3x3
convolution, as in both). A table of regular expressions maps the layer names of a source; `from_torch`
accepts further tables for other networks. Some networks have no counterpart here: timm's published CondConv
networks are EfficientNets (`CONDCONV` maps the layout of their layers), and its 'd' variants of a ResNet
have another stem and shortcut.
"""

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

Table = Sequence[tuple[str, str]]
"""Rows of a regular expression for the name of a torch module, and the path of the same layer here.

A path may contain `{group}` for a named group of the expression, and `{next_group}` for its number plus one
(torch counts blocks from 0). The group `layer` is the name of another torch module, in whose place its path
stands. `*` is for all layers that match, or for those among them that have an array of the same shape.
"""

_BLOCK = r"layer(?P<stage>\d)\.(?P<block>\d+)\."
_BLOCK_PATH = "stage{stage}_block{next_block}/"

TORCHVISION: Table = (
    (r"conv1", "stem_conv"),
    (r"bn1", "stem_norm"),
    (_BLOCK + r"conv(?P<n>\d)", _BLOCK_PATH + "conv{n}"),
    (_BLOCK + r"bn(?P<n>\d)", _BLOCK_PATH + "norm{n}"),
    (_BLOCK + r"downsample\.0", _BLOCK_PATH + "downsample_conv"),
    (_BLOCK + r"downsample\.1", _BLOCK_PATH + "downsample_norm"),
    # timm's SE-ResNets: `attention=partial(SqueezeExcite, min_squeeze=8)`.
    (_BLOCK + r"se\.fc1", _BLOCK_PATH + "attention/reduce"),
    (_BLOCK + r"se\.fc2", _BLOCK_PATH + "attention/expand"),
    (r"fc", "head"),
)
"""torchvision's ResNets, and timm's of the same names: `resnet18`, `resnet34`, `resnet50`, `seresnet50`."""

ODCONV: Table = (
    *TORCHVISION,
    (_BLOCK + r"conv(?P<n>\d)\.attention\.fc", _BLOCK_PATH + "conv{n}/attention/squeeze"),
    (_BLOCK + r"conv(?P<n>\d)\.attention\.bn", _BLOCK_PATH + "conv{n}/attention/norm"),
    (
        _BLOCK + r"conv(?P<n>\d)\.attention\.(?P<head>channel|filter|spatial|kernel)_fc",
        _BLOCK_PATH + "conv{n}/attention/{head}",
    ),
)
"""The ResNets of ODConv's authors (OSVAI/ODConv):

`ResNet18(conv=partial(ODConv, num_kernels=4, attention_norm="batch"))`.
"""

CONDCONV: Table = (*TORCHVISION, (_BLOCK + r"routing_fn", _BLOCK_PATH + "conv*/routing"))
"""timm's `CondConv2d`, with flattened experts, and its block's `routing_fn`, in a ResNet's blocks.

Here each convolution of a block has its own routing. With `context="block"` they all get the block's input
and start with the same weights.
"""


def _make_dcd_rows(module: str, path: str, static: str, prefix: str = "") -> Table:
    """Returns the rows of a layer that DCD's authors have made dynamic."""
    return (
        (module + static, path),
        (rf"{module}{prefix}q", f"{path}/compress"),
        (rf"{module}{prefix}p", f"{path}/expand"),
        (rf"{module}bn1", f"{path}/compress_norm"),
        (rf"{module}bn2", f"{path}/latent_norm"),
        (rf"{module}fc\.0", f"{path}/attention/squeeze"),
        (rf"{module}fc\.1\.fc\.0", f"{path}/attention/excite"),
        (rf"{module}fc_phi", f"{path}/attention/latent"),
        (rf"{module}fc_scale", f"{path}/attention/filter"),
    )


DCD: Table = (
    *TORCHVISION,
    *_make_dcd_rows(_BLOCK + r"conv(?P<n>\d)\.", _BLOCK_PATH + "conv{n}", "conv"),
    *_make_dcd_rows(r"classifier\.\d\.", "head", "cls", "cls_"),
)
"""The ResNets of DCD's authors (liyunsheng13/dcd): `ResNet18(conv=DCDConv, dense=DCDDense)`.

In ResNet-50 it is `partial(DCDConv, pool=1)`.
"""


def _make_vgg_table(stage_sizes: Sequence[int]) -> Table:
    """Returns the table of a VGG; torch numbers all layers: convolutions, ReLUs, and a pooling per stage."""
    rows = []
    index = 0
    for stage, convs in enumerate(stage_sizes, 1):
        for conv in range(1, convs + 1):
            path = f"stage{stage}_conv{conv}" if index else "stem_conv"
            rows.append((rf"features\.{index}", path))
            index += 2
        index += 1
    ends = ((0, "hidden1"), (3, "hidden2"), (6, "head"))
    return (*rows, *((rf"classifier\.{index}", path) for index, path in ends))


VGG16: Table = _make_vgg_table((2, 2, 3, 3, 3))
"""torchvision's `vgg16`."""


def _make_mobilenet_table(stage_sizes: Sequence[int]) -> Table:
    """Returns the table of a MobileNetV2, whose very first block does not expand."""
    rows = [(r"features\.0\.0", "stem_conv"), (r"features\.0\.1", "stem_norm")]
    paths = [
        f"stage{stage}_block{block}/"
        for stage, num_blocks in enumerate(stage_sizes, 1)
        for block in range(1, num_blocks + 1)
    ]
    for index, path in enumerate(paths, 1):
        module = rf"features\.{index}\.conv\."
        parts = ("expand", "depthwise") if index > 1 else ("depthwise",)
        for n, part in enumerate(parts):
            rows += [(rf"{module}{n}\.0", path + part), (rf"{module}{n}\.1", f"{path}{part}_norm")]
        n = len(parts)
        rows += [(f"{module}{n}", f"{path}project"), (f"{module}{n + 1}", f"{path}project_norm")]
    last = rf"features\.{len(paths) + 1}\."
    return (*rows, (f"{last}0", "last_conv"), (f"{last}1", "last_norm"), (r"classifier\.1", "head"))


MOBILENET_V2: Table = _make_mobilenet_table((1, 2, 3, 4, 3, 3, 1))
"""torchvision's `mobilenet_v2`."""

CONVNEXT: Table = (
    (r"downsample_layers\.0\.0", "stem_conv"),
    (r"downsample_layers\.0\.1", "stem_norm"),
    (r"downsample_layers\.(?P<stage>\d)\.0", "stage{next_stage}_norm"),
    (r"downsample_layers\.(?P<stage>\d)\.1", "stage{next_stage}_conv"),
    *(
        (
            rf"stages\.(?P<stage>\d)\.(?P<block>\d+){module}",
            "stage{next_stage}_block{next_block}" + path,
        )
        for module, path in (
            ("", ""),  # which has the scale of the branch
            (r"\.dwconv", "/depthwise"),
            (r"\.norm", "/norm"),
            (r"\.pwconv1", "/expand"),
            (r"\.pwconv2", "/project"),
        )
    ),
    (r"norm", "last_norm"),
    (r"head", "head"),
)
"""The ConvNeXts of their authors (facebookresearch/ConvNeXt)."""

_ATTENTION = r"(?P<layer>.+?)(\.conv)?\.attention"
_WAREHOUSES: Table = (
    (r"warehouse_manager\.weights", "conv/*"),
    (_ATTENTION, "{layer}/attention"),  # which has the bias of a low-rank attention
    (_ATTENTION + r"\.fc1", "{layer}/attention/squeeze"),
    (_ATTENTION + r"\.norm1", "{layer}/attention/norm"),
    (_ATTENTION + r"\.fc2", "{layer}/attention/cell"),
    (_ATTENTION + r"\.fc3", "{layer}/attention/basis"),
    (r"(?P<layer>classifier\.1|.+\.pwconv\d)\.conv", "{layer}"),  # the bias of a dense layer
)

KERNEL_WAREHOUSE: Table = (*TORCHVISION, *_WAREHOUSES)
"""The ResNets of KernelWarehouse's authors (OSVAI/KernelWarehouse), see `dyn.models.KERNEL_WAREHOUSE`.

The arrays of cells have numbers there: each goes to the warehouse with cells of that number and shape.
"""

SOURCES: Mapping[str, Table] = {
    "torchvision": TORCHVISION,
    "odconv": ODCONV,
    "condconv": CONDCONV,
    "dcd": DCD,
    "vgg16": VGG16,
    "mobilenet_v2": MOBILENET_V2,
    "convnext": CONVNEXT,
    "kernel_warehouse": KERNEL_WAREHOUSE,
    "kernel_warehouse_mobilenet_v2": (*MOBILENET_V2, *_WAREHOUSES),
    "kernel_warehouse_convnext": (*CONVNEXT, *_WAREHOUSES),
}

# For each array of a torch module, its collection and names here: in a layer, or in a norm.
_LEAVES = {
    "weight": (("params", "kernel"), ("params", "scale")),
    "bias": (("params", "bias"),),
    "running_mean": (("batch_stats", "mean"),),
    "running_var": (("batch_stats", "var"),),
    "gamma": (("params", "scale"),),
    "cells": (("params", "cells"),),
    "basis_bias": (("params", "bias"),),
}
# Numbers of updates of statistics and averages.
_COUNTS = ("num_batches_tracked", "n_averaged")

_WARM_START = (
    " The weights are static and the network is dynamic: fill its static twin, and start from that by "
    "dyn.interop.warm_start(variables, from_torch(twin, weights).variables, key=key)."
)


class Imported(NamedTuple):
    """A network's variables with imported weights.

    Attributes:
        variables: variables of the network.
        left_out: names of weights that were not used: torch's counts of batches, and layers in `without`.
        kept: paths of the parameters in `without`, which keep their values.
    """

    variables: dict[str, Any]
    left_out: tuple[str, ...]
    kept: tuple[str, ...]


def from_torch(
    variables: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    names: Table | None = None,
    *,
    without: Sequence[str] = (),
) -> Imported:
    """Fills a network with the weights of an equal torch network.

    To start a dynamic network from a static one's weights, fill its static twin and start from that:

        weights = read_weights("resnet18.safetensors")
        twin = jax.eval_shape(ResNet18(num_classes=1000).init, key, x)
        variables = warm_start(variables, from_torch(twin, weights).variables, key=key)

    Layouts are converted (O, I, height, width to height, width, I, O; candidates first; timm's experts
    unflattened; 1x1 convolutions to linear layers where this network has them), and dtypes too.

    Args:
        variables: variables of the network, arrays or their shapes.
        weights: torch's names and arrays, as `read_weights` returns them. Prefixes `module.` of all names (of
            a network trained on several devices, or of averages), and `_orig_mod.` anywhere (of a compiled
            one), are ignored.
        names: table of layer names, one of `SOURCES` or another; None for the table in `SOURCES` that
            matches most names.
        without: paths of layers that keep their values, such as `("head",)` for other classes.

    Returns:
        An `Imported`: the variables, the unused weights and the unchanged parameters.

    Raises:
        ValueError: if a weight has no counterpart or another shape, or a parameter has no weight; lists all,
            or says that the names are those of no known source, or points to `warm_start`.

    Example:
        >>> import jax, numpy as np
        >>> from dyn.interop import from_torch
        >>> from dyn.models import BasicBlock, ResNet
        >>> norm = ("weight", "bias", "running_mean", "running_var")
        >>> weights = {f"bn1.{name}": np.ones(4) for name in norm}
        >>> weights |= {"conv1.weight": np.ones((4, 3, 7, 7)), "bn1.num_batches_tracked": np.ones(())}
        >>> weights |= {"fc.weight": np.ones((1000, 4)), "fc.bias": np.zeros(1000)}
        >>> net = ResNet((), BasicBlock, num_classes=10, width=4)
        >>> variables = net.init(jax.random.key(0), np.ones((1, 32, 32, 3), np.float32))
        >>> _, left_out, kept = from_torch(variables, weights, without=("head",))
        >>> left_out, kept
        (('bn1.num_batches_tracked', 'fc.weight', 'fc.bias'), ('params/head/bias', 'params/head/kernel'))
    """
    table = SOURCES[detect_source(weights)] if names is None else names
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    targets: dict[str, Any] = {
        path: leaf for path, leaf in flat.items() if path.startswith(("params/", "batch_stats/"))
    }
    kept = sorted(path for path in targets if _is_below(path.partition("/")[2], without))
    filled: dict[str, Any] = {}
    left_out, unmatched, misshapen, doubled = [], [], [], []
    for name, layer, leaf, value in _match_layers(weights, table):
        if leaf in _COUNTS or (layer and _is_below(layer, without)):
            left_out.append(name)
            continue
        paths = [
            path
            for collection, variable in _LEAVES.get(leaf, ())
            for path in fnmatch.filter(targets, f"{collection}/{layer}/{variable}")
        ]
        if not paths:
            unmatched.append(f"{name} {value.shape}")
        elif len(paths) > 1:
            shapes = {path: tuple(targets[path].shape) for path in paths}
            fitting = [p for p in paths if _convert_layout(value, p, shapes[p]).shape == shapes[p]]
            paths = fitting or paths
        for path in paths:
            shape = tuple(targets[path].shape)
            array = _convert_layout(value, path, shape)
            if np.iscomplexobj(array):  # JAX would drop the imaginary parts
                misshapen.append(f"{name} of {array.dtype} for {path}")
                continue
            if array.shape != shape:
                misshapen.append(f"{name} {value.shape} for {path} {shape}")
            if path in filled:
                doubled.append(f"{name} for {path}")
            filled[path] = jnp.asarray(array, targets[path].dtype)
    missing = [
        f"{path} {tuple(leaf.shape)}"
        for path, leaf in targets.items()
        if path not in filled and path not in kept
    ]
    problems = {
        "of another shape": misshapen,
        "for what other weights have filled": doubled,
        "without a counterpart in the network": unmatched,
        "missing for parameters of the network": missing,
    }
    if any(problems.values()):
        if names is None and not has_known_names(weights):
            raise ValueError(_describe_foreign(weights, targets))
        lists = [
            f"{len(items)} {problem}: {', '.join(items)}"
            for problem, items in problems.items()
            if items
        ]
        hint = ""
        if any(".attention." in name and ".running_" in name for name in unmatched):
            hint = (
                " Their attention has a batch norm: make the network with attention_norm='batch'."
            )
        elif _is_static_for(weights, targets, table):
            hint = _WARM_START
        raise ValueError(f"the weights do not fit the network: {'; '.join(lists)}.{hint}")
    imported = traverse_util.unflatten_dict({**flat, **filled}, sep="/")
    return Imported(imported, tuple(left_out), tuple(kept))


def detect_source(weights: Iterable[str]) -> str:
    """Returns the source in `SOURCES` that matches most of these names; the first if several do."""
    named = dict.fromkeys(weights)
    return max(SOURCES, key=lambda source: _count_matches(named, SOURCES[source]))


def has_known_names(weights: Iterable[str]) -> bool:
    """Returns whether a source in `SOURCES` matches at least half of these names."""
    named = {name: None for name in weights if name.rpartition(".")[2] not in _COUNTS}
    return 2 * _count_matches(named, SOURCES[detect_source(named)]) >= len(named)


def _count_matches(named: Mapping[str, Any], table: Table) -> int:
    return sum(layer is not None for _, layer, _, _ in _match_layers(named, table))


def _describe_foreign(weights: Mapping[str, np.ndarray], targets: Mapping[str, Any]) -> str:
    """Says how the names of an unknown network differ from those of a network here."""
    matches = _match_layers(weights, SOURCES[detect_source(weights)])
    counted = [match for match in matches if match[2] not in _COUNTS]
    unknown = [f"{name} {value.shape}" for name, layer, _, value in counted if layer is None]
    parameters_first = sorted(targets, key=lambda path: not path.startswith("params/"))
    ours = [f"{path} {tuple(targets[path].shape)}" for path in parameters_first]
    return (
        f"the weights are of a network that is not known here: {len(unknown)} of {len(counted)} names are "
        f"those of none of the sources {', '.join(SOURCES)}, such as {', '.join(unknown[:3])}; the network "
        f"has {len(ours)} arrays, such as {', '.join(ours[:3])}. If both compute the same, pass a table from "
        "the names of its layers to the paths here: from_torch(variables, weights, table)."
    )


def _is_static_for(
    weights: Mapping[str, np.ndarray], targets: Mapping[str, Any], table: Table
) -> bool:
    """Returns whether weights have kernels, but no attention, for layers that are dynamic in a network."""
    named = {layer for _, layer, _, _ in _match_layers(weights, table) if layer}
    dynamic = _find_attended(path.partition("/")[2] for path in targets) & named
    return bool(dynamic - _find_attended(named))


def _find_attended(paths: Iterable[str]) -> set[str]:
    """Returns the layers with attention or routing."""
    parts = (re.split("/(?:attention|routing)(?:/|$)", path) for path in paths)
    return {layer for layer, *rest in parts if rest}


def num_classes(weights: Mapping[str, np.ndarray]) -> int | None:
    """Returns the number of classes of the weights' head; None if they have no head."""
    for _, layer, leaf, value in _match_layers(weights, SOURCES[detect_source(weights)]):
        if (layer, leaf) == ("head", "bias"):
            return len(value)
    return None


def _match_layers(
    weights: Mapping[str, Any], table: Table
) -> Iterator[tuple[str, str | None, str, Any]]:
    """Yields for each weight its name, its layer's path here (or None), its name in the layer, its value."""
    plain = {name: re.sub(r"(?<![^.])_orig_mod\.", "", name) for name in weights}
    # `AveragedModel` counts beside its `module`.
    if all(text.startswith("module.") for text in plain.values() if text not in _COUNTS):
        plain = {name: re.sub(r"^(module\.)+", "", text) for name, text in plain.items()}
    for name, value in weights.items():
        module, _, leaf = plain[name].rpartition(".")
        # The arrays of a `ParameterList` have numbers; those of warehouses are the only ones here.
        leaf = "cells" if leaf.isdigit() else leaf
        yield name, _find_layer(module, table), leaf, value


def _find_layer(module: str, table: Table) -> str | None:
    """Returns the path of a torch module by the first row of the table that matches, or None."""
    for pattern, path in table:
        if match := re.fullmatch(pattern, module):
            groups = match.groupdict()
            if "layer" in groups:
                inner = _find_layer(groups["layer"], table)
                if inner is None:
                    continue
                groups["layer"] = inner
            numbers = {f"next_{n}": int(text) + 1 for n, text in groups.items() if text.isdigit()}
            return path.format(**groups, **numbers)
    return None


def _convert_layout(value: np.ndarray, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Converts a torch array to the layout of the variable at `path`."""
    if path.endswith("/cells"):
        return _transpose_cells(value, shape)
    if not path.endswith("/kernel"):
        return value
    return _transpose_matrix(value) if len(shape) == 2 else _transpose_kernel(value, shape)


def _transpose_matrix(value: np.ndarray) -> np.ndarray:
    """Converts `[O, I]`, or `[O, I, 1, 1]` of a convolution that serves as a linear layer, to `[I, O]`."""
    return value.reshape(value.shape[:2]).T if value.shape[2:] in ((), (1, 1)) else value


def _transpose_kernel(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Converts `[O, I, *k]` to `[*k, I, O]`, with or without candidates, which timm flattens."""
    if len(shape) not in (4, 5):
        return value
    if value.ndim == 2 and shape[:-2] == (1, 1):  # a linear layer that serves as a 1x1 convolution
        value = value[:, :, None, None]
    *candidates, height, width, i, o = shape
    torch_shape = (*candidates, o, i, height, width)
    flattened = (*candidates, o * i * height * width)
    if candidates and value.shape in (flattened, torch_shape[-4:]) and value.size == np.prod(shape):
        value = value.reshape(torch_shape)
    return np.moveaxis(value, (-4, -3), (-1, -2)) if value.ndim == len(shape) else value


def _transpose_cells(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Converts `[n, O, I, *k]` to `[n, *k, I, O]`, or to `[n, I, O]` for cells without taps."""
    if value.ndim < 3:
        return value
    value = np.moveaxis(value, (1, 2), (-1, -2))
    n, *size, i, o = value.shape
    return value.reshape(n, i, o) if len(shape) == 3 and set(size) <= {1} else value


def _is_below(path: str, layers: Iterable[str]) -> bool:
    return any(f"{path}/".startswith(f"{layer}/") for layer in layers)
