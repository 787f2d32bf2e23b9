"""Imports weights trained by torch into the networks of `dyn.models`.

These have the padding, strides, epsilon and layers of torchvision and timm (a bottleneck strides in its 3x3
convolution, as in both). A table of regular expressions maps the layer names of a source; `from_torch`
accepts further tables for other networks.
"""

import fnmatch
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dyn.interop.mobile_tables import (
    DCD_MOBILENET_V2,
    DYMN,
    EFFICIENTNET,
    EFFICIENTNET_LITE0,
    MOBILENET_V2,
    MOBILENET_V3,
    ODCONV_MOBILENET_V2,
)
from dyn.interop.torch_rows import Table, make_dcd_rows, make_odconv_rows

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
    # Its ECA-ResNets: `attention=EfficientChannelAttention`.
    (_BLOCK + r"se\.conv", _BLOCK_PATH + "attention/conv"),
    (r"fc", "head"),
)
"""torchvision's ResNets, and timm's of the same names: `resnet18`, `resnet34`, `resnet50`, `seresnet50`."""

ODCONV: Table = (
    *TORCHVISION,
    *make_odconv_rows(_BLOCK + r"conv(?P<n>\d)", _BLOCK_PATH + "conv{n}"),
)
"""The ResNets of ODConv's authors (OSVAI/ODConv):

`ResNet18(conv=partial(ODConv, num_kernels=4, attention_norm="batch"))`.
"""

CONDCONV: Table = (*TORCHVISION, (_BLOCK + r"routing_fn", _BLOCK_PATH + "conv*/routing"))
"""timm's `CondConv2d`, with flattened experts, and its block's `routing_fn`, in a ResNet's blocks.

Here each convolution of a block has its own routing. With `context="block"` they all get the block's input
and start with the same weights.
"""


SELECTIVE: Table = (
    *TORCHVISION,
    (_BLOCK + r"conv(?P<n>\d)\.conv", _BLOCK_PATH + "conv{n}"),
    (_BLOCK + r"conv(?P<n>\d)\.bn", _BLOCK_PATH + "norm{n}"),
    (_BLOCK + r"conv(?P<n>\d)\.paths\.(?P<p>\d)\.conv", _BLOCK_PATH + "conv{n}/path{p}_conv"),
    (_BLOCK + r"conv(?P<n>\d)\.paths\.(?P<p>\d)\.bn", _BLOCK_PATH + "conv{n}/path{p}_norm"),
    (_BLOCK + r"conv(?P<n>\d)\.attn\.fc_reduce", _BLOCK_PATH + "conv{n}/attention/squeeze"),
    (_BLOCK + r"conv(?P<n>\d)\.attn\.bn", _BLOCK_PATH + "conv{n}/attention/norm"),
    (_BLOCK + r"conv(?P<n>\d)\.attn\.fc_select", _BLOCK_PATH + "conv{n}/attention/path"),
)
"""timm's SK-ResNets: `SKResNet18()`, `SKResNet34()`, `SKResNet50()` and `SKResNeXt50()`."""

RESNET_D: Table = (
    (_BLOCK + r"downsample\.1", _BLOCK_PATH + "downsample_conv"),
    (_BLOCK + r"downsample\.2", _BLOCK_PATH + "downsample_norm"),
    (r"conv1\.0", "stem_conv1"),
    (r"conv1\.1", "stem_norm1"),
    (r"conv1\.3", "stem_conv2"),
    (r"conv1\.4", "stem_norm2"),
    (r"conv1\.6", "stem_conv3"),
    *SELECTIVE,
)
"""timm's 'd' variants of all these, such as `resnet50d`, `ecaresnet50d` and `skresnet50d`:

`ResNet50(stem="deep", shortcut=PooledConv)`.
"""


DCD: Table = (
    *TORCHVISION,
    *make_dcd_rows(_BLOCK + r"conv(?P<n>\d)\.", _BLOCK_PATH + "conv{n}", "conv"),
    *make_dcd_rows(r"classifier\.\d\.", "head", "cls", "cls_"),
)
"""The ResNets of DCD's authors (liyunsheng13/dcd): `ResNet18(conv=DCDConv, dense=DCDDense)`.

In ResNet-50 it is `partial(DCDConv, pool=1)`.
"""


FDCONV: Table = (
    *TORCHVISION,
    (_BLOCK + r"conv(?P<n>\d)\.KSM_Global\.fc", _BLOCK_PATH + "conv{n}/attention/squeeze"),
    (_BLOCK + r"conv(?P<n>\d)\.KSM_Global\.bn", _BLOCK_PATH + "conv{n}/attention/norm"),
    (_BLOCK + r"conv(?P<n>\d)\.KSM_Global\.relu", _BLOCK_PATH + "conv{n}/attention"),
    (
        _BLOCK + r"conv(?P<n>\d)\.KSM_Global\.(?P<head>channel|filter|spatial|kernel)_fc",
        _BLOCK_PATH + "conv{n}/attention/{head}",
    ),
    (
        _BLOCK + r"conv(?P<n>\d)\.KSM_Local\.(?P<part>conv|norm)",
        _BLOCK_PATH + "conv{n}/local/{part}",
    ),
    (
        _BLOCK + r"conv(?P<n>\d)\.FBM\.freq_weight_conv_list\.(?P<band>\d+)",
        _BLOCK_PATH + "conv{n}/bands/conv{next_band}",
    ),
)
"""The ResNets of FDConv's authors (Linwei-Chen/FDConv):

`ResNet50(conv=partial(FDConv, attention_norm="batch"))`.

Their detectors have the prefix `backbone.`, which has to be removed, and other parts, which have to be left
out. A static network that their script has converted fills the static twin, and `warm_start` does the rest.
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

FASTER_RCNN: Table = (
    (r"backbone\.body\.(?P<layer>.+)", "backbone/{layer}"),
    (r"backbone\.fpn\.inner_blocks\.(?P<level>\d)(\.0)?", "fpn/lateral{next_level}"),
    (r"backbone\.fpn\.layer_blocks\.(?P<level>\d)(\.0)?", "fpn/output{next_level}"),
    (r"rpn\.head\.conv(\.0\.0)?", "rpn/hidden"),
    (r"rpn\.head\.cls_logits", "rpn/objectness"),
    (r"rpn\.head\.bbox_pred", "rpn/deltas"),
    (r"roi_heads\.box_head\.fc6", "box_head/hidden1"),
    (r"roi_heads\.box_head\.fc7", "box_head/hidden2"),
    (r"roi_heads\.box_predictor\.cls_score", "box_head/classes"),
    (r"roi_heads\.box_predictor\.bbox_pred", "box_head/deltas"),
    (r"roi_heads\.mask_head\.(?P<n>\d)\.0", "mask_head/conv{next_n}"),
    (r"roi_heads\.mask_head\.mask_fcn(?P<n>\d)", "mask_head/conv{n}"),
    (r"roi_heads\.mask_predictor\.conv5_mask", "mask_head/upsample"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits", "mask_head/logits"),
    *TORCHVISION,
)
"""torchvision's detectors: `fasterrcnn_resnet50_fpn` and `maskrcnn_resnet50_fpn`, of 2019 and later.

`FasterRCNN()` and `MaskRCNN()`. The published files need `correct_frozen_norms`.
"""

SOURCES: Mapping[str, Table] = {
    "torchvision": TORCHVISION,
    "odconv": ODCONV,
    "condconv": CONDCONV,
    "dcd": DCD,
    "selective": SELECTIVE,
    "resnet_d": RESNET_D,
    "fdconv": FDCONV,
    "vgg16": VGG16,
    "mobilenet_v2": MOBILENET_V2,
    "odconv_mobilenet_v2": ODCONV_MOBILENET_V2,
    "dcd_mobilenet_v2": DCD_MOBILENET_V2,
    "mobilenet_v3": MOBILENET_V3,
    "dymn": DYMN,
    "efficientnet": EFFICIENTNET,
    "efficientnet_lite0": EFFICIENTNET_LITE0,
    "convnext": CONVNEXT,
    "faster_rcnn": FASTER_RCNN,
    "kernel_warehouse": KERNEL_WAREHOUSE,
    # Only the smallest of these has a dropout layer before the classifier.
    "kernel_warehouse_mobilenet_v2": (*MOBILENET_V2, (r"classifier", "head"), *_WAREHOUSES),
    "kernel_warehouse_convnext": (*CONVNEXT, *_WAREHOUSES),
}

# For each array of a torch module, its collection and names here: in a layer, or in a norm.
_LEAVES = {
    "weight": (("params", "kernel"), ("params", "scale")),
    "bias": (("params", "bias"), ("params", "shift")),
    "scale": (("params", "scale"),),
    "dft_weight": (("params", "spectrum"), ("params", "kernel")),
    "running_mean": (("batch_stats", "mean"),),
    "running_var": (("batch_stats", "var"),),
    "gamma": (("params", "scale"),),
    "cells": (("params", "cells"),),
    "basis_bias": (("params", "bias"),),
}
# Numbers of updates of statistics and averages.
_COUNTS = ("num_batches_tracked", "n_averaged")
# Constants of DyMN's dynamic ReLU that its files have beside the weights.
CONSTANTS = {"lambdas": (1.0, 1.0, 0.5, 0.5), "init_v": (1.0, 0.0, 0.0, 0.0)}

_WARM_START = (
    " The weights are static and the network is dynamic: fill its static twin, and start from that by "
    "dyn.interop.warm_start(variables, from_torch(twin, weights).variables, key=key)."
)


class Imported(NamedTuple):
    """A network's variables with imported weights.

    Attributes:
        variables: variables of the network.
        left_out: names of weights that were not used: torch's counts of batches, constants, and layers in
            `without`.
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

    Layouts are converted (`[O, I, *k]` to `[*k, I, O]`; candidates first; timm's experts
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
        is_constant = leaf in CONSTANTS and np.array_equal(value, CONSTANTS[leaf])
        if leaf in _COUNTS or is_constant or (layer and _is_below(layer, without)):
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
            fitting = [
                p for p in paths if _convert_layout(value, leaf, p, targets).shape == shapes[p]
            ]
            paths = fitting or paths
        for path in paths:
            shape = tuple(targets[path].shape)
            array = _convert_layout(value, leaf, path, targets)
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
        branches = (".attention.", ".attn.", ".KSM_Global.")
        statistics = [name for name in unmatched if ".running_" in name]
        if any(branch in name for name in statistics for branch in branches):
            hint = (
                " Their attention has a batch norm: make the network with attention_norm='batch'."
            )
        elif _is_static_for(weights, targets, table):
            hint = _WARM_START
        raise ValueError(f"the weights do not fit the network: {'; '.join(lists)}.{hint}")
    imported = traverse_util.unflatten_dict({**flat, **filled}, sep="/")
    return Imported(imported, tuple(left_out), tuple(kept))


def correct_frozen_norms(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns weights whose norms were made without an epsilon, for norms with 1e-5.

    Such are torchvision's published `fasterrcnn_resnet50_fpn` and `maskrcnn_resnet50_fpn` (the first ones,
    not `_v2`), whose norms are frozen: scale' = scale sqrt(1 + 1e-5 / var). Files that torchvision's
    training scripts write are made with 1e-5 and must not be corrected.

    Args:
        weights: names and arrays, as `read_weights` returns them.

    Example:
        >>> import numpy as np
        >>> from dyn.interop import correct_frozen_norms
        >>> weights = {"bn1.weight": np.ones(1), "bn1.running_var": np.full(1, 1e-5)}
        >>> correct_frozen_norms(weights)["bn1.weight"].round(3).tolist()
        [1.414]
    """
    corrected = dict(weights)
    for name, var in weights.items():
        if name.endswith(".running_var"):
            scale = name.removesuffix("running_var") + "weight"
            factor = np.sqrt(1 + 1e-5 / np.asarray(var, np.float64))
            corrected[scale] = (weights[scale] * factor).astype(weights[scale].dtype)
    return corrected


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
        f"those of none of the sources in docs/weights.md, such as {', '.join(unknown[:3])}; the network "
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


def count_channels(weights: Mapping[str, np.ndarray]) -> int | None:
    """Returns the number of input features of the weights' first convolution; None if they have none."""
    for _, layer, leaf, value in _match_layers(weights, SOURCES[detect_source(weights)]):
        if (layer, leaf) in (("stem_conv", "weight"), ("stem_conv1", "weight")) and value.ndim > 1:
            return value.shape[1]
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


def _convert_layout(
    value: np.ndarray, name: str, path: str, targets: Mapping[str, Any]
) -> np.ndarray:
    """Converts the array of a torch module to the layout of the variable at `path`, one of `targets`."""
    shape = tuple(targets[path].shape)
    if path.endswith("/cells"):
        return _transpose_cells(value, shape)
    if path.endswith(("/scale", "/shift")) and shape == () and value.shape == (1,):
        return value[0]
    if name == "gamma" and len(shape) == 1:  # KernelWarehouse's ConvNeXt has it as [1, C, 1, 1]
        return value.reshape(-1)
    if path.endswith("/spectrum"):
        layer = path.removesuffix("/spectrum")
        return _convert_spectrum(value, shape, targets[f"{layer}/attention/squeeze/kernel"].shape)
    if not path.endswith("/kernel"):
        return value
    if path.endswith("/local/conv/kernel"):
        layer = path.removesuffix("/local/conv/kernel")
        return _transpose_local(value, shape, targets[f"{layer}/spectrum"].shape)
    if name == "dft_weight":
        return _invert_spectrum(value, shape)
    return _transpose_matrix(value) if len(shape) == 2 else _transpose_kernel(value, path, targets)


def _transpose_matrix(value: np.ndarray) -> np.ndarray:
    """Converts `[O, I]`, or `[O, I, 1, 1]` of a convolution that serves as a linear layer, to `[I, O]`."""
    return value.reshape(value.shape[:2]).T if value.shape[2:] in ((), (1, 1)) else value


def _transpose_kernel(value: np.ndarray, path: str, targets: Mapping[str, Any]) -> np.ndarray:
    """Converts `[O, I, *k]` to `[*k, I, O]`, with or without candidates, which timm and DyMN flatten."""
    shape = tuple(targets[path].shape)
    if value.ndim == 2 and shape[:-2] == (1, 1):  # a linear layer that serves as a 1x1 convolution
        value = value[:, :, None, None]
    if len(shape) == 5:
        candidates, height, width, i, o = shape
        torch_shape = (candidates, o, i, height, width)
        flattened = (candidates, o * i * height * width)
        known = (flattened, (1, 1, *flattened), torch_shape[1:])
        if value.shape in known and value.size == np.prod(shape):
            return np.moveaxis(value.reshape(torch_shape), (1, 2), (-1, -2))
    if value.ndim != len(shape) or value.ndim < 3:
        return value
    static = np.moveaxis(value, (0, 1), (-1, -2))
    mixed = np.moveaxis(value, (1, 2), (-1, -2))
    if mixed.shape == shape and (static.shape != shape or _has_candidates(path, targets)):
        return mixed
    return static


def _has_candidates(path: str, targets: Iterable[str]) -> bool:
    """Returns whether the layer of a kernel has attention or routing, or shares the routing of its block."""
    layer = path.rpartition("/")[0]
    block = layer.rpartition("/")[0]
    parts = (f"{layer}/attention/", f"{layer}/routing/", f"{block}/routing/")
    return any(target.startswith(parts) for target in targets)


def _convert_spectrum(
    value: np.ndarray, shape: tuple[int, ...], squeeze: tuple[int, ...]
) -> np.ndarray:
    """Converts FDConv's `dft_weight`, `[R, O k, C // 2 + 1, 2]` with C = I k, to an orthonormal spectrum.

    The authors' transform has no factor, and they divide it by half the smaller number of features.

    Args:
        value: the torch array.
        shape: shape of the spectrum here, without R for a single one.
        squeeze: shape of the kernel that squeezes the layer's attention, whose context has I features.
    """
    # With only some of the frequencies, the authors' layer computes something else.
    if len(shape) < 3 or value.shape not in (shape, (1, *shape)):
        return value
    # Their code cannot invert an odd number of columns.
    rows, columns = shape[-3], 2 * (shape[-2] - 1)
    size = columns // squeeze[0]
    factor = (min(rows // size, squeeze[0]) // 2) / math.sqrt(rows * columns)
    return value.reshape(shape) * factor


def _invert_spectrum(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Converts FDConv's `dft_weight` to the static kernel `[k, k, I, O]` that it was made from."""
    size, _, i, o = shape
    if value.shape[1:] != (o * size, i * size // 2 + 1, 2):
        return value
    spectrum = (value[..., 0] + 1j * value[..., 1]).sum(0) * (min(i, o) // 2)
    matrix = np.fft.irfft2(spectrum, s=(o * size, i * size))
    return matrix.reshape(o, size, i, size).transpose(1, 3, 2, 0)


def _transpose_local(
    value: np.ndarray, shape: tuple[int, ...], spectrum: tuple[int, ...]
) -> np.ndarray:
    """Converts the kernel of FDConv's local attention, `[O k k, 1, N]`, to `[N, 1, k k O]`.

    Args:
        value: the torch array.
        shape: of the kernel here.
        spectrum: shape of the layer's spectrum, `[..., O k, C // 2 + 1, 2]`.
    """
    if len(spectrum) < 3 or value.shape != shape[::-1]:
        return value
    taps = (len(value) // spectrum[-3]) ** 2
    return value.reshape(-1, taps, value.shape[-1]).transpose(2, 1, 0).reshape(shape)


def _transpose_cells(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Converts `[n, O, I, *k]` to `[n, *k, I, O]`, or to `[n, I, O]` for cells without taps."""
    if value.ndim < 3:
        return value
    value = np.moveaxis(value, (1, 2), (-1, -2))
    n, *size, i, o = value.shape
    return value.reshape(n, i, o) if len(shape) == 3 and set(size) <= {1} else value


def _is_below(path: str, layers: Iterable[str]) -> bool:
    return any(f"{path}/".startswith(f"{layer}/") for layer in layers)
