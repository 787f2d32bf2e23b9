"""The user's own segmentation: a folder of pictures and a folder of masks, or such a pair per split."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.core.errors import UserError
from experiments.core.words import count_noun
from experiments.data import masks, paths, splits
from experiments.data.dataset import Dataset

IMAGES = ("images", "imgs", "pictures", "jpegimages")
MASKS = ("masks", "labels", "annotations", "segmentationclass")
_LAYOUT = (
    f"Give --config.data.source=PATH, where PATH holds a folder {' or '.join(IMAGES)} and a folder "
    f"{' or '.join(MASKS)} (in any case), or the folders train, validation and test with such a pair in "
    "each. A picture's mask is a PNG of the same name whose pixels are class numbers, or colours that "
    "classes.txt gives the classes."
)

_COLOURED = re.compile(r"(.*\S)\s+(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})")
_IGNORED = "ignore"

Pair = tuple[Path, Path]
"""A picture and its mask, or the folder of pictures and the folder of masks."""


def load(config: ConfigDict, seed: int) -> Dataset:
    """Returns the pictures of the folder `source` with their masks, as `check_folder` finds them.

    Splits that the folder does not have are stratified by the rarest class of each picture. Examples are
    `inputs`, uint8 `[H, W, 3]`, and `label`, uint8 `[H, W]`.
    """
    root, checked, classes, notes, skipped = check_folder(config)
    return masks.join_splits(root.name, config, seed, checked, classes, notes, skipped)


def check_folder(
    config: ConfigDict,
) -> tuple[Path, dict[str, masks.CheckedPairs], list[str], list[str], list[tuple[str, str]]]:
    """Returns the folder `source`, the usable pairs of each split, the classes, notes, and what is skipped.

    The classes are the lines of `classes.txt` in the folder, the first one for index 0. Without that file
    they are the numbers from 0 to the highest index in the masks. Index 255 means no class. If each line ends
    in a colour, such as `road 128 64 128`, the masks hold colours; those of a line `ignore` have no class.
    Every pair is read once to check that it can be used; the unusable ones are skipped.
    """
    root = paths.get_source_path(config)
    if root is None:
        raise UserError(f"No folder of pictures and masks is set. {_LAYOUT}")
    if not root.is_dir():
        raise UserError(f"{root} is not a folder. {_LAYOUT}")
    named, colours = _read_classes(root / "classes.txt")
    checked, skipped = {}, []
    for split, (images, truths) in _find_split_folders(root).items():
        pairs, unmatched = _match_pairs(root, images, truths)
        checked[split] = masks.check_pairs(root, pairs, len(named) or masks.IGNORE, colours)
        unusable = unmatched + checked[split].skipped
        if not len(checked[split].pairs):
            why = ""
            if unusable:
                why = f" (skipped {count_noun(len(unusable), 'file')}, such as {': '.join(unusable[-1])})"
            raise UserError(
                f"{images} and {truths} have no usable pair of a picture and a mask{why}. {_LAYOUT}"
            )
        skipped += unusable
    masks.check_palettes(
        checked.values(),
        f"Give each class its colour in {root / 'classes.txt'}, a line each, such as 'road 128 64 128', or "
        "save the masks with one palette.",
    )
    highest = max(int(part.present.any(axis=0).nonzero()[0][-1]) for part in checked.values())
    classes = named or [str(index) for index in range(highest + 1)]
    trained = np.flatnonzero(checked["train"].present.any(axis=0)).tolist()
    if len(trained) < 2:
        raise UserError(
            f"{root}: the masks to train on have only class {trained[0]}; at least two classes are needed. "
            "Index 255 means that a pixel has no class: if it stands for an object, write 1 instead, or the "
            "lines 'background 0 0 0' and 'object 255 255 255' into classes.txt."
        )
    if not named:
        _check_gaps(root, np.any([part.present.any(axis=0) for part in checked.values()], axis=0))
    notes = []
    if not named:
        notes.append(
            f"There is no classes.txt: classes are 0 to {highest}, the highest index in the masks."
        )
    return root, checked, classes, notes, skipped


def _check_gaps(root: Path, present: np.ndarray) -> None:
    """Refuses masks whose numbers are so far apart that they are levels of grey, such as 0 and 128."""
    numbers = np.flatnonzero(present).tolist()
    if numbers[-1] + 1 > 3 * len(numbers) and numbers[-1] > 8:
        lines = " and ".join(f"'class{n} {n} {n} {n}'" for n in numbers[-2:])
        raise UserError(
            f"{root}: the masks hold only {', '.join(map(str, numbers[:9]))}, which would be "
            f"{numbers[-1] + 1} classes. If these are levels of grey, write a line for each into "
            f"classes.txt, such as {lines}; if they are class numbers, name all classes there."
        )


def _find_split_folders(root: Path) -> dict[str, Pair]:
    """Returns the folders of pictures and masks of each split; a pair in the root is for training."""
    pairs: dict[str, Pair] = {}
    for split in splits.NAMES:
        aliases = [alias for alias, name in splits.ALIASES.items() if name == split]
        folder = _find_folder(root, aliases, f"the {split} split")
        if folder is not None:
            pair = _find_pair(folder)
            if pair is None:
                raise UserError(f"{folder} has neither pictures nor masks in it. {_LAYOUT}")
            pairs[split] = pair
    if "train" not in pairs:
        pair = _find_pair(root)
        if pair is None:
            problem = "no folders of pictures and masks"
            if pairs:
                problem = f"{', '.join(pairs)} but no folder train"
            raise UserError(f"{root} has {problem}. {_LAYOUT}")
        pairs["train"] = pair
    return pairs


def _find_pair(folder: Path) -> Pair | None:
    images = _find_folder(folder, IMAGES, "pictures")
    truths = _find_folder(folder, MASKS, "masks")
    if images is None and truths is None:
        return None
    if images is None or truths is None:
        present, missing = (images, "masks") if truths is None else (truths, "pictures")
        raise UserError(f"{present} is there, but {folder} has no folder of {missing}. {_LAYOUT}")
    return images, truths


def _find_folder(folder: Path, names: Sequence[str], purpose: str) -> Path | None:
    """Returns the one subfolder with one of the names in any case, or None."""
    matches = sorted(p for p in folder.iterdir() if p.is_dir() and p.name.lower() in names)
    if len(matches) > 1:
        both = " and ".join(path.name for path in matches)
        raise UserError(f"{folder} has {both} for {purpose}; remove or rename all but one.")
    return matches[0] if matches else None


def _match_pairs(
    root: Path, images: Path, truths: Path
) -> tuple[list[Pair], list[tuple[str, str]]]:
    """Pairs pictures with the masks of the same name; returns the pairs, and path and reason of the rest."""
    unmatched = []
    by_stem: dict[str, Path] = {}
    for path in _list_files(images):
        if path.stem in by_stem:
            reason = f"{by_stem[path.stem].name} has the same name"
            unmatched.append((str(path.relative_to(root)), reason))
        else:
            by_stem[path.stem] = path
    truth = {path.stem: path for path in _list_files(truths) if path.suffix.lower() == ".png"}
    for stem, path in by_stem.items():
        if stem not in truth:
            expected = (truths / f"{stem}.png").relative_to(root)
            unmatched.append((str(path.relative_to(root)), f"there is no mask {expected}"))
    for stem, path in truth.items():
        if stem not in by_stem:
            folder = images.relative_to(root)
            unmatched.append((str(path.relative_to(root)), f"{folder} has no picture of this name"))
    return [(path, truth[stem]) for stem, path in by_stem.items() if stem in truth], unmatched


def _list_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


def _read_classes(path: Path) -> tuple[list[str], masks.Colours | None]:
    """Returns the names, one from each line that is not blank, and the class number of each colour.

    Without a file there are no names, and without a colour in each line there are no colours.
    """
    if not path.is_file():
        return [], None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}); save it as UTF-8.") from error
    lines = [line.strip() for line in lines if line.strip()]
    matches = [_COLOURED.fullmatch(line) for line in lines]
    coloured = [(match[1], tuple(map(int, match.group(2, 3, 4)))) for match in matches if match]
    if len(coloured) < len(lines) or any(max(colour) > 255 for _, colour in coloured):
        _check_names(path, lines)
        return lines, None
    names = [name for name, _ in coloured if name != _IGNORED]
    _check_names(path, names)
    colours = {
        colour: masks.IGNORE if name == _IGNORED else names.index(name) for name, colour in coloured
    }
    if len(colours) < len(coloured):
        raise UserError(f"{path} has a colour more than once; every class needs its own.")
    return names, colours


def _check_names(path: Path, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"{path} has {', '.join(twice)} more than once; every class needs its own name."
        )
    if not 2 <= len(names) <= masks.IGNORE:
        raise UserError(
            f"{path} names {len(names)} classes, one per line; 2 to {masks.IGNORE} are needed (index 255 "
            "means no class)."
        )
