"""Makes pictures with the generator of a finished GAN run, for a classifier to train on.

    python -m experiments.generate RUN --per_class=1000 [--out=gen/] [--seed=0] [--classes=A,B]

    RUN                  the --workdir of a finished run of experiments/configs/dr_acgan.py
    --per_class=N        pictures of each class
    --out=FOLDER         where they go, OUT/<class>/00000.png and so on; without it RUN/generated
    --seed=N             other pictures
    --classes=A,B        of these classes alone
    --batch_size=N       pictures at once; without it the run's
    --judge=RUN          a finished run of a classifier on real pictures of the same kind, which looks at
                         what was made: OUT/quality.json has the Inception Score, the Frechet distance over
                         its features and the share that it recognises
    --overwrite          replaces what an earlier command has made

The pictures are what real ones are before they are normalised. OUT/generated.json says how they were made.
A command that was stopped continues with the first class that is not finished. Then

    python -m experiments.main --config=experiments/configs/birdsong_classifier.py \\
        --config.data.source=RECORDINGS --config.data.extra_train=gen/
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from experiments.core import cli, files
from experiments.core.console import Progress, print_result
from experiments.core.errors import UserError, suggest_nearest
from experiments.core.files import to_json
from experiments.data.extra import DESCRIPTION
from experiments.inference.trained import Trained
from experiments.load import load
from experiments.runs.folder import read_summary
from experiments.tasks.gan_samples import make_pictures, noise_of

PER_CLASS = 1000


def generate(
    run: str | Path,
    out: str | Path = "",
    *,
    per_class: int = PER_CLASS,
    seed: int = 0,
    classes: Sequence[str] = (),
    batch_size: int = 0,
    overwrite: bool = False,
    again: bool = False,
    quiet: bool = False,
) -> Path:
    """Writes pictures of each class, and returns the folder that they are in.

    A picture depends on the seed, its class and its number, and not on what else is made.

    Args:
        run: the workdir of a finished GAN run.
        out: where they go; '' for `generated` in the workdir.
        per_class: how many of each class.
        seed: decides the noise.
        classes: their names; none for all.
        batch_size: 0 for the run's.
        overwrite: whether what an earlier call has made may be replaced.
        again: whether it is no mistake if the same pictures are there.
        quiet: whether nothing is printed.

    Raises:
        UserError: if there is no such run, it is not a GAN's, has no such class, or the folder is there.
    """
    if per_class < 1:
        raise UserError(f"--per_class={per_class}: choose 1 or more.")
    if seed < 0 or batch_size < 0:
        raise UserError("--seed and --batch_size are not negative.")
    trained = load(run, generator=True)
    if trained.config.task != "acgan":
        raise UserError(
            f"{run} is a run of {trained.config.name}, which makes no pictures: give one of "
            "experiments/configs/dr_acgan.py."
        )
    folder = Path(out or Path(run) / "generated").expanduser()
    names = _chosen(trained.classes, classes)
    description = _description(trained, Path(run), seed, per_class, names)
    counts = _begin(folder, description, overwrite, again)
    missing = [name for name in names if counts.get(name) != per_class]
    with Progress(per_class * len(missing), quiet=quiet, unit="picture") as shown:
        for place, name in enumerate(missing):
            _write_class(trained, folder, name, description, batch_size, shown, place * per_class)
            counts[name] = per_class
            last = place == len(missing) - 1
            said = {**description, "per_class": per_class if last else 0, "counts": counts}
            files.write_json(folder / DESCRIPTION, said)
    rows = [
        ("pictures", f"{per_class * len(names):,} of {len(names)} classes"),
        ("in", str(folder)),
    ]
    print_result("finished", rows, quiet=quiet)
    return folder


def _chosen(known: Sequence[str], classes: Sequence[str]) -> list[str]:
    for name in classes:
        if name not in known:
            raise UserError(
                f"--classes={name}: the run has no such class{suggest_nearest(name, known)}"
            )
    names = [name for name in known if not classes or name in classes]
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\\" in name or name.startswith("."):
            raise UserError(
                f"A folder cannot be called like the class {name!r}: choose others with --classes."
            )
    return names


def _description(
    trained: Trained, run: Path, seed: int, per_class: int, names: Sequence[str]
) -> dict[str, Any]:
    """What `generated.json` says, but for what is there already."""
    summary, config = read_summary(run.expanduser()) or {}, trained.config.to_dict()
    return {
        "run": str(run),
        "parameters": summary.get("params_sha256"),
        "step": (summary.get("best") or {}).get("step"),
        "seed": seed,
        "asked": per_class,
        "classes": list(names),
        "shape": list(trained.shape),
        "data": {"name": config["data"]["name"], "variant": config["data"]["variant"]},
        "audio": config["audio"],
    }


def _begin(
    folder: Path, description: Mapping[str, Any], overwrite: bool, again: bool
) -> dict[str, int]:
    """How many pictures of each class are there and need not be made.

    Raises:
        UserError: if something is in the way.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another --out.")
    if not folder.exists() or not any(folder.iterdir()):
        return {}
    file = folder / DESCRIPTION
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        counts, finished = dict(found["counts"]), found["per_class"] > 0
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        # Not even with --overwrite: it may be somebody's recordings.
        raise UserError(
            f"{folder} holds something that no earlier command has generated ({file.name} is not there or "
            "cannot be read): choose another --out."
        ) from error
    same = all(found.get(name) == to_json(value) for name, value in description.items())
    if same and not overwrite and (not finished or again):
        return counts
    if not overwrite:
        raise UserError(f"{folder} is there already: choose another --out, or give --overwrite.")
    for name in counts:
        shutil.rmtree(folder / Path(name).name, ignore_errors=True)
    file.unlink()
    return {}


def _write_class(
    trained: Trained,
    folder: Path,
    name: str,
    description: Mapping[str, Any],
    batch_size: int,
    shown: Progress,
    before: int,
) -> None:
    """Writes the pictures of one class: all of them, or none."""
    number, label = description["asked"], list(trained.classes).index(name)
    size = batch_size or trained.config.batch_size
    unfinished = folder / f".{name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if not (folder / DESCRIPTION).exists():
        files.write_json(folder / DESCRIPTION, {**description, "per_class": 0, "counts": {}})
    for start in range(0, number, size):
        numbers = np.arange(start, min(start + size, number))
        labels = np.full(len(numbers), label, np.int32)
        noise = noise_of(description["seed"], labels, numbers, trained.config.gan.latent)
        made = make_pictures(trained.model, trained.variables, noise, labels, trained.shape, size)
        for place, picture in zip(numbers, made, strict=True):
            image = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
            image.save(unfinished / f"{place:05d}.png")
        shown.update(before + int(numbers[-1]) + 1)
    shutil.rmtree(folder / name, ignore_errors=True)
    unfinished.rename(folder / name)


if __name__ == "__main__":
    PER_CLASS_FLAG = flags.DEFINE_integer("per_class", PER_CLASS, "Pictures of each class.")
    OUT = flags.DEFINE_string("out", "", "Where they go; '' for RUN/generated.")
    SEED = flags.DEFINE_integer("seed", 0, "Decides the noise.")
    CLASSES = flags.DEFINE_list("classes", [], "Of these classes alone.")
    BATCH_SIZE = flags.DEFINE_integer("batch_size", 0, "Pictures at once; 0 for the run's.")
    OVERWRITE = flags.DEFINE_bool("overwrite", False, "Whether pictures may be replaced.")
    JUDGE = flags.DEFINE_string("judge", "", "The run of a classifier that looks at them.")

    def main() -> None:
        """Makes what the words say."""
        if len(given) != 1:
            raise UserError("Which run? Give the workdir of one finished GAN run.")
        cli.keep_compiled()
        if JUDGE.value:
            from experiments.inference.judge import judge, load_judge

            load_judge(JUDGE.value)  # what is wrong with it is said before hours of work
        try:
            folder = generate(
                given[0],
                OUT.value,
                per_class=PER_CLASS_FLAG.value,
                seed=SEED.value,
                classes=CLASSES.value,
                batch_size=BATCH_SIZE.value,
                overwrite=OVERWRITE.value,
                again=bool(JUDGE.value),
            )
            if JUDGE.value:
                judge(JUDGE.value, folder)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt("stopped; the same command continues") from stop
        except OSError as error:
            raise UserError(f"The pictures cannot be written: {error}.") from error

    command, given = cli.without_words(sys.argv)
    cli.leave(cli.run(main, command, str(__doc__)))
