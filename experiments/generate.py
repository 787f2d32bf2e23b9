"""Generates pictures with the generator of a finished GAN run, for a classifier to train on.

    python -m experiments.generate RUN --per_class=1000 [--out=gen/] [--seed=0] [--classes=A,B]

    RUN                  the --workdir of a finished run of experiments/configs/dr_acgan.py
    --per_class=N        pictures of each class
    --out=FOLDER         where they go, OUT/<class>/00000.png and so on; without it RUN/generated
    --seed=N             other pictures
    --classes=A,B        only these classes
    --batch_size=N       pictures at once; without it the run's
    --judge=RUN          a finished run of a classifier on real pictures of the same kind, which judges the
                         pictures: OUT/quality.json has the Inception Score, the Frechet distance over its
                         features and the share that it recognises
    --overwrite          replaces the pictures of an earlier command

The pictures are what real ones are before they are normalised. OUT/generated.json says how they were made.
A command that was stopped continues with the first class that is not finished. Then

    python -m experiments.main --config=experiments/configs/birdsong_classifier.py \\
        --config.data.source=RECORDINGS --config.data.extra_train=gen/
"""

from experiments.core import cli
from experiments.inference import generate
from experiments.load import load


def main(
    run: str,
    *,
    per_class: int = generate.PER_CLASS,
    out: str = "",
    seed: int = 0,
    classes: str = "",
    batch_size: int = 0,
    judge: str = "",
    overwrite: bool = False,
) -> None:
    """Generates pictures, and lets a classifier judge them."""
    cli.keep_compiled()
    generate.generate(
        load(run, generator=True),
        out,
        per_class=per_class,
        seed=seed,
        classes=[name.strip() for name in classes.split(",") if name.strip()],
        batch_size=batch_size,
        classifier=load(judge) if judge else None,
        overwrite=overwrite,
    )


if __name__ == "__main__":
    cli.run_command(
        main,
        __doc__,
        failure="The pictures cannot be written",
        stopped="stopped; the same command continues",
    )
