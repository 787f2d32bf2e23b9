"""Files that a run keeps for reports: attention maps, kernel mixtures, segmented pictures of some examples.

The examples follow from the labels of the test split alone, so that all runs on it show the same ones.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from PIL import Image
from scipy import special

from dyn.diagnostics import attention_statistics, class_activation, layer_outputs, sown_weights
from experiments.core.compilation import quick_compile_options
from experiments.core.errors import UserError
from experiments.core.files import replace_file
from experiments.data import archives

Array = np.ndarray
NUM_EXAMPLES = 8
MIN_POSITIONS = 4  # along each axis of the layer whose activation is mapped
MAX_SIDE = 320  # pixels of the longer side of a segmentation sample


@dataclasses.dataclass(frozen=True, eq=False)
class Maps:
    """Attention and activation of N examples, as `save_maps` writes them.

    Attributes:
        inputs: float32 `[N, H, W, C]` or `[N, L, C]`, as the network saw them.
        labels: int64 `[N]`.
        predictions: int64 `[N]`.
        probabilities: float32 `[N]`, of the predictions.
        classes: the names of all classes.
        layer: the layer of the class activation; '' if no layer has enough positions.
        activation: `[N, *spatial]`, the evidence for the true class at each place.
        weights: layer to kind to `[N, ...]`, the attention weights.
        mixtures: layer to statistics of its kernel mixtures over `count` inputs: `mean [K]`, `on [K]` (share
            of inputs with a nonzero weight), `dead [K]`, and the scalars `spread`, `entropy`, `hard` (all
            weights are 0 or 1) and `count`; where it is known, `by_class [C, K]`, the mean over each class,
            NaN for one without inputs.
    """

    inputs: Array
    labels: Array
    predictions: Array
    probabilities: Array
    classes: Sequence[str]
    layer: str
    activation: Array
    weights: Mapping[str, Mapping[str, Array]]
    mixtures: Mapping[str, Mapping[str, Array]]


def save_maps(
    path: str | os.PathLike,
    model: nn.Module,
    variables: Mapping[str, Any],
    example: Callable[[int], Mapping[str, Array]],
    labels: Array,
    classes: Sequence[str],
    mixtures: Mapping[str, Array] | None = None,
    by_class: Mapping[str, Array] | None = None,
) -> None:
    """Writes attention, activation and predictions of a few test examples; `load_maps` reads them.

    Args:
        path: the file, `maps.npz` in the run's folder.
        model: maps `inputs` to logits `[B, classes]`.
        variables: the model's variables.
        example: returns the test example of an index, preprocessed: a dictionary with `inputs`.
        labels: `[all]`, the labels of the whole split, in order.
        classes: the names of the classes.
        mixtures: layer to `[all, K]`, the mixture weights over the whole split; those of other layers are
            taken from the few examples.
        by_class: layer to `[C, K]`, the mean mixture of each class over the whole split.
    """
    labels = np.asarray(labels)
    chosen = choose_examples(labels, NUM_EXAMPLES)
    inputs = np.stack([np.asarray(example(int(index))["inputs"]) for index in chosen])
    layer = find_activation_layer(model, variables, inputs)
    arguments = (jax.device_get(variables), inputs, labels[chosen].astype(np.int32))
    lowered = jax.jit(partial(_run_network, model, layer)).lower(*arguments)
    outputs = jax.device_get(lowered.compile(quick_compile_options())(*arguments))
    logits = outputs["logits"].astype(np.float32)
    arrays = {
        "inputs": inputs.astype(np.float32),
        "labels": labels[chosen].astype(np.int64),
        "predictions": logits.argmax(axis=-1),
        "probabilities": special.softmax(logits, axis=-1).max(axis=-1),
        "classes": np.array([str(name) for name in classes]),
        "layer": np.array(layer),
        "activation": outputs["activation"],
    }
    for name, weights in (_select_mixtures(outputs["weights"]) | dict(mixtures or {})).items():
        for statistic, value in describe_mixture(weights).items():
            arrays[f"mixtures/{name}/{statistic}"] = value
    for name, table in (by_class or {}).items():
        arrays[f"mixtures/{name}/by_class"] = np.asarray(table, np.float32)
    for name, kinds in outputs["weights"].items():
        for kind, weights in kinds.items():
            arrays[f"weights/{name}/{kind}"] = weights.astype(np.float16)
    _write_arrays(path, arrays)


def choose_examples(labels: Array, number: int) -> Array:
    """Returns the indices of the first example of classes spread evenly over all; then of second examples.

    They are `[min(number, all)]` different indices for labels `[all]`, sorted by class.
    """
    present = np.unique(labels)
    evenly = np.linspace(0, len(present) - 1, min(number, len(present))).round().astype(int)
    occurrence = np.zeros(len(labels), int)  # index of an example within its class
    for label in present:
        occurrence[labels == label] = np.arange(np.sum(labels == label))
    # The classes between them come last: they are needed only if these have too few examples.
    chosen = np.lexsort((labels, occurrence, ~np.isin(labels, present[evenly])))[:number]
    return chosen[np.lexsort((chosen, labels[chosen]))]


def find_activation_layer(model: nn.Module, variables: Any, inputs: Array) -> str:
    """Returns the last layer whose output still has several positions along each axis, or ''.

    Only the outermost submodules with such outputs count: the stages' blocks of a ResNet.
    """
    outputs = layer_outputs(model, variables, inputs)
    shapes = {name: shape for name, shape in outputs.items() if len(shape) == inputs.ndim}
    wide = [name for name, shape in shapes.items() if min(shape[1:-1]) >= MIN_POSITIONS]
    depth = min((name.count("/") for name in wide), default=0)
    return next((name for name in reversed(wide) if name.count("/") == depth), "")


def describe_mixture(weights: Array) -> dict[str, Array]:
    """Returns statistics of mixture weights `[N, K]` or `[N, *positions, K]`; see `Maps.mixtures`."""
    weights = np.asarray(weights, np.float32)
    statistics = {name: np.asarray(value) for name, value in attention_statistics(weights).items()}
    return {
        **statistics,
        "on": (weights != 0).mean(axis=tuple(range(weights.ndim - 1))),
        "hard": np.isin(weights, (0.0, 1.0)).all(),
        "count": np.array(len(weights)),
    }


def _run_network(
    model: nn.Module, layer: str, variables: Any, inputs: jax.Array, labels: jax.Array
) -> dict[str, Any]:
    """Returns logits, attention weights and the activation of the true classes."""
    logits, state = model.apply(variables, inputs, mutable=["intermediates"])
    activation = np.zeros((len(inputs),) + (0,) * (inputs.ndim - 2), np.float32)
    if layer:
        activation = class_activation(model, variables, inputs, labels, layer)
    return {
        "logits": logits,
        "weights": sown_weights(state.get("intermediates", {})),
        "activation": activation,
    }


def _select_mixtures(sown: Mapping[str, Mapping[str, Array]]) -> dict[str, Array]:
    """Returns each layer's weights over its kernels, `[N, K]`; of hard gates those of filters or slices."""
    mixtures = {}
    for name, kinds in sown.items():
        parts = kinds.get("filter", kinds.get("slice"))
        if "kernel" in kinds:
            mixtures[name] = kinds["kernel"]
        elif parts is not None and np.isin(parts, (0.0, 1.0)).all():
            mixtures[name] = parts.reshape(len(parts), -1)
    return mixtures


def load_maps(path: str | os.PathLike) -> Maps:
    """Reads a file of `save_maps`.

    Raises:
        UserError: if the file is damaged.
    """
    arrays = _read_arrays(path, [field.name for field in dataclasses.fields(Maps)[:7]])
    groups: dict[str, dict[str, dict[str, Array]]] = {"weights": {}, "mixtures": {}}
    for key in [key for key in arrays if "/" in key]:
        group, _, rest = key.partition("/")
        layer, _, name = rest.rpartition("/")
        groups.setdefault(group, {}).setdefault(layer, {})[name] = arrays.pop(key)
    arrays |= {"classes": arrays["classes"].tolist(), "layer": str(arrays["layer"])}
    return Maps(**arrays, weights=groups["weights"], mixtures=groups["mixtures"])


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Segmented pictures: uint8 `[H, W, 3]` and their masks `[H, W]`, of any sizes."""

    images: Sequence[Array]
    truths: Sequence[Array]
    predictions: Sequence[Array]
    classes: Sequence[str]


def save_samples(
    path: str | os.PathLike,
    images: Sequence[Array],
    truths: Sequence[Array],
    predictions: Sequence[Array],
    classes: Sequence[str],
) -> None:
    """Writes segmented test pictures at a small size to `samples.npz`; `load_samples` reads them.

    Images are uint8 `[H, W, 3]`, of any sizes; masks are integers `[H, W]`, 255 at pixels that do not count.
    """
    arrays = {"classes": np.array([str(name) for name in classes], dtype=str)}
    triples = zip(images, truths, predictions, strict=True)
    for index, (image, truth, prediction) in enumerate(triples):
        arrays[f"images/{index}"] = _shrink(image, Image.Resampling.BILINEAR)
        arrays[f"truths/{index}"] = _shrink(truth, Image.Resampling.NEAREST)
        arrays[f"predictions/{index}"] = _shrink(prediction, Image.Resampling.NEAREST)
    _write_arrays(path, arrays)


def load_samples(path: str | os.PathLike) -> Samples:
    """Reads a file of `save_samples`.

    Raises:
        UserError: if the file is damaged.
    """
    arrays = _read_arrays(path, ["classes"])
    number = sum(key.startswith("images/") for key in arrays)
    names = ("images", "truths", "predictions")
    try:
        parts = {name: [arrays[f"{name}/{index}"] for index in range(number)] for name in names}
    except KeyError as error:
        raise UserError(f"{path} is damaged: it has no {error}.") from error
    return Samples(**parts, classes=arrays["classes"].tolist())


def _shrink(picture: Array, resampling: Image.Resampling) -> Array:
    """Resizes a picture or a mask to at most `MAX_SIDE` pixels along its longer side."""
    picture = np.asarray(picture).astype(np.uint8)
    height, width = picture.shape[:2]
    scale = min(1.0, MAX_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, resampling))


def _write_arrays(path: str | os.PathLike, arrays: Mapping[str, Array]) -> None:
    with replace_file(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **dict(arrays))


def _read_arrays(path: str | os.PathLike, needed: Sequence[str]) -> dict[str, Any]:
    """Reads all arrays of a file, or raises UserError if it cannot be read or lacks a needed one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            archives.check_zip(file.zip)
            arrays = {name: file[name] for name in file.files}
    except archives.ArchiveError as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # readers of torn files raise whatever they come across
        raise UserError(f"{path} cannot be read: it is damaged.") from error
    if missing := [name for name in needed if name not in arrays]:
        raise UserError(f"{path} is damaged: it has no {missing[0]}.")
    return arrays
