"""Generates pictures of each class with the generator of a finished GAN run."""

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.configs.shared.limits import LARGEST
from experiments.core import files
from experiments.core.console import Progress, print_result
from experiments.core.errors import UserError, suggest_nearest
from experiments.core.files import to_json
from experiments.core.words import count_noun
from experiments.data.extra import DESCRIPTION, QUALITY, read_description
from experiments.inference.judge import check_judge, judge
from experiments.inference.trained import Trained
from experiments.runs.schema import read_summary
from experiments.tasks.gan_samples import draw_noise, generate_pictures

PER_CLASS = 1000
MOST_PER_CLASS = 10_000_000


def generate(
    trained: Trained,
    out: str | Path = "",
    *,
    per_class: int = PER_CLASS,
    seed: int = 0,
    classes: Sequence[str] = (),
    batch_size: int = 0,
    classifier: Trained | None = None,
    overwrite: bool = False,
    reuse: bool = False,
) -> Path:
    """Writes pictures of each class, and returns their folder.

    A picture depends on the seed, its class and its number only. The options are the flags of
    `experiments.generate`, but for `classifier`, which judges the pictures, and `reuse`: whether the same
    pictures may exist already, as they may if they are judged.

    Raises:
        UserError: if the run is not a GAN's, has no such class, or the folder exists.
    """
    if not 1 <= per_class <= MOST_PER_CLASS:
        raise UserError(f"--per_class={per_class}: choose 1 to {MOST_PER_CLASS:,}.")
    for name, number in (("seed", seed), ("batch_size", batch_size)):
        if not 0 <= number <= LARGEST:
            raise UserError(f"--{name}={number} must not be negative, nor more than {LARGEST}.")
    if trained.config.task != "acgan":
        raise UserError(
            f"{trained.source} is a run of {trained.config.name}, which generates no pictures: give one of "
            "experiments/configs/dr_acgan.py."
        )
    if classifier:
        check_judge(classifier)  # before hours of work
    folder = Path(out or trained.source / "generated").expanduser()
    names = _choose_classes(trained.classes, classes)
    description = _describe(trained, seed, per_class, names)
    counts = _count_finished(folder, description, overwrite, reuse or classifier is not None)
    missing = [name for name in names if counts.get(name) != per_class]
    with Progress(per_class * len(missing), unit="picture") as progress:
        for position, name in enumerate(missing):
            done = position * per_class
            _write_class(trained, folder, name, description, batch_size, progress, done)
            counts[name] = per_class
            complete = per_class if name == missing[-1] else 0
            state = {**description, "per_class": complete, "counts": counts}
            files.write_json(folder / DESCRIPTION, state)
    pictures = f"{per_class * len(names):,} of {count_noun(len(names), 'class', 'classes')}"
    print_result("finished", [("pictures", pictures), ("in", str(folder))])
    if classifier:
        judge(classifier, folder)
    return folder


def _choose_classes(known: Sequence[str], classes: Sequence[str]) -> list[str]:
    for name in classes:
        if name not in known:
            raise UserError(
                f"--classes={name}: the run has no such class{suggest_nearest(name, known)}"
            )
    names = [name for name in known if not classes or name in classes]
    for name in names:
        if not _can_be_folder(name):
            raise UserError(
                f"The class {name!r} cannot be the name of a folder: choose others with --classes."
            )
    return names


def _can_be_folder(name: str) -> bool:
    """Returns whether a class's name can be that of a folder inside another one, and not a hidden one."""
    return bool(name) and not name.startswith(".") and not {"/", "\\", "\0"} & {*name}


def _describe(trained: Trained, seed: int, per_class: int, names: Sequence[str]) -> dict[str, Any]:
    """Returns the contents of `generated.json` except for the counts."""
    summary, config = read_summary(trained.source) or {}, trained.config.to_dict()
    return {
        "run": str(trained.source),
        "parameters": summary.get("params_sha256"),
        "step": (summary.get("best") or {}).get("step"),
        "seed": seed,
        "asked": per_class,
        "classes": list(names),
        "shape": list(trained.shape),
        "data": {"name": config["data"]["name"], "variant": config["data"].get("variant", "")},
        "audio": config.get("audio", {}),
    }


def _count_finished(
    folder: Path, description: Mapping[str, Any], overwrite: bool, reuse: bool
) -> dict[str, int]:
    """Returns the number of pictures of each class that exist and are kept.

    Raises:
        UserError: if the folder has other contents.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another --out.")
    if not folder.exists() or not any(folder.iterdir()):
        return {}
    try:
        earlier = read_description(folder, "counts", "per_class")
    except UserError as error:
        # Not even with --overwrite: it may be somebody's recordings.
        raise UserError(
            f"{folder} holds files that this command did not generate: choose another --out. {error}"
        ) from error
    counts, finished = earlier["counts"], earlier["per_class"] > 0
    same = all(earlier.get(name) == to_json(value) for name, value in description.items())
    if same and not overwrite and (not finished or reuse):
        return {name: n for name, n in counts.items() if _count_pictures(folder, name) == n}
    if not overwrite:
        raise UserError(f"{folder} exists: choose another --out, or give --overwrite.")
    _delete_pictures(folder, counts)
    (folder / QUALITY).unlink(missing_ok=True)  # of the deleted pictures
    (folder / DESCRIPTION).unlink()
    return {}


def _delete_pictures(folder: Path, names: Iterable[str]) -> None:
    """Deletes the folders of some classes.

    Raises:
        UserError: before anything is deleted, if one of them is not inside `folder`, or holds anything but
            pictures that this command made.
    """
    places = []
    for name in names:
        place = folder / name
        if not _can_be_folder(name) or place.is_symlink() or place.is_file():
            raise UserError(
                f"{folder / DESCRIPTION} names {place}, which is no folder that this command made: choose "
                "another --out."
            )
        if place.exists():
            places.append(place)
    for path in (path for place in places for path in place.iterdir()):
        if not _is_picture(path):
            raise UserError(
                f"{path} is no picture that this command made: move it away, or choose another --out."
            )
    for place in places:
        shutil.rmtree(place)


def _count_pictures(folder: Path, name: str) -> int:
    place = folder / name
    if not _can_be_folder(name) or not place.is_dir():
        return 0
    return sum(_is_picture(path) for path in place.iterdir())


def _is_picture(path: Path) -> bool:
    is_named = re.fullmatch(r"[0-9]{5,}\.png", path.name) is not None
    return is_named and path.is_file() and not path.is_symlink()


def _write_class(
    trained: Trained,
    folder: Path,
    name: str,
    description: Mapping[str, Any],
    batch_size: int,
    progress: Progress,
    done: int,
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
        noise = draw_noise(description["seed"], labels, numbers, trained.config.gan.latent)
        made = generate_pictures(
            trained.model, trained.variables, noise, labels, trained.shape, size
        )
        for index, picture in zip(numbers, made, strict=True):
            image = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
            image.save(unfinished / f"{index:05d}.png")
        progress.update(done + int(numbers[-1]) + 1)
    _delete_pictures(folder, [name])
    unfinished.rename(folder / name)
