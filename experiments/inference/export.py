"""Exports a trained network to a file for other programs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn import interop
from dyn.models import Detections
from experiments.core import files
from experiments.core.errors import UserError, suggest_nearest
from experiments.core.files import replace_file
from experiments.inference import hub, onnx
from experiments.inference.trained import Trained
from experiments.runs import weights
from experiments.runs.folder import list_versions

FORMATS = ("stablehlo", "safetensors", "hub", "onnx")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
USUAL_PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    trained: Trained,
    file_format: str,
    out: str | Path = "",
    *,
    platforms: Sequence[str] = (),
    batch: int = 0,
    fold_norms: bool = False,
    overwrite: bool = False,
    license: str = "",
) -> Path:
    """Writes a trained network to a file, or for the hub to a folder, and returns its path.

    The options are the flags of `experiments.export`.

    Raises:
        UserError: if the file exists, or the format cannot express the network.
    """
    _check_options(trained, file_format, platforms, batch, fold_norms)
    source = trained.source
    home = source.parent if source.suffix == weights.SUFFIX else source / "export"
    name = "hub" if file_format == "hub" else f"model.{file_format}"
    path = Path(out).expanduser() if out else home / name
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: choose another --out, or give --overwrite.")
    if license and file_format != "hub":
        raise UserError(f"--license={license}: only --format=hub has a card that states it.")
    if file_format == "hub":
        hub.write_folder(trained, path, license)
        return path
    if file_format == "safetensors":
        weights.write_weights(path, trained.variables, trained.make_metadata())
        return path
    description = describe_export(trained)
    outputs = description["outputs"]
    for described in (
        description["inputs"],
        *(outputs if isinstance(outputs, list) else [outputs]),
    ):
        described["shape"][0] = batch or "batch"
    description["folded_norms"] = fold_norms
    compute_logits = make_logits_fn(trained, fold_norms)
    if file_format == "stablehlo":
        description["platforms"] = platforms = list(platforms or USUAL_PLATFORMS)
        try:
            program = interop.to_stablehlo(compute_logits, make_example_struct(trained), platforms)
        except ValueError as error:
            raise UserError(f"The network cannot be exported: {error}") from error
    else:
        program = onnx.convert(compute_logits, make_example_struct(trained), batch)
    with replace_file(path) as temporary:
        temporary.write_bytes(program)
    files.write_json(path.with_name(f"{path.name}.json"), description)
    return path


def _check_options(
    trained: Trained, file_format: str, platforms: Sequence[str], batch: int, fold_norms: bool
) -> None:
    """Raises a UserError for the first invalid option, and for what a network cannot be written as."""
    if file_format not in FORMATS:
        raise UserError(f"--format={file_format}: choose one of {', '.join(FORMATS)}.")
    for platform in platforms:
        if platform not in PLATFORMS:
            raise UserError(
                f"--platforms: there is no {platform!r}{suggest_nearest(platform, PLATFORMS)}"
            )
    if platforms and file_format != "stablehlo":
        raise UserError(f"--platforms: {file_format} is for any of them; leave it out.")
    if batch < 0 or (batch and file_format != "onnx"):
        raise UserError(
            f"--batch={batch}: only --format=onnx has a fixed batch, of 1 or more; 0 is for any."
        )
    if fold_norms and file_format in ("safetensors", "hub"):
        raise UserError(
            f"--fold_norms: --format={file_format} keeps the parameters as they were trained; fold the norms "
            "of --format=stablehlo or onnx."
        )
    if trained.config.task == "instance_segmentation":
        if fold_norms:
            raise UserError("--fold_norms is not for detectors: it has not been tried with them.")
        if file_format == "onnx":
            raise UserError(
                "--format=onnx is not for detectors, which return several arrays: choose stablehlo."
            )
    if file_format == "onnx":
        onnx.check_installed()


def make_logits_fn(trained: Trained, fold_norms: bool = False) -> Callable[[jax.Array], Any]:
    """Returns the function that is exported: from uint8 pictures, or series, to float32 logits.

    Of a detector, it returns a dictionary of boxes, scores, labels and masks. With `fold_norms` the norms
    after convolutions are folded into them.
    """
    model, variables = trained.model, jax.tree.map(jnp.asarray, dict(trained.variables))
    if fold_norms:
        one = jax.ShapeDtypeStruct((1, *trained.shape), jnp.float32)
        model, variables, *_ = interop.fold_norms(model, variables, one, train=False)
    if trained.is_picture:
        normalise = trained.config.normalise
        mean, std = np.asarray(normalise.mean, np.float32), np.asarray(normalise.std, np.float32)

    def compute_logits(inputs: jax.Array) -> Any:
        if trained.is_picture:
            inputs = (inputs.astype(jnp.float32) / np.float32(255) - mean) / std
        outputs = model.apply(variables, inputs, train=False)
        if isinstance(outputs, Detections):
            return {name: value for name, value in outputs._asdict().items() if value is not None}
        return outputs.astype(jnp.float32)

    return compute_logits


def make_example_struct(trained: Trained) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of one input of the exported function."""
    return jax.ShapeDtypeStruct(trained.shape, jnp.uint8 if trained.is_picture else jnp.float32)


def describe_export(trained: Trained) -> dict[str, Any]:
    """Returns what someone who has only the exported file needs to know."""
    pictures = trained.is_picture
    if trained.is_audio:
        size = "a spectrogram that is drawn and coloured as `audio` says"
    elif trained.config.task == "instance_segmentation":
        size = "the longer side brought to the size, then padded with the mean colour below and to the right"
    elif trained.keeps_size:
        size = "scaled down where larger, then padded with the mean colour below and to the right"
    elif pictures:
        size = "the shorter side brought to the size, the middle square cut out"
    else:
        size = "missing values interpolated, shorter ones padded with zeros after normalising"
    classes = len(trained.classes)
    softmax = "logits: a softmax over the last axis gives probabilities"
    sigmoid = "logits: a sigmoid of each gives its probability"
    shape, values = {
        "reconstruction": (trained.shape, "0 to 1: the reconstructed picture"),
        "segmentation": ([*trained.shape[:2], classes], softmax),
        "tagging": ([classes], sigmoid),
        "event_detection": (["frames", classes], sigmoid),
    }.get(trained.config.task, ([classes], softmax))
    inputs = {
        "shape": ["batch", *trained.shape],
        "dtype": "uint8" if pictures else "float32",
        "values": "0 to 255; normalised within" if pictures else "each channel z-normalised",
        "size": size,
    }
    if pictures:
        inputs["normalisation"] = {
            "within": True,
            "mean": list(trained.config.normalise.mean),
            "std": list(trained.config.normalise.std),
        }
    if trained.is_audio:
        inputs["audio"] = trained.config.audio.to_dict()
    outputs: Any = {"dtype": "float32", "shape": ["batch", *shape], "values": values}
    if trained.config.task == "instance_segmentation":
        outputs = describe_detections(trained)
    return {
        "task": trained.config.task,
        "inputs": inputs,
        "outputs": outputs,
        "classes": list(trained.classes),
        "config": trained.config.name,
        "dataset": trained.config.dataset,
        "versions": list_versions(),
    }


def describe_detections(trained: Trained) -> list[dict[str, Any]]:
    """Returns the outputs of an exported detector: name, dtype, shape and meaning of each array."""
    function = make_logits_fn(trained)
    one = make_example_struct(trained)
    shapes = jax.eval_shape(function, jax.ShapeDtypeStruct((1, *one.shape), one.dtype))
    values = {
        "boxes": "x1, y1, x2, y2 in pixels of the input, x2 and y2 exclusive; the best first",
        "scores": "0 to 1; 0 where there is no object",
        "labels": "number of the class; 0 where there is no object",
        "masks": "probabilities within the box; from 0.5 a pixel belongs to the object",
    }
    return [
        {
            "name": name,
            "dtype": str(shape.dtype),
            "shape": ["batch", *shape.shape[1:]],
            "values": values[name],
        }
        for name, shape in shapes.items()
    ]
