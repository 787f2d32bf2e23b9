"""Loads the network of a finished run.

    from experiments.load import load

    model = load("runs/odconv-digits")
    probabilities = model(pictures)

Pictures are uint8 `[N, H, W, C]`, or a list of pictures of any sizes. For a run on recordings

    places, scores = model.sounds(samples, rate)

returns the start and end of each window of a sound, in seconds, and the scores of the classes in it.
"""

import os
from pathlib import Path

from ml_collections import ConfigDict

from experiments.configs.shared.assemble import restore_config
from experiments.core import files
from experiments.core.errors import UserError
from experiments.inference.trained import Trained
from experiments.runs import artifacts, weights
from experiments.runs.folder import read_summary


def load(run: str | os.PathLike, *, generator: bool = False) -> Trained:
    """Returns the network of a finished run, with the parameters of its best evaluation.

    Args:
        run: the run's workdir, or a file that `experiments.export --format=safetensors` wrote.
        generator: whether it may be a GAN, which generates pictures and predicts nothing.

    Raises:
        UserError: if there is no finished run, or it cannot be read.
    """
    source = Path(run).expanduser()
    if source.suffix == weights.SUFFIX:
        variables, metadata = weights.read_weights(source)
        config = restore_config(metadata["config"])
        return Trained(config, metadata["classes"], tuple(metadata["shape"]), variables, source)
    summary = read_summary(source)
    if summary is None:
        raise UserError(
            f"{source} is no finished run: give a --workdir that has a summary.json in it."
        )
    # Here, because the environment for ONNX files has no orbax that fits.
    from experiments.runs.checkpoints import restore_best_variables

    file = source / "config.json"
    try:
        config = restore_config(files.read_json_object(file))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file} cannot be read: {error}.") from error
    if config.task == "acgan" and not generator:
        raise UserError(
            f"{source} is the run of a GAN, which predicts nothing: generate pictures with "
            f"python -m experiments.generate {source}."
        )
    classes, shape = summary.get("classes"), summary.get("shape")
    if classes is None or not shape:  # Unlabelled data has an empty list of classes.
        classes, shape = _read_classes_and_shape(source, config)
    return Trained(config, list(classes), tuple(shape), restore_best_variables(source), source)


def _read_classes_and_shape(folder: Path, config: ConfigDict) -> tuple[list[str], tuple[int, ...]]:
    """Returns the classes and the shape of an old run, whose summary lacks them, from its samples."""
    if config.task == "segmentation":
        classes = artifacts.load_samples(folder / "samples.npz").classes
        return list(classes), (config.image_size, config.image_size, 3)
    maps = artifacts.load_maps(folder / "maps.npz")
    return list(maps.classes), maps.inputs.shape[1:]
