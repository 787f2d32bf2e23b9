"""Initialises a network with weights that another run, or torch, has trained."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from dyn import models
from dyn.interop import Imported, correct_frozen_norms, from_torch, read_weights, warm_start
from dyn.interop.torch_weights import CONSTANTS, detect_source, has_known_names
from dyn.interop.torch_weights import num_classes as num_classes_of
from dyn.layers import Warehouses
from dyn.models.inverted_residual import InvertedResidualNet
from experiments.core.differences import describe_differences
from experiments.core.errors import UserError
from experiments.core.words import count_noun
from experiments.data import tiny_imagenet
from experiments.runs import weights
from experiments.runs.checkpoints import read_best_step, restore_best_variables
from experiments.tasks import make_task
from experiments.tasks.backbone import describe_backbone
from experiments.train.step import TrainState, start_average

Flat = dict[tuple[str, ...], Any]
COLLECTIONS = ("params", "batch_stats")
# The files that torchvision publishes: the norms of others have an epsilon.
PUBLISHED_DETECTORS = ("maskrcnn_resnet50_fpn_coco", "fasterrcnn_resnet50_fpn_coco")

# The settings that fit the weights of each torch model.
_FITTING = {
    "torchvision": "a ResNet of their --config.model.depth and .width (64), with .stem=imagenet",
    "odconv": "--config.conv.name=odconv with their .num_kernels and .attention_norm=batch, in a ResNet of "
    "their --config.model.depth, with .stem=imagenet",
    "condconv": "--config.conv.name=condconv with their .num_kernels, and --config.model.context=block",
    "dcd": "--config.conv.name=dcd and --config.classifier.name=dcd, in a ResNet of their "
    "--config.model.depth, with .stem=imagenet",
    "selective": "dyn.models.SKResNet18, SKResNet34, SKResNet50 or SKResNeXt50 in Python, and no config",
    "resnet_d": "a ResNet with stem='deep' and shortcut=dyn.models.PooledConv in Python, and no config",
    "fdconv": "--config.conv.name=fdconv with .attention_norm=batch, in a ResNet of --config.model.depth=50, "
    "with .stem=imagenet",
    "vgg16": "--config.model.network=vgg16 with .width=64",
    "mobilenet_v2": "--config.model.network=mobilenet_v2 of their --config.model.width (64)",
    "odconv_mobilenet_v2": "--config.model.network=mobilenet_v2 of their --config.model.width (64), and "
    "--config.conv.name=odconv with their .num_kernels and .attention_norm=batch",
    "dcd_mobilenet_v2": "--config.model.network=mobilenet_v2, --config.classifier.name=dcd, and "
    "--config.conv.name=dcd with .reduction=0.0625 and no .pool: experiments/configs/mobilenet_dcd.py",
    "mobilenet_v3": "--config.model.network=mobilenet_v3",
    "dymn": "--config.model.network=dymn of their --config.model.width (64; 25.6 for dymn04, 128 for dymn20) "
    "and --config.conv.name=dyconv: experiments/configs/dymn.py",
    "efficientnet": "--config.model.network=efficientnet_b0 or efficientnet_b1, with .padding=same if their "
    "name begins with tf_; those of CondConv experiments/configs/efficientnet_condconv.py with their "
    "--config.conv.num_kernels",
    "efficientnet_lite0": "--config.model.network=efficientnet_lite0",
    "convnext": "dyn.models.ConvNeXt in Python, and no config",
    "faster_rcnn": "--config.detector.name=mask_rcnn or faster_rcnn with .size=published and .norm=frozen, "
    "over a ResNet of their --config.model.depth (50), with .stem=imagenet",
    "kernel_warehouse": "--config.conv.name=warehouse with their .cell_ratio, .in_ratio and .out_ratio and "
    ".attention_norm=batch, and --config.model.shortcut=conv, in a ResNet of --config.model.depth=18, with "
    ".stem=imagenet; others dyn.models.KERNEL_WAREHOUSE in Python",
    "kernel_warehouse_mobilenet_v2": "dyn.models.KERNEL_WAREHOUSE in Python, and no config",
    "kernel_warehouse_convnext": "dyn.models.KERNEL_WAREHOUSE in Python, and no config",
}
_STATIC = (
    "torchvision",
    "vgg16",
    "mobilenet_v2",
    "mobilenet_v3",
    "efficientnet",
    "efficientnet_lite0",
)


@dataclasses.dataclass(frozen=True)
class TrainedWeights:
    """Weights to begin with."""

    variables: Mapping[str, Any]  # `params` and `batch_stats` of a network
    origin: str  # the run and its step, or the file, for messages
    unused: Sequence[str] = ()  # arrays of the file that no network here has a place for
    of_imagenet: bool = False  # whether the classifier has the 1000 classes of ImageNet


def read_trained_weights(
    config: ConfigDict, num_classes: int, inputs: np.ndarray
) -> TrainedWeights:
    """Reads the weights that `config.init_from` names: a run's best, an exported file, or torch's.

    Of `inputs`, those of one example, only the shape matters.
    """
    source = Path(config.init_from).expanduser()
    if weights.is_export(source):
        return TrainedWeights(weights.read_weights(source)[0], str(source))
    if source.is_file():
        return _read_torch_file(source, config, num_classes, inputs)
    variables = restore_best_variables(source, "--config.init_from=")
    return TrainedWeights(variables, f"step {read_best_step(source):,} of {source}")


def initialise_from(
    state: TrainState,
    trained: TrainedWeights,
    config: ConfigDict,
    num_classes: int,
    inputs: np.ndarray,
) -> tuple[TrainState, str]:
    """Returns a new state with trained weights, and the sentence that says which were taken over.

    Parameters of the same network are taken over as they are, those of a static network by
    `dyn.interop.warm_start`. The head stays as it is if the number of classes differs, unless the classes are
    known to be among those of the weights. Of `inputs`, those of one example, only the shape matters. A
    UserError says why weights do not fit.
    """
    ours = _flatten({"params": state.params, "batch_stats": state.batch_stats})
    theirs = _take_common_parts(_flatten(trained.variables), ours)
    their_parts = {path[1] for path in theirs}
    has_backbone = any(path[1] == "backbone" for path in ours)
    new = {p: leaf for p, leaf in ours.items() if has_backbone and p[1] not in their_parts}
    other_classes = False
    same = _shapes(theirs) == _shapes({p: leaf for p, leaf in ours.items() if p not in new})
    if not same and their_parts != {"backbone"}:
        head = _find_head(config, num_classes, inputs)
        their_head, our_head = (_select(tree, head) for tree in (theirs, ours))
        if trained.of_imagenet and config.data.name == "tiny_imagenet":
            their_head = _select_classes(their_head, our_head)
            theirs |= their_head
        if _shapes(their_head) != _shapes({p: v for p, v in our_head.items() if p not in new}):
            other_classes, new = True, new | our_head
            theirs = {path: leaf for path, leaf in theirs.items() if path not in their_head}
    wanted = {path: leaf for path, leaf in ours.items() if path not in new}
    _check_norms(theirs, wanted, config)
    _check_statistics(theirs, wanted, config)
    if theirs.keys() == wanted.keys():
        _check_shapes(theirs, wanted, config.init_from)
        taken = theirs
    else:
        model = make_task(config).make_model(num_classes, spatial_axes=inputs.ndim - 1)
        taken = _warm_start(model, wanted, theirs, config)
    # Copies, because a training step donates its argument buffers.
    variables = jax.tree.map(jnp.array, _unflatten({**taken, **new}))
    average = start_average(**variables) if state.average else {}
    unused = f", left out: {', '.join(trained.unused)}" if trained.unused else ""
    sentence = (
        f"starts from {trained.origin}: {_describe_taken(theirs, ours, other_classes)}{unused}"
    )
    return state.replace(**variables, average=average), sentence


def _select_classes(theirs: Flat, ours: Flat) -> Flat:
    """Returns the classifier of ImageNet for the classes of Tiny ImageNet, if ours has all of these."""
    selected = {path: leaf[..., tiny_imagenet.IMAGENET_INDICES] for path, leaf in theirs.items()}
    return selected if _shapes(selected) == _shapes(ours) else theirs


def _take_common_parts(theirs: Flat, ours: Flat) -> Flat:
    """Returns the parts of another network that a network with a backbone has too.

    A classifier without one is the backbone. Networks without backbone take everything.
    """
    parts = {path[1] for path in ours}
    if "backbone" not in parts:
        return theirs
    if "backbone" not in {path[1] for path in theirs}:
        # A classifier, without the layers behind its features.
        known = {path[2] for path in ours if path[1] == "backbone"}
        return {(p[0], "backbone", *p[1:]): v for p, v in theirs.items() if p[1] in known}
    return {path: leaf for path, leaf in theirs.items() if path[1] in parts}


def _check_statistics(theirs: Flat, ours: Flat, config: ConfigDict) -> None:
    """Raises a UserError if one backbone of a detector has batch norms and the other has group norms."""
    if "detector" not in config:
        return
    has_batch_norms, wants_them = (
        any(path[:2] == ("batch_stats", "backbone") for path in tree) for tree in (theirs, ours)
    )
    if has_batch_norms != wants_them:
        norm = "frozen" if has_batch_norms else "group"
        raise UserError(
            f"The network cannot start from {config.init_from}, whose norms are others: write "
            f"--config.detector.norm={norm}."
        )


def _warm_start(model: nn.Module, wanted: Flat, theirs: Flat, config: ConfigDict) -> Flat:
    """Makes a dynamic network's arrays of a static one's."""
    network = model.backbone() if hasattr(model, "backbone") else model
    conv = getattr(network, "conv", None)
    try:
        made = warm_start(
            _unflatten(wanted),
            _unflatten(theirs),
            awake=config.start.awake,
            noise=config.start.noise,
            warehouses=conv if isinstance(conv, Warehouses) else None,
            norm_epsilon=find_epsilon(network),
            key=jax.random.fold_in(jax.random.key(config.seed), 1),
        )
    except ValueError as error:
        raise UserError(
            f"The network cannot start from {config.init_from}: {error} Give a run of the same network, "
            "or of its static twin, with the same --config.model fields."
        ) from error
    return _flatten(made)


def find_epsilon(network: nn.Module) -> float:
    """Returns the epsilon of a network's norms: torch's, but for mobile networks of TensorFlow's."""
    return network.make_layout().epsilon if isinstance(network, InvertedResidualNet) else 1e-5


def _check_norms(theirs: Flat, ours: Flat, config: ConfigDict) -> None:
    """Raises a UserError if only the norm of the attention keeps a dynamic network from starting."""
    their_norms, our_norms = (
        {path for path in tree if "attention" in path and path[-2:-1] == ("norm",)}
        for tree in (theirs, ours)
    )
    if their_norms == our_norms or theirs.keys() - their_norms != ours.keys() - our_norms:
        return
    statistics = any(path[0] == "batch_stats" for path in their_norms)
    norm = "batch" if statistics else "layer" if their_norms else "none"
    raise UserError(
        f"The network cannot start from {config.init_from}, whose attention has another norm: write "
        f"--config.conv.attention_norm={norm}."
    )


def _check_shapes(theirs: Flat, ours: Flat, run: str) -> None:
    """Raises a UserError that names the first arrays whose shape differs, parameters first."""
    names = sorted(theirs, key=lambda path: (path[0] != "params", path))
    differing = describe_differences(
        *({"/".join(path): tuple(tree[path].shape) for path in names} for tree in (theirs, ours)),
        template="{name} is {old} there and {new} here",
        limit=3,
    )
    if differing:
        raise UserError(
            f"The network cannot start from {run}: {differing}. Give a run of the same network, or of its "
            "static twin."
        )


def _describe_taken(theirs: Flat, ours: Flat, other_classes: bool) -> str:
    """Says how many parameters were taken over, and which were not."""
    # `FDConv` keeps the Fourier transform of what a static layer calls its kernel.
    static_names = {
        path: (*path[:-1], "kernel") if path[-1] == "spectrum" else path
        for path in ours
        if path[0] == "params"
    }
    # The cells of warehouses hold kernels.
    new = [
        path for path, name in static_names.items() if name not in theirs and path[-1] != "cells"
    ]
    words = f"{len(static_names) - len(new)} of {len(static_names)} parameters taken over"
    if not new:
        return words
    named = [f"{'/'.join(path[1:])} {ours[path].shape}" for path in new[:6]]
    more = f" and {len(new) - 6} more" if len(new) > 6 else ""
    why = " (other classes)" if other_classes else ""
    return f"{words}; new{why}: {', '.join(named)}{more}"


def _find_head(config: ConfigDict, num_classes: int, inputs: np.ndarray) -> set[tuple[str, ...]]:
    """Returns the paths of the layers whose shapes depend on the number of classes."""
    ours, others = (
        _shapes(_flatten({"params": _variable_shapes(config, number, inputs)["params"]}))
        for number in (num_classes, num_classes + 1)
    )
    return {path[:-1] for path, shape in ours.items() if others.get(path) != shape}


def _select(tree: Flat, layers: set[tuple[str, ...]]) -> Flat:
    """Returns the arrays below some layers."""
    return {
        path: leaf
        for path, leaf in tree.items()
        if any(path[: len(layer)] == layer for layer in layers)
    }


# ---------------------------------------------------------------- torch


def _read_torch_file(
    path: Path, config: ConfigDict, num_classes: int, inputs: np.ndarray
) -> TrainedWeights:
    """Reads torch's weights into the arrays of the network that they belong to.

    That network is the config's own, or its static twin if the weights are static, with the file's classes.
    In a segmentation network or a detector it is the backbone, unless the file is that of a detector.
    """
    try:
        theirs = read_weights(path)
    except (ValueError, ImportError, OSError) as error:
        raise UserError(f"--config.init_from: {error}") from error
    source, classes = detect_source(theirs), num_classes_of(theirs)
    if "detector" in config:
        _check_torch_norms(path, theirs, config)
    if source == "faster_rcnn" and "detector" in config:
        return _read_torch_detector(path, theirs, config, num_classes, inputs)
    static = source in _STATIC and not any("routing_fn" in name for name in theirs)
    twin = _static_twin(config, theirs) if static else config
    shapes = _variable_shapes(twin, classes or num_classes, inputs)
    has_backbone = "backbone" in shapes["params"]
    if has_backbone:
        shapes = {name: tree["backbone"] for name, tree in shapes.items() if tree}
    without = ("head",) if has_backbone or classes is None else ()
    if "detector" in config:
        without = _find_classifier(twin, shapes["params"], inputs)
    imported = _import_arrays(path, theirs, shapes, without, source)
    # A network without norms has no statistics.
    variables = {name: dict(imported.variables.get(name, {})) for name in COLLECTIONS}
    if without:
        variables["params"].pop("head", None)
    if has_backbone:
        variables = {name: {"backbone": tree} for name, tree in variables.items()}
    return TrainedWeights(variables, str(path), _list_unused(imported), classes == 1000)


def _import_arrays(
    path: Path,
    theirs: Mapping[str, np.ndarray],
    shapes: Mapping[str, Any],
    without: Sequence[str],
    source: str,
) -> Imported:
    try:
        return from_torch(shapes, theirs, without=without)
    except ValueError as error:
        if not has_known_names(theirs):
            raise UserError(f"The network cannot start from {path}: {error}") from error
        parts = (textwrap.shorten(part, 150, placeholder=" ...") for part in str(error).split("; "))
        raise UserError(
            f"The network cannot start from {path}: {'; '.join(parts)} Such weights fit {_FITTING[source]}."
        ) from error


def _list_unused(imported: Imported) -> list[str]:
    """Returns the names of a file's arrays without a place here, as a message has them."""
    counts = [name for name in imported.left_out if name.endswith("num_batches_tracked")]
    # Constants are those of the network here.
    known = (*counts, *(name for name in imported.left_out if name.rpartition(".")[2] in CONSTANTS))
    unused = [name for name in imported.left_out if name not in known]
    return unused + ([f"{count_noun(len(counts), 'count')} of batches"] if counts else [])


def _read_torch_detector(
    path: Path,
    theirs: Mapping[str, np.ndarray],
    config: ConfigDict,
    num_classes: int,
    inputs: np.ndarray,
) -> TrainedWeights:
    """Returns the weights of a file of torchvision's detectors for a detector of the same sizes."""
    logits = theirs.get("roi_heads.box_predictor.cls_score.bias")
    classes = num_classes if logits is None else len(logits)
    shapes = _variable_shapes(_static_twin(config, theirs), classes, inputs)
    # One of the two may have no masks.
    has_masks = any(".mask_head." in name for name in theirs)
    without = () if has_masks and "mask_head" in shapes["params"] else ("mask_head",)
    if path.name.startswith(PUBLISHED_DETECTORS):
        theirs = correct_frozen_norms(theirs)
    imported = _import_arrays(path, theirs, shapes, without, "faster_rcnn")
    variables = {name: dict(imported.variables.get(name, {})) for name in COLLECTIONS}
    for part in without:
        variables["params"].pop(part, None)
    return TrainedWeights(variables, str(path), _list_unused(imported))


def _find_classifier(
    config: ConfigDict, backbone: Mapping[str, Any], inputs: np.ndarray
) -> tuple[str, ...]:
    """Returns the layers behind the features of a backbone, which the same network has as a classifier."""
    network = models.create_model(**describe_backbone(config), num_classes=2)
    one = jax.ShapeDtypeStruct((1, *inputs.shape), inputs.dtype)
    shapes = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), one)
    return tuple(sorted({"head", *shapes["params"]} - backbone.keys()))


def _check_torch_norms(path: Path, theirs: Mapping[str, np.ndarray], config: ConfigDict) -> None:
    """Raises a UserError if a file has batch norms, and a detector is to have others."""
    has_statistics = any(name.endswith("running_var") for name in theirs)
    if has_statistics and config.detector.norm == "group":
        raise UserError(
            f"The network cannot start from {path}, whose norms are batch norms: write "
            "--config.detector.norm=frozen."
        )


def _static_twin(config: ConfigDict, theirs: Mapping[str, np.ndarray]) -> ConfigDict:
    """Returns the config of the static network that has the file's arrays."""
    twin = ConfigDict(config)
    with twin.unlocked():
        twin.conv, twin.classifier = {"name": "conv"}, {"name": "dense"}
        twin.model.context = "input"
        if not any(".se." in name for name in theirs):
            twin.attention = {"name": "none"}
    return twin


# ---------------------------------------------------------------- trees


def _variable_shapes(config: ConfigDict, num_classes: int, inputs: np.ndarray) -> dict[str, Any]:
    """Traces the initialisation of a network."""
    model = make_task(config).make_model(num_classes, spatial_axes=inputs.ndim - 1)
    one = jax.ShapeDtypeStruct((1, *inputs.shape), inputs.dtype)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), one)
    return {name: shapes.get(name, {}) for name in COLLECTIONS}


def _flatten(variables: Mapping[str, Any]) -> Flat:
    return traverse_util.flatten_dict({k: v for k, v in variables.items() if k in COLLECTIONS})


def _unflatten(flat: Flat) -> dict[str, Any]:
    return {"params": {}, "batch_stats": {}, **traverse_util.unflatten_dict(flat)}


def _shapes(flat: Flat) -> dict[tuple[str, ...], tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}
