"""What a trained network sees in a few test examples, kept for the report: maps, mixtures, masks.

The examples follow from the labels of the test split alone, so that all runs on it show the same ones.
"""

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from PIL import Image

from dyn.diagnostics import attention_statistics, class_activation, layer_outputs, sown_weights
from experiments.core.errors import UserError
from experiments.core.files import replace_file
from experiments.data import archives

Array = np.ndarray
NUMBER = 8  # examples that are shown
POSITIONS = 4  # along each axis, at least, of the layer whose activation is mapped
SIDE = 320  # pixels of the longer side of a segmentation sample


@dataclasses.dataclass(frozen=True, eq=False)
class Maps:
    """What `save_maps` wrote of N examples.

    Attributes:
        inputs: float32 `[N, H, W, C]` or `[N, L, C]`, as the network saw them.
        labels: int64 `[N]`.
        predictions: int64 `[N]`.
        probabilities: float32 `[N]`, of the predictions.
        classes: the names of all classes.
        layer: whose class activation was taken; '' where no layer has positions enough.
        activation: `[N, *spatial]`, how much each place speaks for the true class.
        weights: layer to kind to `[N, ...]`: what each layer's attention decided.
        mixtures: layer to `mean [K]`, `on [K]` (share of inputs with a weight that is not zero), `dead [K]`,
            and the scalars `spread`, `entropy`, `hard` (all weights are 0 or 1) and `count`: how each layer
            mixed its kernels over `count` inputs.
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
) -> None:
    """Writes what a network makes of a few test examples; `load_maps` reads it.

    Args:
        path: the file, `maps.npz` in the folder of a run.
        model: takes `inputs` and gives logits `[B, classes]`.
        variables: the model's.
        example: gives the test example of an index as the network sees it: its `inputs`.
        labels: `[all]`, the truth of the whole split, in its order.
        classes: their names.
        mixtures: layer to `[all, K]`, how each layer mixed its kernels for the whole split; those that
            are not given are taken from the few examples.
    """
    labels = np.asarray(labels)
    chosen = choose(labels, NUMBER)
    inputs = np.stack([np.asarray(example(int(index))["inputs"]) for index in chosen])
    layer = activation_layer(model, variables, inputs)
    arguments = (jax.device_get(variables), inputs, labels[chosen].astype(np.int32))
    look = jax.jit(partial(_look, model, layer)).lower(*arguments).compile(_quickly())
    found = jax.device_get(look(*arguments))
    logits = found["logits"].astype(np.float32)
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    arrays = {
        "inputs": inputs.astype(np.float32),
        "labels": labels[chosen].astype(np.int64),
        "predictions": logits.argmax(axis=-1),
        "probabilities": shares.max(axis=-1) / shares.sum(axis=-1),
        "classes": np.array([str(name) for name in classes]),
        "layer": np.array(layer),
        "activation": found["activation"],
    }
    for name, weights in (_mixed(found["weights"]) | dict(mixtures or {})).items():
        for statistic, value in mixture_statistics(weights).items():
            arrays[f"mixtures/{name}/{statistic}"] = value
    for name, kinds in found["weights"].items():
        for kind, weights in kinds.items():
            arrays[f"weights/{name}/{kind}"] = weights.astype(np.float16)
    _write(path, arrays)


def choose(labels: Array, number: int) -> Array:
    """The first example of each of so many classes, spread over those there are; then the second ones.

    Args:
        labels: `[all]` integers.
        number: how many to choose.

    Returns:
        `[min(number, all)]` different indices, by class.
    """
    present = np.unique(labels)
    spread = np.linspace(0, len(present) - 1, min(number, len(present))).round().astype(int)
    turn = np.zeros(len(labels), int)  # the how manieth of its class
    for label in present:
        turn[labels == label] = np.arange(np.sum(labels == label))
    # Other classes come last: they are needed where these have too few examples.
    chosen = np.lexsort((labels, turn, ~np.isin(labels, present[spread])))[:number]
    return chosen[np.lexsort((chosen, labels[chosen]))]


def activation_layer(model: nn.Module, variables: Any, inputs: Array) -> str:
    """The last layer whose output still has some positions along each axis; '' if there is none.

    Looked at are the outermost submodules with such outputs: the stages' blocks of a ResNet.
    """
    outputs = layer_outputs(model, variables, inputs)
    wide = [
        name
        for name, shape in outputs.items()
        if len(shape) == inputs.ndim and min(shape[1:-1]) >= POSITIONS
    ]
    depth = min((name.count("/") for name in wide), default=0)
    return next((name for name in reversed(wide) if name.count("/") == depth), "")


def _look(
    model: nn.Module, layer: str, variables: Any, inputs: jax.Array, labels: jax.Array
) -> dict[str, Any]:
    """Logits, attention weights and the activation of the true classes."""
    logits, state = model.apply(variables, inputs, mutable=["intermediates"])
    activation = np.zeros((len(inputs),) + (0,) * (inputs.ndim - 2), np.float32)
    if layer:
        activation = class_activation(model, variables, inputs, labels, layer)
    return {
        "logits": logits,
        "weights": sown_weights(state.get("intermediates", {})),
        "activation": activation,
    }


def _mixed(sown: Mapping[str, Mapping[str, Array]]) -> dict[str, Array]:
    """Each layer's weights over its kernels, `[N, K]`; of hard gates also those of filters and slices."""
    found = {}
    for name, kinds in sown.items():
        parts = kinds.get("filter", kinds.get("slice"))
        if "kernel" in kinds:
            found[name] = kinds["kernel"]
        elif parts is not None and np.isin(parts, (0.0, 1.0)).all():
            found[name] = parts.reshape(len(parts), -1)
    return found


def _quickly() -> dict[str, Any] | None:
    """It runs once: what XLA would spend on making it fast on a CPU is a minute of waiting."""
    if jax.default_backend() != "cpu":
        return None
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def mixture_statistics(weights: Array) -> dict[str, Array]:
    """How a layer mixed its kernels over N inputs, `[N, K]` or `[N, *positions, K]`: see `Maps`."""
    weights = np.asarray(weights, np.float32)
    found = {name: np.asarray(value) for name, value in attention_statistics(weights).items()}
    found["on"] = (weights != 0).mean(axis=tuple(range(weights.ndim - 1)))
    found["hard"] = np.isin(weights, (0.0, 1.0)).all()
    found["count"] = np.array(len(weights))
    return found


def load_maps(path: str | os.PathLike) -> Maps:
    """What `save_maps` wrote.

    Raises:
        UserError: if the file is damaged.
    """
    arrays = _read(path, [field.name for field in dataclasses.fields(Maps)[:7]])
    groups: dict[str, dict[str, dict[str, Array]]] = {"weights": {}, "mixtures": {}}
    for key in [key for key in arrays if "/" in key]:
        group, _, rest = key.partition("/")
        layer, _, name = rest.rpartition("/")
        groups.setdefault(group, {}).setdefault(layer, {})[name] = arrays.pop(key)
    arrays |= {"classes": arrays["classes"].tolist(), "layer": str(arrays["layer"])}
    return Maps(**arrays, weights=groups["weights"], mixtures=groups["mixtures"])


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """What `save_samples` wrote: pictures `[H, W, 3]` and their masks `[H, W]`, uint8, of any sizes."""

    images: Sequence[Array]
    truths: Sequence[Array]
    predictions: Sequence[Array]
    classes: Sequence[str]


def save_samples(
    path: str | os.PathLike,
    images: Sequence[Array],
    truths: Sequence[Array],
    predictions: Sequence[Array],
    classes: Sequence[str] = (),
) -> None:
    """Writes segmented test pictures, made smaller; `load_samples` reads them.

    Args:
        path: the file, `samples.npz` in the folder of a run.
        images: uint8 `[H, W, 3]`, of any sizes.
        truths: integers `[H, W]`, 255 where nothing counts.
        predictions: integers `[H, W]`.
        classes: the names.
    """
    arrays = {"classes": np.array([str(name) for name in classes], dtype=str)}
    together = zip(images, truths, predictions, strict=True)
    for index, (image, truth, prediction) in enumerate(together):
        arrays[f"images/{index}"] = _smaller(image, Image.Resampling.BILINEAR)
        arrays[f"truths/{index}"] = _smaller(truth, Image.Resampling.NEAREST)
        arrays[f"predictions/{index}"] = _smaller(prediction, Image.Resampling.NEAREST)
    _write(path, arrays)


def load_samples(path: str | os.PathLike) -> Samples:
    """What `save_samples` wrote.

    Raises:
        UserError: if the file is damaged.
    """
    arrays = _read(path, ["classes"])
    number = sum(key.startswith("images/") for key in arrays)
    try:
        parts = {
            part: [arrays[f"{part}/{index}"] for index in range(number)]
            for part in ("images", "truths", "predictions")
        }
    except KeyError as error:
        raise UserError(f"{path} is damaged: it has no {error}.") from error
    return Samples(**parts, classes=arrays["classes"].tolist())


def _smaller(picture: Array, resampling: Image.Resampling) -> Array:
    """A picture or a mask with at most `SIDE` pixels along its longer side."""
    picture = np.asarray(picture).astype(np.uint8)
    height, width = picture.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, resampling))


def _write(path: str | os.PathLike, arrays: Mapping[str, Array]) -> None:
    with replace_file(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **dict(arrays))


def _read(path: str | os.PathLike, needed: Sequence[str]) -> dict[str, Any]:
    """All arrays of a file.

    Raises:
        UserError: if it cannot be read, or lacks one of those that are needed.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            archives.check_zip(file.zip)
            arrays = {name: file[name] for name in file.files}
    except archives.ArchiveError as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read: it is damaged.") from error
    if missing := [name for name in needed if name not in arrays]:
        raise UserError(f"{path} is damaged: it has no {missing[0]}.")
    return arrays
