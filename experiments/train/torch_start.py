"""A file of weights that torch has trained, as the parameters of a network to start from."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dyn.interop import from_torch, read_weights
from dyn.interop.torch_weights import num_classes as classes_of
from dyn.interop.torch_weights import source_of
from experiments.core.errors import UserError
from experiments.tasks import make_task

# What the config must say for the weights of a source to fit.
_FITTING = {
    "torchvision": "a ResNet of their --config.model.depth and .width (64), with .stem=imagenet",
    "odconv": "--config.conv.name=odconv with their .num_kernels and .attention_norm=batch, in a ResNet of "
    "their --config.model.depth, with .stem=imagenet",
    "condconv": "--config.conv.name=condconv with their .num_kernels, and --config.model.context=block",
    "dcd": "--config.conv.name=dcd and --config.classifier.name=dcd, in a ResNet of their "
    "--config.model.depth, with .stem=imagenet",
    "vgg16": "--config.model.network=vgg16 with .width=64",
    "mobilenet_v2": "--config.model.network=mobilenet_v2 of their --config.model.width (64)",
}
_STATIC = ("torchvision", "vgg16", "mobilenet_v2")


def trained_by_torch(
    path: Path, config: ConfigDict, num_classes: int, inputs: np.ndarray
) -> tuple[dict[str, Any], str]:
    """`params` and `batch_stats` of the network that a file's weights are of, and what was left out.

    That network is the config's own, or its static twin where the weights are static; with the file's
    classes. Of a segmentation network it is the backbone.

    Args:
        path: of the file.
        config: the experiment.
        num_classes: of the data, for weights without a head.
        inputs: of one example; only their shape matters.

    Raises:
        UserError: if the file cannot be read, or its weights do not fit.
    """
    try:
        weights = read_weights(path)
    except (ValueError, ImportError, OSError) as error:
        raise UserError(f"--config.init_from: {error}") from error
    source, classes = source_of(weights), classes_of(weights)
    task = make_task(_network_of(weights, source, config))
    model = task.make_model(classes or num_classes, spatial_axes=inputs.ndim - 1)
    one = jax.ShapeDtypeStruct((1, *inputs.shape), inputs.dtype)
    made = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), one)
    variables = {name: made.get(name, {}) for name in ("params", "batch_stats")}
    backbone = "backbone" in variables["params"]
    if backbone:
        variables = {name: tree["backbone"] for name, tree in variables.items()}
    without = ("head",) if backbone or classes is None else ()
    try:
        found = from_torch(variables, weights, without=without)
    except ValueError as error:
        parts = (textwrap.shorten(part, 150, placeholder=" ...") for part in str(error).split("; "))
        raise UserError(
            f"The network cannot start from {path}: {'; '.join(parts)} Such weights fit {_FITTING[source]}."
        ) from error
    # A network without norms has no statistics.
    filled = {name: dict(found.variables.get(name, {})) for name in variables}
    if without:
        filled["params"].pop("head", None)
    if backbone:
        filled = {name: {"backbone": tree} for name, tree in filled.items()}
    counts = [name for name in found.left_out if name.endswith("num_batches_tracked")]
    left_out = [name for name in found.left_out if name not in counts]
    left_out += [f"{len(counts)} counts of batches"] if counts else []
    return filled, f", left out: {', '.join(left_out)}" if left_out else ""


def _network_of(weights: Mapping[str, np.ndarray], source: str, config: ConfigDict) -> ConfigDict:
    """The config of the network that weights are of: the one given, or its static twin."""
    if source not in _STATIC:
        return config
    twin = config.copy_and_resolve_references()
    with twin.unlocked():
        twin.conv, twin.classifier = {"name": "conv"}, {"name": "dense"}
        twin.model.context = "input"
        if not any(".se." in name for name in weights):
            twin.attention = {"name": "none"}
    return twin
