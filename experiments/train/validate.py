"""Whether a config can be run, said before anything is loaded, written or compiled."""

import math
from collections.abc import Iterable

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from experiments.configs import relevance
from experiments.configs.common import ALIASES, DATASETS
from experiments.core.errors import UserError, suggest_nearest
from experiments.data import Dataset
from experiments.tasks import TASKS, make_task
from experiments.tasks.classification import SERIES_NETS
from experiments.train.optimizer import OPTIMIZERS, SCHEDULES, TEMPERATURES

DTYPES = ("float32", "bfloat16", "float16")

# The least value of each number.
AT_LEAST = {
    "seed": 0,
    "data.limit": 0,
    "data.max_skipped": 0,
    "data.fold": -1,
    "data.folds": 2,
    "start.noise": 0,
    "image_size": 0,
    "model.width": 1,
    "model.representation": 1,
    "model.hidden": 0,
    "optimizer.weight_decay": 0,
    "optimizer.warmup_epochs": 0,
    "optimizer.clip": 0,
    "gan.latent": 1,
    "gan.discriminator_dropout": 0,
    "gan.cbam_reduction": 1,
    "tagging.threshold": 0,
    "stages.head_epochs": 0,
    "stages.learning_rate": 0,
    "loss_scale.start": 1,
    "loss_scale.grow_every": 0,
    "mixing.label_smoothing": 0,
    "mixing.mixup": 0,
    "mixing.cutmix": 0,
    "average": 0,
    "plateau.patience": 0,
    "plateau.min_learning_rate": 0,
    "early_stopping.patience": 0,
    "temperature.epochs": 0,
    "auxiliary.weight": 0,
    "auxiliary.epochs": 0,
    "data.validation": 0,
    "data.test": 0,
    "model.dropout": 0,
    "conv.min_squeeze": 1,
    "conv.density_weight": 0,
    "batch_size": 1,
    "accumulate": 1,
    "epochs": 1,
    "evaluate_every": 1,
    "audio.sample_rate": 1000,
    "audio.n_fft": 16,
    "audio.win": 0,
    "audio.step": 1,
    "audio.bands": 1,
    "audio.low": 0,
    "audio.high": 0,
    "audio.height": 0,
    "audio.width": 0,
    "audio.min_overlap": 0,
    "spectrogram.masks": 0,
    "spectrogram.mask_share": 0,
    "spectrogram.noise": 0,
    "spectrogram.gain": 0,
    "spectrogram.shift": 0,
    "steps": 0,
    "log_every": 1,
    "checkpoint_every": 1,
    "input.threads": 0,
    "input.workers": 0,
}
# The most of what is made at once: threads, pixels, operations of a program.
AT_MOST = {
    "input.threads": 256,
    "input.workers": 256,
    "image_size": 8192,
    "audio.sample_rate": 768_000,
    "audio.n_fft": 65_536,
    "audio.bands": 4096,
    "audio.height": 8192,
    "audio.width": 8192,
    "audio.seconds": 3600,
    "audio.min_fraction": 1,
    "tagging.threshold": 1,
    "spectrogram.masks": 16,
    "spectrogram.mask_share": 1,
    "spectrogram.shift": 1,
    "conv.num_kernels": 1024,
    "conv.rotations": 360,
    "conv.cell_ratio": 64,
}
ABOVE_ZERO = (
    "optimizer.learning_rate",
    "gan.discriminator_rate",
    "plateau.factor",
    "temperature.start",
    "audio.seconds",
    "audio.hop",
    "audio.decibels",
    "audio.min_fraction",
)
BELOW_ONE = (
    "plateau.factor",
    "data.validation",
    "data.test",
    "model.dropout",
    "mixing.label_smoothing",
    "gan.discriminator_dropout",
    "average",
)
AUDIO_WORDS = {
    "windows": ("grid", "annotations"),
    "pad": ("zero", "repeat", "drop"),
    "picture": ("mel", "linear", "wavelet"),
    "colour": ("grey", "rgb", "magma"),
    "labels": ("class", "multi", "none"),
}
# Whole numbers are counted with in 32 bits, and so is all other arithmetic.
LARGEST = 2**31 - 1
LEAST_FLOAT, LARGEST_FLOAT = (float(x) for x in (np.finfo("f4").tiny, np.finfo("f4").max))


def validate(config: ConfigDict) -> None:
    """Returns if every setting has a value that makes sense.

    Raises:
        UserError: names the first setting that does not, and what it could be.
    """
    flat = traverse_util.flatten_dict(config.to_dict(), sep=".")
    for path, value in flat.items():
        if value is None:
            raise UserError(f"--config.{path}=None: it needs a value.")
    for path, least in AT_LEAST.items():
        value = _get(config, path)
        if value is not None and not least <= value < math.inf:
            raise UserError(f"--config.{path}={value}: choose {least} or more.")
    for path in ABOVE_ZERO:
        value = _get(config, path)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--config.{path}={value}: choose more than 0.")
    for path in BELOW_ONE:
        value = _get(config, path)
        if value is not None and not value < 1:
            raise UserError(f"--config.{path}={value}: choose less than 1.")
    for path, most in AT_MOST.items():
        value = _get(config, path)
        if value is not None and value > most:
            raise UserError(f"--config.{path}={value}: choose {most} or less.")
    for path, value in flat.items():
        _fits_32_bits(path, value)
    _normalisation(config)
    betas = config.optimizer.betas
    numbers = all(isinstance(beta, int | float) for beta in betas)
    if len(betas) != 2 or not numbers or not all(0 <= beta < 1 for beta in betas):
        raise UserError(
            f"--config.optimizer.betas={betas}: give two numbers from 0 to less than 1, such as (0.9, 0.999)."
        )
    _one_of(config, "task", TASKS)
    _one_of(config, "dtype", DTYPES)
    _one_of(config, "optimizer.name", OPTIMIZERS)
    _one_of(config, "optimizer.schedule", SCHEDULES)
    for name, words in AUDIO_WORDS.items():
        _one_of(config, f"audio.{name}", words)
    _one_of(config, "temperature.schedule", TEMPERATURES)
    _one_data_set(config)
    if config.data.variant and config.data.name not in ("ucr", "tfds", "audio"):
        raise UserError(
            f"--config.data.variant={config.data.variant}: there is one {config.data.name}; leave it out."
        )
    if config.data.name == "audio" and config.data.fold >= 0:
        raise UserError(
            "--config.data.fold deals out windows, and those of one recording would come into several folds: "
            "use several seeds, or lists of your own (--config.audio.splits=FILE.csv)."
        )
    classes = config.data.classes.split(",")
    if len(set(classes)) < len(classes):
        raise UserError(f"--config.data.classes={config.data.classes}: a class is named twice.")
    if config.adapt_gates and (config.conv.name != "gated" or not config.init_from):
        raise UserError(
            "--config.adapt_gates fine-tunes the gates of a trained network: choose a config with gates "
            "(experiments/configs/hard.py) and give its run as --config.init_from=RUN."
        )
    if config.start.config and not config.init_from:
        raise UserError(
            f"{config.name} starts from a trained {config.start.config}: give that run as "
            f"--config.init_from=RUN, or --config.start.config= to start from scratch. "
            "experiments.study trains the one and then the other."
        )
    if config.start.freeze and not config.init_from:
        raise UserError(
            "--config.start.freeze=True freezes kernels that another run has trained: give it as "
            "--config.init_from=RUN."
        )
    if config.stages.head_epochs and (
        config.task not in ("classification", "tagging") or config.model.network in SERIES_NETS
    ):
        raise UserError(
            f"--config.stages.head_epochs={config.stages.head_epochs}: a head can learn alone in a "
            "classification by a resnet, vgg16 or mobilenet_v2."
        )
    _one_of(config, "augment", TASKS[config.task].augmentations)
    sound = config.data.name == "audio"
    if config.augment != "none" and sound != (config.augment == "spectrogram"):
        raise UserError(
            f"--config.augment={config.augment} is not for {'recordings' if sound else 'pictures'}: choose "
            f"none or {'spectrogram' if sound else 'another'}."
        )
    labels = {"classification": "class", "tagging": "multi"}.get(config.task, config.audio.labels)
    if sound and config.audio.labels != labels:
        raise UserError(
            f"--config.audio.labels={config.audio.labels}: the task {config.task} takes {labels}."
        )
    make_task(config).make_model(num_classes=2, spatial_axes=2)
    devices, microbatches = jax.device_count(), config.accumulate
    if config.batch_size % (devices * microbatches):
        cut = f" in {microbatches} microbatches (--config.accumulate)" if microbatches > 1 else ""
        raise UserError(
            f"--config.batch_size={config.batch_size} does not divide among {devices} devices{cut}; "
            f"choose a multiple of {devices * microbatches}."
        )


def validate_data(config: ConfigDict, dataset: Dataset) -> None:
    """Returns if a data set, which `config` has loaded, can be trained on as `config` says.

    Raises:
        UserError: if the network or the number of classes or of examples is not for it, or a time is too long
            to be counted.
    """
    if config.model.network in SERIES_NETS and len(dataset.shape) != 2:
        raise UserError(
            f"--config.model.network={config.model.network} is for series, and {dataset.name} has pictures: "
            "choose another config."
        )
    if len(dataset.classes) < 2 and config.task in ("classification", "segmentation"):
        raise UserError(f"{dataset.name} has one class: there is nothing to tell it from.")
    examples = len(dataset.splits["train"])
    if config.batch_size > examples:
        raise UserError(
            f"--config.batch_size={config.batch_size} is more than the {examples:,} examples there are to "
            "train on: choose a smaller one."
        )
    steps = math.ceil(examples / config.batch_size)
    for path in (
        "epochs",
        "stages.head_epochs",
        "temperature.epochs",
        "auxiliary.epochs",
        "optimizer.warmup_epochs",
    ):
        if _get(config, path) * steps > LARGEST:
            raise UserError(
                f"--config.{path}={_get(config, path)}: choose {LARGEST // steps} or less; an epoch has "
                f"{steps} steps."
            )


def refuse_unused(config: ConfigDict, paths: Iterable[str]) -> None:
    """Returns if every setting that a person has asked for makes a difference.

    Args:
        config: the experiment.
        paths: dotted names of what the person has set.

    Raises:
        UserError: names the first setting that would be ignored, and why.
    """
    flat = traverse_util.flatten_dict(config.to_dict(), sep=".")
    for path in paths:
        for beginning, why in relevance.unused(flat).items():
            if path.startswith(beginning):
                raise UserError(f"--config.{path} would do nothing: {why}. Leave it out.")


def _fits_32_bits(path: str, value: object) -> None:
    match value:
        case tuple() | list():
            for part in value:
                _fits_32_bits(path, part)
        case bool() | str():
            return
        case int() if abs(value) > LARGEST:
            raise UserError(f"--config.{path}={value}: choose {LARGEST} or less.")
        case float() if not (value == 0 or LEAST_FLOAT <= abs(value) <= LARGEST_FLOAT):
            raise UserError(
                f"--config.{path}={value}: choose a number that float32 has, 0 or one of about "
                f"{LEAST_FLOAT:.0e} to {LARGEST_FLOAT:.0e}."
            )


def _normalisation(config: ConfigDict) -> None:
    for name in ("mean", "std"):
        values = config.normalise[name]
        numbers = bool(values) and all(isinstance(v, int | float) for v in values)
        if not numbers or len(values) not in (1, 3) or (name == "std" and min(values) <= 0):
            above = " above 0" if name == "std" else ""
            raise UserError(
                f"--config.normalise.{name}={values}: give one number{above}, or one for each of red, green "
                f"and blue, such as (0.5,)."
            )


def _one_data_set(config: ConfigDict) -> None:
    """A config is made for a data set; another name alone would leave its recipe and its label."""
    label = config.dataset.removesuffix("-smoke")
    named = ALIASES[label][0] if label in ALIASES else label
    if named in DATASETS and named != config.data.name:
        raise UserError(
            f"--config.data.name={config.data.name} and --config.dataset={config.dataset} are two data "
            "sets: name the one that you want behind the config, as in "
            f"--config=experiments/configs/{config.name}.py:{config.data.name}."
        )
    made_for = DATASETS.get(config.data.name, {}).get("task", "classification")
    # Whatever else is done with pictures is done with those that have classes.
    masks = "segmentation" in (config.task, made_for)
    if config.data.name in DATASETS and masks and config.task != made_for:
        raise UserError(
            f"--config.task={config.task}: {config.data.name} is for {made_for}; choose another data set "
            "behind the config."
        )


def _one_of(config: ConfigDict, path: str, known: Iterable[str]) -> None:
    value = _get(config, path)
    if value not in known:
        raise UserError(
            f"--config.{path}={value}: {suggest_nearest(str(value), known).lstrip('; ')}"
        )


def _get(config: ConfigDict, path: str) -> object:
    """The value at a dotted path, None where a config has no such setting."""
    value = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, ConfigDict) else None
    return value
