"""A person's own segmentation: a folder of pictures beside a folder of masks, or such a pair per split."""

import pathlib
from collections.abc import Sequence

from experiments.core.errors import UserError
from experiments.data import masks, places, splits
from experiments.data.dataset import Dataset

IMAGES = ("images", "imgs", "pictures", "jpegimages")
MASKS = ("masks", "labels", "annotations", "segmentationclass")
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
_WAYS = (
    f"Give --config.data.source=PATH, where PATH holds a folder {' or '.join(IMAGES)} and a folder "
    f"{' or '.join(MASKS)} (in any case), or the folders train, validation and test with such a "
    "pair in each. A picture's mask is a PNG of the same name whose pixels are class numbers."
)

Pair = tuple[pathlib.Path, pathlib.Path]


def load(config, seed: int) -> Dataset:
    """Returns the pictures of a folder with their masks.

    The classes are the lines of `classes.txt` in the folder, the first for index 0; without one
    they are the numbers from 0 to the highest index found. Index 255 means no class. Every pair is
    read once to see whether it can be used; those that cannot are in `skipped`.

    Args:
        config: the data part of the configuration; `source` is the folder.
        seed: decides the splits that the folder does not have, stratified by the rarest class of
            each picture.

    Returns:
        The data set; examples are `inputs`, uint8 `[H, W, 3]`, and `label`, uint8 `[H, W]`.

    Raises:
        UserError: if the folder is not laid out like this, or holds too little.
    """
    root = places.source_path(config)
    if root is None:
        raise UserError(f"No folder of pictures and masks was given. {_WAYS}")
    if not root.is_dir():
        raise UserError(f"{root} is not a folder. {_WAYS}")
    named = _read_classes(root / "classes.txt")
    checked, skipped = {}, []
    for split, (images, truths) in _split_folders(root).items():
        pairs, unmatched = _match(root, images, truths)
        checked[split] = masks.check_all(root, pairs, len(named) or masks.IGNORE)
        unusable = unmatched + checked[split].skipped
        if not len(checked[split].pairs):
            why = ""
            if unusable:
                why = f" (skipped {len(unusable):,} files, such as {': '.join(unusable[-1])})"
            raise UserError(
                f"{images} and {truths} have no usable pair of a picture and a mask{why}. {_WAYS}"
            )
        skipped += unusable
    highest = max(int(found.present.any(axis=0).nonzero()[0][-1]) for found in checked.values())
    classes = named or [str(index) for index in range(highest + 1)]
    if len(classes) < 2:
        raise UserError(
            f"{root}: every pixel of the masks is of class 0 or of none; at least two classes are "
            "needed. Index 255 means that a pixel has no class: where it stands for an object, "
            "write 1 instead."
        )
    pools = {split: found.pool() for split, found in checked.items()}
    parts, remarks = splits.arrange(root.name, config, seed, **pools)
    shape = masks.common_shape(set().union(*(found.sizes for found in checked.values())))
    notes = []
    if skipped:
        notes.append(f"{len(skipped):,} files could not be used and were skipped.")
    if not named:
        notes.append(
            f"There is no classes.txt: classes are 0 to {highest}, by the highest index found."
        )
    if not shape[0]:
        notes.append("The pictures differ in size; --config.image_size makes them alike.")
    notes += masks.absence_notes(checked, classes)
    return Dataset(root.name, parts, classes, shape, notes + remarks, skipped)


def _split_folders(root: pathlib.Path) -> dict[str, Pair]:
    """Returns the folders of pictures and masks of each split; a pair in the root is for training."""
    found: dict[str, Pair] = {}
    for split, names in _SPLITS.items():
        folder = _one(root, names, f"the {split} split")
        if folder is not None:
            pair = _pair(folder)
            if pair is None:
                raise UserError(f"{folder} has neither pictures nor masks in it. {_WAYS}")
            found[split] = pair
    if "train" not in found:
        pair = _pair(root)
        if pair is None:
            has = f" has {', '.join(found)} but no folder train" if found else ""
            raise UserError(f"{root}{has or ' has no folders of pictures and masks'}. {_WAYS}")
        found["train"] = pair
    return found


def _pair(folder: pathlib.Path) -> Pair | None:
    images, truths = _one(folder, IMAGES, "pictures"), _one(folder, MASKS, "masks")
    if images is None and truths is None:
        return None
    if images is None or truths is None:
        there, lacking = (images, "masks") if truths is None else (truths, "pictures")
        raise UserError(f"{there} is there, but {folder} has no folder of {lacking}. {_WAYS}")
    return images, truths


def _one(folder: pathlib.Path, names: Sequence[str], what: str) -> pathlib.Path | None:
    found = sorted(p for p in folder.iterdir() if p.is_dir() and p.name.lower() in names)
    if len(found) > 1:
        both = " and ".join(path.name for path in found)
        raise UserError(f"{folder} has {both} for {what}; remove or rename all but one.")
    return found[0] if found else None


def _match(
    root: pathlib.Path, images: pathlib.Path, truths: pathlib.Path
) -> tuple[list[Pair], list[tuple[str, str]]]:
    """Brings pictures and masks of the same name together, and lists those that are alone."""
    unmatched = []
    by_stem: dict[str, pathlib.Path] = {}
    for path in _files(images):
        if path.stem in by_stem:
            reason = f"{by_stem[path.stem].name} has the same name"
            unmatched.append((str(path.relative_to(root)), reason))
        else:
            by_stem[path.stem] = path
    truth = {path.stem: path for path in _files(truths) if path.suffix.lower() == ".png"}
    for stem, path in by_stem.items():
        if stem not in truth:
            where = (truths / f"{stem}.png").relative_to(root)
            unmatched.append((str(path.relative_to(root)), f"there is no mask {where}"))
    for stem, path in truth.items():
        if stem not in by_stem:
            where = images.relative_to(root)
            unmatched.append((str(path.relative_to(root)), f"{where} has no picture of this name"))
    return [(path, truth[stem]) for stem, path in by_stem.items() if stem in truth], unmatched


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


def _read_classes(path: pathlib.Path) -> list[str]:
    """Returns the names, one from each line that is not blank; none where there is no file."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}); save it as UTF-8.") from error
    names = [line.strip() for line in lines if line.strip()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"{path} names {', '.join(twice)} more than once; every class needs its own."
        )
    if not 2 <= len(names) <= masks.IGNORE:
        raise UserError(
            f"{path} names {len(names)} classes, one per line; 2 to {masks.IGNORE} are needed "
            "(index 255 means no class)."
        )
    return names
