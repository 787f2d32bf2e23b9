"""Compares augmentations of few examples: none, ordinary ones, a GAN's pictures, both.

    python -m experiments.augmentation --source=PATH --seeds=3 --per_class=100 --workdir=runs/augmentation

    --source=PATH           the folder of the recordings; without it, synthetic songs
    --config=NAME           the classifier's config: birdsong_classifier, or another one for recordings
    --seeds=N               repetitions, each with another split (3)
    --per_class=N           pictures that the GAN makes of each class (100)
    --override=KEY=VALUE    a setting of the classifiers, such as epochs=20; may be repeated
    --gan_override=KEY=VALUE    a setting of the GAN, such as audio.height=64; may be repeated
    --workdir=DIR           the folder of all runs and of the report
    --debug                 shows the traceback of an error

For each seed, the recordings are split first. The GAN is trained on the training part alone, and all four
classifiers are tested on the same real recordings, which neither has seen. All use the GAN's spectrograms,
and all classifiers take as many steps. The same command again continues where it was stopped.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.configs.shared.overrides import split_override
from experiments.core import cli
from experiments.core.console import print_line
from experiments.core.errors import UserError
from experiments.inference.generate import MOST_PER_CLASS, generate
from experiments.load import load
from experiments.reports.report import write_report
from experiments.train.augmentation import reject_fixed_settings, train_augmentations
from experiments.train.grid import load_config


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
    """Trains the runs of the comparison that the flags describe, and writes its report."""
    if not 1 <= seeds <= 1000:
        raise UserError(f"--seeds={seeds}: choose 1 to 1000 repetitions.")
    if not 1 <= per_class <= MOST_PER_CLASS:
        raise UserError(f"--per_class={per_class}: choose 1 to {MOST_PER_CLASS:,} pictures.")
    cli.keep_compiled()
    dataset = "audio" if source else "songs"
    changes = dict(split_override(text, "--override") for text in override)
    gan_changes = dict(split_override(text, "--gan_override") for text in gan_override)
    reject_fixed_settings(changes)
    place = {"data.source": source}
    classifier = load_config(config, dataset, place | changes)
    gan = load_config("dr_acgan", dataset, place | gan_changes, "--gan_override")

    def write_pictures(run: Path, out: Path, seed: int) -> None:
        generate(load(run, generator=True), out, per_class=per_class, seed=seed, reuse=True)

    folder = Path(workdir).expanduser()
    runs = train_augmentations(classifier, gan, folder, seeds, write_pictures)
    write_report(runs, folder)
    print_line()
    print_line(f"report   {folder / 'report.md'}")
    print_line(f"figures  {folder / 'figures'}")


if __name__ == "__main__":
    cli.run_command(main, __doc__)
