"""Loads the network of a finished run.

    from experiments.load import load

    model = load("runs/odconv-digits")
    probabilities = model(pictures)

Pictures are uint8 `[N, H, W, C]`, or a list of pictures of any sizes. For a run on recordings

    places, scores = model.sounds(samples, rate)

returns the start and end of each window of a sound, in seconds, and the scores of the classes in it.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.core.errors import UserError
from experiments.inference.trained import Trained, check_network
from experiments.runs import artifacts, weights
from experiments.runs.integrity import warn
from experiments.runs.schema import CONFIG_FILE, SUMMARY_FILE, read_config, read_summary


def load(run: str | os.PathLike, *, generator: bool = False) -> Trained:
    """Returns the network of a finished run, with the parameters of its best evaluation.

    Args:
        run: the run's workdir, the folder of `experiments.probe`, or a file that `experiments.export
            --format=safetensors` wrote.
        generator: whether it may be a GAN, which generates pictures and predicts nothing.

    Raises:
        UserError: if there is no finished run, or it cannot be read.
    """
    source = Path(run).expanduser()
    exported = source / weights.MODEL
    is_probe = exported.is_file() and not (source / SUMMARY_FILE).exists()
    if is_probe or source.suffix == weights.SUFFIX:
        variables, metadata = weights.read_weights(exported if is_probe else source)
        return _make_trained(
            metadata["config"], metadata["classes"], metadata["shape"], variables, source
        )
    summary = read_summary(source)
    if summary is None:
        raise UserError(
            f"{source} is not a finished run: give the folder of a run, with a summary.json in it."
        )
    # Here, because the environment for ONNX files has no orbax that fits.
    from experiments.runs.checkpoints import restore_best_variables

    config, file = read_config(source)
    if file != source / CONFIG_FILE:
        warn(f"{source / CONFIG_FILE} is missing; the settings are those in {file}")
    if config.task == "acgan" and not generator:
        raise UserError(
            f"{source} is the run of a GAN, which predicts nothing: generate pictures with "
            f"python -m experiments.generate {source}."
        )
    classes, shape = summary.get("classes"), summary.get("shape")
    if classes is None or not shape:  # Unlabelled data has an empty list of classes.
        classes, shape = _read_classes_and_shape(source, config)
    return _make_trained(config, classes, shape, restore_best_variables(source), source)


def _make_trained(
    config: ConfigDict,
    classes: Sequence[str],
    shape: Sequence[int],
    variables: Mapping[str, Any],
    source: Path,
) -> Trained:
    """Returns a trained network after a check that its parts belong together."""
    trained = Trained(config, list(classes), tuple(shape), variables, source)
    check_network(trained)
    return trained


def _read_classes_and_shape(folder: Path, config: ConfigDict) -> tuple[list[str], tuple[int, ...]]:
    """Returns the classes and the shape of an old run, whose summary lacks them, from its samples."""
    if config.task == "segmentation":
        classes = artifacts.load_samples(folder / "samples.npz").classes
        return list(classes), (config.image_size, config.image_size, 3)
    maps = artifacts.load_maps(folder / "maps.npz")
    return list(maps.classes), maps.inputs.shape[1:]
