"""Compares ways to make the most of few examples: none, ordinary augmentation, a GAN's pictures, both.

    python -m experiments.augmentation --source=PATH --seeds=3 --per_class=100 --workdir=runs/augmentation

    --source=PATH           where the recordings lie; without it, the made-up songs
    --config=NAME           the classifier's config: birdsong_classifier, or another that takes recordings
    --seeds=N               so many times everything, each with another split (3)
    --per_class=N           pictures that the GAN makes of each class (100)
    --override=KEY=VALUE    a field of the classifiers, such as epochs=20; may be given several times
    --gan_override=KEY=VALUE    a field of the GAN, such as audio.height=64
    --workdir=DIR           where all of it lives
    --debug                 shows the traceback of an error

For each seed the recordings are divided first. The GAN learns from the training part alone, and all four
classifiers are tested on the same real recordings, which neither has seen. The spectrograms are the GAN's,
and all classifiers take as many steps. The same command again continues where it was stopped.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from experiments.configs.shared.overrides import split_override
from experiments.core import cli
from experiments.core.errors import UserError
from experiments.inference.generate import generate
from experiments.load import load
from experiments.reports import report
from experiments.train.grid import Planned, attempt, load_config
from experiments.train.loop import train
from experiments.train.validate import resolve_config

# What each way changes of the classifier: (what is drawn anew, mixup, the GAN's pictures).
WAYS = {
    "none": ("none", 0.0, False),
    "ordinary": ("spectrogram", 0.2, False),
    "gan": ("none", 0.0, True),
    "both": ("spectrogram", 0.2, True),
}
OF_DATA = (
    "source", "dir", "variant", "validation", "test", "limit", "classes", "max_skipped",
)  # fmt: skip
# What of the classifiers is not for a person to say, by the beginnings of its names, and why.
DECIDED = {
    **dict.fromkeys(("audio.", "data."), "the GAN's is taken; give it as --gan_override"),
    **dict.fromkeys(("augment", "mixing.mixup"), "the ways differ in it"),
    **dict.fromkeys(("optimizer.schedule", "early_stopping."), "all ways learn equally long"),
    **dict.fromkeys(("seed", "name", "baseline"), "each run has its own"),
}


def compare_ways(
    classifier: ConfigDict, gan: ConfigDict, workdir: Path, seeds: int, per_class: int
) -> None:
    """Trains a GAN and four classifiers for each seed, and writes the report.

    Args:
        classifier: what is trained four times; how its spectrograms are made is taken from `gan`.
        gan: a config of the task `acgan` on recordings.
        workdir: where all of it lives: `generator/seed<N>`, `generated/seed<N>` and `<way>/seed<N>`.
        seeds: how often.
        per_class: pictures that the GAN makes of each class.

    Raises:
        UserError: for what is wrong with a config, and if every run fails.
    """
    classifier = _with_pictures_of(gan, classifier)
    for config in (classifier, gan):
        resolve_config(config)
    finished, failed = 0, []
    for seed in range(seeds):
        run, pictures = workdir / "generator" / f"seed{seed}", workdir / "generated" / f"seed{seed}"
        print(f"\nseed {seed}: the GAN", flush=True)
        train(_seeded(gan, seed), run)
        generate(load(run, generator=True), pictures, per_class=per_class, seed=seed, reuse=True)
        steps = 0
        for way in WAYS:
            print(f"\nseed {seed}: {way}", flush=True)
            config = _way(_seeded(classifier, seed), way, run / "splits.csv", pictures)
            # With more pictures an epoch is longer; what is compared has seen as many batches.
            config.steps = steps or config.steps
            planned = Planned(config, workdir / way / f"seed{seed}")
            # No compiled program is kept: no two of these runs are alike.
            if attempt(planned, {}):
                finished += 1
            else:
                failed.append(planned.workdir)
            if way == "none":
                if failed and failed[-1] == planned.workdir:
                    print("the other ways take as many steps as this one, and wait for it")
                    break
                steps = json.loads((planned.workdir / "summary.json").read_text())["steps"]
    if not finished:
        raise UserError(f"All runs failed: {(failed[0] / 'error.txt').read_text()}")
    report.write_report([workdir / way for way in WAYS], workdir)
    print(f"\nreport   {workdir / 'report.md'}\nfigures  {workdir / 'figures'}")


def _with_pictures_of(gan: ConfigDict, classifier: ConfigDict) -> ConfigDict:
    """The classifier on the GAN's recordings and spectrograms, but in its own colour."""
    config = classifier.copy_and_resolve_references()
    with config.unlocked():
        colour = config.audio.colour
        config.audio.update(gan.audio)
        config.audio.colour = colour
        for name in OF_DATA:
            config.data[name] = gan.data[name]
        # By the plateau, an epoch that is longer would be a longer wait.
        config.optimizer.schedule = "cosine"
        config.early_stopping.patience = 0
    return config


def refuse_decided(paths: Iterable[str]) -> None:
    """Refuses settings of the classifiers that the comparison itself decides.

    Raises:
        UserError: names the first such setting, and why it is decided.
    """
    for path in paths:
        for beginning, why in DECIDED.items():
            if path.startswith(beginning) and path != "audio.colour":
                raise UserError(f"--override={path} would do nothing: {why}. Leave it out.")


def _seeded(config: ConfigDict, seed: int) -> ConfigDict:
    one = config.copy_and_resolve_references()
    with one.unlocked():
        one.seed = seed
    return one


def _way(config: ConfigDict, way: str, splits: Path, pictures: Path) -> ConfigDict:
    """The classifier's config for one of `WAYS`."""
    augment, mixup, more = WAYS[way]
    with config.unlocked():
        config.name, config.baseline = way, "none"
        config.augment, config.mixing.mixup = augment, mixup
        config.audio.splits = str(splits)
        if more:
            config.data.extra_train = str(pictures)
    return config


def main(
    *,
    source: str = "",
    config: str = "birdsong_classifier",
    seeds: int = 3,
    per_class: int = 100,
    override: Sequence[str] = (),
    gan_override: Sequence[str] = (),
    workdir: str = "runs/augmentation",
) -> None:
    """Compares the ways that the flags describe."""
    if not 1 <= seeds <= 1000:
        raise UserError(f"--seeds={seeds}: choose 1 to 1000 repetitions.")
    if per_class < 1:
        raise UserError(f"--per_class={per_class}: choose 1 or more pictures.")
    cli.keep_compiled()
    dataset = "audio" if source else "songs"
    changes = dict(split_override(text, "--override") for text in override)
    gan_changes = dict(split_override(text, "--gan_override") for text in gan_override)
    classifier = load_config(config, dataset, source, changes)
    gan = load_config("dr_acgan", dataset, source, gan_changes, "--gan_override")
    refuse_decided(changes)
    compare_ways(classifier, gan, Path(workdir).expanduser(), seeds, per_class)


if __name__ == "__main__":
    cli.run_command(main, __doc__)
