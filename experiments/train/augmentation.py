"""Trains the comparison of augmentations: a GAN and four classifiers for each seed."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

from ml_collections import ConfigDict

from experiments.core.console import print_line
from experiments.core.errors import UserError
from experiments.runs.schema import read_summary
from experiments.train.grid import PlannedRun, attempt_run, read_reason
from experiments.train.loop import train
from experiments.train.validate import resolve_config


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The settings of a classifier in which the comparison's runs differ."""

    augment: str
    mixup: float
    generated: bool  # whether it is also trained on the GAN's pictures


AUGMENTATIONS = {
    "none": Augmentation("none", 0.0, generated=False),
    "ordinary": Augmentation("spectrogram", 0.2, generated=False),
    "gan": Augmentation("none", 0.0, generated=True),
    "both": Augmentation("spectrogram", 0.2, generated=True),
}
SHARED_DATA = (
    "source", "dir", "variant", "validation", "test", "limit", "classes", "max_skipped",
)  # fmt: skip
# Settings of the classifiers that the comparison decides, by the beginnings of their paths, and the reasons.
DECIDED = {
    **dict.fromkeys(("audio.", "data."), "the GAN's is used; give it as --gan_override"),
    **dict.fromkeys(("augment", "mixing.mixup"), "the compared runs differ in it"),
    **dict.fromkeys(("optimizer.schedule", "early_stopping."), "all runs take as many steps"),
    **dict.fromkeys(("seed", "name", "baseline"), "each run has its own"),
}


def train_augmentations(
    classifier: ConfigDict,
    gan: ConfigDict,
    workdir: Path,
    seeds: int,
    generate: Callable[[Path, Path, int], object],
) -> list[Path]:
    """Trains a GAN and four classifiers for each seed, and returns the folders of the classifiers' runs.

    Args:
        classifier: for recordings; its spectrograms become those of `gan`.
        gan: for recordings too, of the task `acgan`.
        workdir: the folder of `generator/seed<N>`, `generated/seed<N>` and `<augmentation>/seed<N>`.
        seeds: the number of them.
        generate: writes pictures; called with the GAN's workdir, the folder of the pictures and the seed.
    """
    for config, task in ((classifier, "classification"), (gan, "acgan")):
        if config.task != task:
            raise UserError(
                f"{config.name} is for the task {config.task}, and {task} is needed here."
            )
    classifier = _adopt_data(gan, classifier)
    for config in (classifier, gan):
        resolve_config(config)
    failed, finished = [], []
    for seed in range(seeds):
        run, pictures = workdir / "generator" / f"seed{seed}", workdir / "generated" / f"seed{seed}"
        print_line()
        print_line(f"seed {seed}: the GAN")
        train(_set_seed(gan, seed), run)
        generate(run, pictures, seed)
        steps = 0
        for name in AUGMENTATIONS:
            print_line()
            print_line(f"seed {seed}: {name}")
            config = _make_classifier_config(
                _set_seed(classifier, seed), name, run / "splits.csv", pictures
            )
            # More pictures make longer epochs, so runs of equal epochs would not be comparable.
            config.steps = steps or config.steps
            planned = PlannedRun(config, workdir / name / f"seed{seed}")
            # Compiled programs are not kept: no two of these runs have the same.
            succeeded = attempt_run(planned, {})
            (finished if succeeded else failed).append(planned.workdir)
            if name == "none":
                if not succeeded:
                    print_line(
                        "the other runs of this seed need its number of steps, and are left out"
                    )
                    break
                steps = read_summary(planned.workdir, needed=("steps",))["steps"]
    if not finished:
        raise UserError(f"All runs failed: {read_reason(failed[0])}")
    return [workdir / name for name in AUGMENTATIONS]


def reject_fixed_settings(paths: Iterable[str]) -> None:
    """Raises a UserError for the first setting of the classifiers that the comparison itself decides."""
    for path in paths:
        for beginning, reason in DECIDED.items():
            if path.startswith(beginning) and path != "audio.colour":
                raise UserError(f"--override={path} would do nothing: {reason}. Leave it out.")


def _adopt_data(gan: ConfigDict, classifier: ConfigDict) -> ConfigDict:
    """Returns the classifier's config with the GAN's recordings and spectrograms, but its own colour."""
    config = classifier.copy_and_resolve_references()
    with config.unlocked():
        colour = config.audio.colour
        config.audio.update(gan.audio)
        config.audio.colour = colour
        for name in SHARED_DATA:
            config.data[name] = gan.data[name]
        # Schedules that wait for epochs would wait longer with longer epochs.
        config.optimizer.schedule = "cosine"
        config.early_stopping.patience = 0
    return config


def _set_seed(config: ConfigDict, seed: int) -> ConfigDict:
    one = config.copy_and_resolve_references()
    with one.unlocked():
        one.seed = seed
    return one


def _make_classifier_config(
    config: ConfigDict, name: str, splits: Path, pictures: Path
) -> ConfigDict:
    """Turns a classifier's config into that of one of `AUGMENTATIONS`."""
    augmentation = AUGMENTATIONS[name]
    with config.unlocked():
        config.name, config.baseline = name, "none"
        config.augment, config.mixing.mixup = augmentation.augment, augmentation.mixup
        config.audio.splits = str(splits)
        if augmentation.generated:
            config.data.extra_train = str(pictures)
    return config
