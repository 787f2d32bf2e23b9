"""Checks and completes a config before anything is loaded, written or compiled."""

import math

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.configs.shared.assemble import complete_config
from experiments.configs.shared.limits import LARGEST, check_limits
from experiments.configs.shared.recipes import ALIASES, DATASETS
from experiments.configs.shared.settings import AWAKE, SERIES_NETWORKS, list_paths
from experiments.core.errors import UserError, suggest_nearest
from experiments.data import Dataset
from experiments.tasks import TASKS, make_task


def resolve_config(config: ConfigDict) -> ConfigDict:
    """Returns a run's config with exactly the settings that it uses, all of them checked.

    A UserError names the first one that does not exist, is invalid or does not fit the others.
    """
    resolved = complete_config(config)
    check_limits(resolved)
    _check_data(resolved)
    _check_start(resolved)
    _check_augmentation(resolved)
    _check_batch(resolved)
    # A layer refuses fields by itself; the sizes do not matter.
    make_task(resolved).make_model(num_classes=2, spatial_axes=2)
    return resolved


def check_data_fit(config: ConfigDict, dataset: Dataset) -> None:
    """Checks that a config can be trained on the data set that it has loaded: a UserError says why not."""
    if "series" in config and len(dataset.shape) != 2:
        raise UserError(
            f"--config.model.network={config.model.network} is for series, and {dataset.name} has pictures: "
            "choose another config."
        )
    label = np.asarray(dataset.splits["train"][0]["label"])
    if label.ndim == 1 and config.task in ("classification", "acgan"):
        raise UserError(
            f"{dataset.name}: its examples have several labels; add --config.task=tagging, or give each of "
            "them one label."
        )
    single = ("classification", "segmentation", "instance_segmentation")
    if len(dataset.classes) < 2 and config.task in single:
        raise UserError(f"{dataset.name} has one class: there is nothing to tell it from.")
    examples = len(dataset.splits["train"])
    if config.batch_size > examples:
        raise UserError(
            f"--config.batch_size={config.batch_size} is more than the {examples:,} training examples: "
            f"choose a smaller one, such as {1 << (max(examples // 2, 1).bit_length() - 1)}."
        )
    steps = math.ceil(examples / config.batch_size)
    for path, number in list_paths(config):
        if path.endswith("epochs") and number * steps > LARGEST:
            raise UserError(
                f"--config.{path}={number}: choose {LARGEST // steps} or less; an epoch has {steps} steps."
            )


def _check_data(config: ConfigDict) -> None:
    """Checks that the task and the label of the run suit its data set.

    A config is made for a data set; another name alone would leave its recipe and its label.
    """
    name = config.data.name
    label = config.dataset.removesuffix("-smoke")
    family = ALIASES[label][0] if label in ALIASES else label
    if family in DATASETS and family != name:
        raise UserError(
            f"--config.data.name={name} and --config.dataset={config.dataset} are two data sets: name the "
            f"one that you want after the config, as in --config=experiments/configs/{config.name}.py:{name}."
        )
    # Whatever else is done with pictures is done with those that have classes.
    task = DATASETS[name].get("task", "classification")
    of_pixels = {"segmentation", "instance_segmentation"} & {config.task, task}
    if of_pixels and config.task != task:
        raise UserError(
            f"--config.task={config.task}: {name} is for {task}; name another data set after the config."
        )
    if config.task == "event_detection" and name != "audio":
        raise UserError(
            f"--config.task=event_detection: {name} has no sounds with times; name audio or songs after the "
            "config."
        )
    network = config.model.network if "model" in config else ""
    if network in SERIES_NETWORKS and config.task != "classification":
        raise UserError(f"--config.model.network={network} is for the classification of series.")
    classes = config.data.classes.split(",")
    if len(set(classes)) < len(classes):
        raise UserError(f"--config.data.classes={config.data.classes}: a class is named twice.")
    if name == "audio":
        labels = {
            "classification": "class",
            "acgan": "class",
            "tagging": "multi",
            "event_detection": "frames",
        }.get(config.task)
        if labels and config.audio.labels != labels:
            raise UserError(
                f"--config.audio.labels={config.audio.labels}: the task {config.task} takes {labels}."
            )


def _check_start(config: ConfigDict) -> None:
    """Checks the settings that need a trained network to start from."""
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
            "--config.start.freeze=True freezes kernels that another run has trained: give that run as "
            "--config.init_from=RUN."
        )
    if config.start.freeze and config.start.awake and config.conv.name in AWAKE:
        raise UserError(
            "--config.start.freeze=True: kernels that start equal and do not learn stay equal. Write "
            "--config.start.awake=False, so that they differ by --config.start.noise."
        )


def _check_augmentation(config: ConfigDict) -> None:
    known = TASKS[config.task].augmentations
    if config.augment not in known:
        hint = suggest_nearest(config.augment, known).removeprefix("; ")
        raise UserError(f"--config.augment={config.augment}: {hint}")
    sound = config.data.name == "audio"
    if config.augment != "none" and sound != (config.augment == "spectrogram"):
        raise UserError(
            f"--config.augment={config.augment} is not for {'recordings' if sound else 'pictures'}: choose "
            f"none or {'spectrogram' if sound else 'another'}."
        )


def _check_batch(config: ConfigDict) -> None:
    devices, microbatches = jax.device_count(), config.accumulate
    if config.batch_size % (devices * microbatches):
        cut = f" in {microbatches} microbatches (--config.accumulate)" if microbatches > 1 else ""
        raise UserError(
            f"--config.batch_size={config.batch_size} cannot be divided among {devices} devices{cut}; choose "
            f"a multiple of {devices * microbatches}."
        )
