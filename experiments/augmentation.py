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
import sys
from collections.abc import Iterable
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from experiments.configs.overrides import key_and_value
from experiments.core import cli
from experiments.core.errors import UserError
from experiments.inference.generate import generate
from experiments.load import load
from experiments.reports import report
from experiments.train.grid import Planned, attempt, load_config
from experiments.train.loop import train
from experiments.train.validate import refuse_unused, validate

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
        validate(config)
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


def refuse_decided(classifier: ConfigDict, gan: ConfigDict, paths: Iterable[str]) -> None:
    """Returns if every setting that a person has asked for makes a difference to the classifiers.

    Raises:
        UserError: names the first that would be ignored, and why.
    """
    for path in paths:
        for beginning, why in DECIDED.items():
            if path.startswith(beginning) and path != "audio.colour":
                raise UserError(f"--override={path} would do nothing: {why}. Leave it out.")
    refuse_unused(_with_pictures_of(gan, classifier), paths)


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


if __name__ == "__main__":
    SOURCE = flags.DEFINE_string("source", "", "Where the recordings lie.")
    CONFIG = flags.DEFINE_string("config", "birdsong_classifier", "The classifier's config.")
    SEEDS = flags.DEFINE_integer("seeds", 3, "How often.", lower_bound=1, upper_bound=1000)
    PER_CLASS = flags.DEFINE_integer("per_class", 100, "Pictures of each class.", lower_bound=1)
    OVERRIDE = flags.DEFINE_multi_string("override", [], "A field of the classifiers.")
    GAN_OVERRIDE = flags.DEFINE_multi_string("gan_override", [], "A field of the GAN.")

    def main() -> None:
        """Compares what the flags say."""
        cli.keep_compiled()
        dataset = "audio" if SOURCE.value else "songs"
        mine = dict(key_and_value(text, "--override") for text in OVERRIDE.value)
        theirs = dict(key_and_value(text, "--gan_override") for text in GAN_OVERRIDE.value)
        classifier = load_config(CONFIG.value, dataset, SOURCE.value, mine)
        gan = load_config("dr_acgan", dataset, SOURCE.value, theirs)
        refuse_decided(classifier, gan, mine)
        refuse_unused(gan, theirs)
        workdir = Path(cli.WORKDIR.value or "runs/augmentation").expanduser()
        compare_ways(classifier, gan, workdir, SEEDS.value, PER_CLASS.value)

    cli.leave(cli.run(main, sys.argv, str(__doc__)))
