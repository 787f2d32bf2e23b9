"""Trains a linear classifier on the features of a finished run's network, which stays as it is.

    python -m experiments.probe RUN RECORDINGS [--out=runs/probe]

    RUN                   the --workdir of a finished classifier or tagger of recordings, or a file of
                          experiments.export --format=safetensors
    RECORDINGS            the folder of labelled recordings: a folder for each class, or with tables
    --labels=class|multi  whether a window has one class or several labels; without it as RUN
    --override=KEY=VALUE  a setting of labels, splits or windows, such as audio.label_pattern='^(\\w+) \\d+',
                          audio.annotations=TABLE.csv, audio.exhaustive=True or data.classes=A,B; may be
                          repeated
    --seed=N              decides the split into training, validation and test recordings; 0
    --out=FOLDER          where everything goes
    --batch_size=N        windows at once; without it the run's
    --overwrite           replaces the results of an earlier command

The network sees each window once. A logistic regression learns the classes from the inputs of its last
layer; the strength of its regularisation is the one with the lowest loss on the validation recordings.

FOLDER is then used like a run, in experiments.predict FOLDER NEW_RECORDINGS for example. It has
    model.safetensors   the network with the new last layer, its settings and classes
    probe.json          the results on validation and test, the chosen strength, the seconds that it took
    probe.csv           strength, validation_loss: what was tried
    per_class.csv, thresholds.csv, ranking.csv, calibration.csv, confusion.csv, splits.csv, skipped.csv
    and figures         as those of a run
"""

from collections.abc import Sequence

from experiments.configs.shared.overrides import split_override
from experiments.core import cli
from experiments.inference import probe
from experiments.load import load


def main(
    run: str,
    recordings: str,
    *,
    labels: str = "",
    override: Sequence[str] = (),
    seed: int = 0,
    out: str = probe.OUT,
    batch_size: int = 0,
    overwrite: bool = False,
) -> None:
    """Trains a linear classifier."""
    cli.keep_compiled()
    probe.train_probe(
        load(run),
        recordings,
        out,
        labels=labels,
        changes=dict(split_override(text, "--override") for text in override),
        seed=seed,
        batch_size=batch_size,
        overwrite=overwrite,
    )


if __name__ == "__main__":
    cli.run_command(main, __doc__, failure="The results cannot be written", stopped="stopped")
