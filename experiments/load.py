"""A finished run's network in three lines of Python.

    from experiments.load import load

    model = load("runs/odconv-digits")
    probabilities = model(pictures)

Pictures are uint8 `[N, H, W, C]`, or a list of pictures of any sizes. Of a run on recordings

    places, scores = model.sounds(samples, rate)

says where each window of a sound lies, in seconds, and how the classes score in it.
"""

import json
import os
from pathlib import Path

from ml_collections import ConfigDict

from experiments.core.errors import UserError
from experiments.inference.trained import Trained, config_of
from experiments.runs import artifacts as maps
from experiments.runs import weights
from experiments.runs.folder import read_summary


def load(run: str | os.PathLike, *, generator: bool = False) -> Trained:
    """The network of a finished run, with the parameters of its best evaluation.

    Args:
        run: the run's workdir, or what `experiments.export --format=safetensors` made of it.
        generator: whether it may be a GAN's, which can be asked for pictures and not about any.

    Raises:
        UserError: if there is no finished run, or it cannot be read.
    """
    folder = Path(run).expanduser()
    if folder.suffix == weights.SUFFIX:
        variables, metadata = weights.read_weights(folder)
        config = config_of(metadata["config"])
        return Trained(config, metadata["classes"], tuple(metadata["shape"]), variables)
    summary = read_summary(folder)
    if summary is None:
        raise UserError(
            f"{folder} holds no finished run: give the --workdir of one, which has a summary.json."
        )
    from experiments.runs.checkpoints import (
        restore_best_variables,  # of a single file no checkpoint is read
    )

    classes, shape = summary.get("classes"), summary.get("shape")
    config = read_config(folder / "config.json")
    if config.task == "acgan" and not generator:
        raise UserError(
            f"{folder} is the run of a GAN, which makes pictures and says nothing of any: "
            f"python -m experiments.generate {folder} makes them."
        )
    if classes is None or not shape:  # where nothing is labelled, there are no classes
        classes, shape = _from_figures(folder, config)
    return Trained(config, list(classes), tuple(shape), restore_best_variables(folder))


def read_config(file: Path) -> ConfigDict:
    """The settings of a run.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        return config_of(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file} cannot be read: {error}.") from error


def _from_figures(folder: Path, config: ConfigDict) -> tuple[list[str], tuple[int, ...]]:
    """Classes and shape of a run from before its summary had them: its pictures do."""
    if config.task == "segmentation":
        side = config.image_size
        found = list(maps.load_samples(folder / "samples.npz").classes), (side, side, 3)
    else:
        saved = maps.load_maps(folder / "maps.npz")
        found = list(saved.classes), saved.inputs.shape[1:]
    return found
