"""Pictures with a number for each object: reads, checks and numbers the objects of masks.

An example has `inputs`, uint8 `[H, W, 3]`, `label`, the map of objects, uint8 `[H, W]` (0 the background, 1
to n the objects, 255 void: borders, crowds, objects beyond 254), and `classes`, int32 `[n]`, the class of
each object, from 1.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage

from experiments.core import digests
from experiments.core.errors import UserError
from experiments.core.words import count_noun
from experiments.data import masks, pictures, splits
from experiments.data.dataset import Dataset, Example, Source

VOID = masks.IGNORE
"""Number of pixels that belong neither to an object nor to the background."""

MAX_OBJECTS = VOID - 1
"""Largest number of objects of a map; the smallest ones beyond it are void."""

MIN_COMPONENT = 50
"""Pixels of the smallest connected component that counts as an object."""

FOLDERS = ("segmentationobject", "objects", "instances")
"""Names, in lower case, of the folder of object masks beside a folder of class masks."""

Objects = tuple[np.ndarray, np.ndarray]
"""A map of objects, uint8 `[H, W]`, and the class of each, int32 `[n]`."""


# ---------------------------------------------------------------- maps of objects


def number_objects(class_mask: np.ndarray, object_mask: np.ndarray) -> Objects:
    """Returns the map of the objects of an object mask, and the class of each from the class mask.

    Objects are numbered from 1 in the order of their numbers in the mask. A pixel is void where either mask
    is 255, and where the class mask has a class and the object mask no object.

    Args:
        class_mask: uint8 `[H, W]`: 0 background, 255 void.
        object_mask: uint8 `[H, W]`: 0 no object, 255 void.

    Raises:
        ValueError: if an object has no class, or several.

    Example:
        >>> import numpy as np
        >>> ids, classes = number_objects(
        ...     np.array([[0, 9, 9, 255, 4]], np.uint8), np.array([[0, 2, 2, 255, 7]], np.uint8)
        ... )
        >>> ids.tolist(), classes.tolist()
        ([[0, 1, 1, 255, 2]], [9, 4])
    """
    if class_mask.shape != object_mask.shape:
        height, width = object_mask.shape
        raise ValueError(
            f"its object mask is {width} by {height}, not {class_mask.shape[1]} by {class_mask.shape[0]}"
        )
    pairs = np.bincount(
        object_mask.ravel().astype(np.intp) * 256 + class_mask.ravel(), None, 256**2
    )
    counts = pairs.reshape(256, 256)  # of the pixels of an object, by class
    numbers = np.flatnonzero(counts[1:VOID].any(axis=1)) + 1
    classes = []
    for number in numbers:
        seen = np.flatnonzero(counts[number, :VOID]).tolist()
        if not seen or seen == [0]:
            raise ValueError(f"object {number} of its object mask has no class in its class mask")
        if len(seen) > 1:
            listed = " and ".join(map(str, seen))
            raise ValueError(f"object {number} of its object mask has the classes {listed}")
        classes += seen
    table = np.full(256, VOID, np.uint8)
    table[0] = 0
    table[numbers] = np.arange(1, len(numbers) + 1)
    ids = table[object_mask]
    ids[(class_mask == VOID) | ((ids == 0) & (class_mask != 0))] = VOID
    return ids, np.array(classes, np.int32)


def find_components(class_mask: np.ndarray, min_pixels: int = MIN_COMPONENT) -> Objects:
    """Returns the connected components of each class as objects.

    Pixels that touch at a side or a corner are connected. Components of fewer pixels are void.

    Args:
        class_mask: uint8 `[H, W]`: 0 background, 255 void.
        min_pixels: the smallest component that is an object.

    Example:
        >>> import numpy as np
        >>> ids, classes = find_components(np.array([[3, 3, 0, 3, 3, 5]], np.uint8), min_pixels=2)
        >>> ids.tolist(), classes.tolist()
        ([[1, 1, 0, 2, 2, 255]], [3, 3])
    """
    found = np.zeros(class_mask.shape, np.int32)
    classes: list[int] = []
    for number in np.flatnonzero(np.bincount(class_mask.ravel(), minlength=256)[:VOID]).tolist():
        if number:
            components, count = ndimage.label(class_mask == number, np.ones((3, 3)))
            found = np.where(components > 0, components + len(classes), found)
            classes += [number] * count
    found[class_mask == VOID] = len(classes) + 1
    return select_objects(found, np.array(classes, np.int32), MAX_OBJECTS, min_pixels)


def select_objects(
    ids: np.ndarray, classes: np.ndarray, limit: int, min_pixels: int = 1
) -> Objects:
    """Keeps the largest objects of a map, numbered from 1 in their old order; the others become void.

    Args:
        ids: integers `[H, W]`: 0 background, 1 to n the objects; any higher number is void.
        classes: int `[n]`.
        limit: the most objects to keep, 254 or less; of equal ones, the first.
        min_pixels: smaller objects are not kept.

    Example:
        >>> import numpy as np
        >>> ids = np.array([[1, 2, 2, 3, 3, 0, 255]], np.uint8)
        >>> [part.tolist() for part in select_objects(ids, np.array([7, 8, 9]), 2, min_pixels=2)]
        [[[255, 1, 1, 2, 2, 0, 255]], [8, 9]]
    """
    sizes = np.bincount(ids.ravel(), minlength=len(classes) + 1)
    of_objects = sizes[1 : len(classes) + 1]
    order = np.argsort(-of_objects, kind="stable")[:limit]
    kept = np.sort(order[of_objects[order] >= min_pixels])
    table = np.full(len(sizes), VOID, np.uint8)
    table[0] = 0
    table[kept + 1] = np.arange(1, len(kept) + 1)
    return table[ids], np.asarray(classes, np.int32)[kept]


def paint_classes(ids: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns the class of each pixel of a map of objects, int32 `[H, W]`: 0 background, 255 void.

    Void is 255 also where there are more than 255 classes.
    """
    table = np.full(256, VOID, np.int32)
    table[0] = 0
    table[1 : len(classes) + 1] = classes
    return table[ids]


# ---------------------------------------------------------------- masks in files


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedObjects:
    """Pictures with objects in masks, which are read when they are needed.

    Attributes:
        pairs: the pictures and their class masks.
        object_masks: the object mask of each picture; None if objects are the components of the class masks.
        labels: digest of the masks of each picture, uint64 `[N]`.
    """

    pairs: masks.Pairs
    object_masks: Sequence[Path] | None
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        example = self.pairs[index]
        file = None if self.object_masks is None else self.object_masks[index]
        try:
            ids, classes = _find_objects(example["label"], file)
        except Exception as error:  # Pillow's decoders raise many kinds of errors.
            raise UserError(pictures.describe_unreadable(file, error)) from error
        return {"inputs": example["inputs"], "label": ids, "classes": classes}

    @property
    def digests(self) -> Sequence[int]:
        """Digest of the content of each picture."""
        return self.pairs.digests

    @property
    def names(self) -> Sequence[str]:
        """Name of each picture for messages."""
        return self.pairs.names


def _find_objects(class_mask: np.ndarray, file: Path | None) -> Objects:
    if file is None:
        return find_components(class_mask)
    return number_objects(class_mask, masks.decode_mask(file))


@dataclasses.dataclass(frozen=True, eq=False)
class CheckedObjects:
    """The usable pictures of a split, and what the check has seen.

    Attributes:
        source: the usable pictures with their objects.
        sizes: the different sizes among them, `(H, W)`.
        present: bool `[N, C]`, the classes of each picture's objects; its first column, the background, is
            True.
        counts: the number of objects of each picture, `[N]`.
    """

    source: Source
    sizes: set[tuple[int, int]]
    present: np.ndarray
    counts: np.ndarray

    def make_pool(self) -> splits.Pool:
        """Returns the pictures to split, with the rarest class of each as its label."""
        return splits.Pool(self.source, masks.compute_strata(self.present))

    def describe(self, split: str) -> str:
        """Returns a sentence about the number of objects."""
        total, number = int(self.counts.sum()), len(self.counts)
        return (
            f"{split}: {count_noun(total, 'object')} in {count_noun(number, 'picture')}, "
            f"{total / number:.1f} on average and {self.counts.max()} at most."
        )


def check_objects(
    root: Path, part: masks.CheckedPairs, num_classes: int
) -> tuple[CheckedObjects, list[tuple[str, str]], str]:
    """Reads the objects of checked pairs once and keeps the pictures that can be used.

    Their object masks have the same names as the class masks, and lie in one of `FOLDERS` beside the folder
    of these. Without such a folder, objects are connected components.

    Args:
        root: the folder that names of skipped files are relative to.
        part: pictures and class masks, with numbers below `num_classes`.
        num_classes: number of classes, the background included.

    Returns:
        The usable pictures, `(file, reason)` of the others, and a sentence about the origin of the objects.
    """
    pairs = part.pairs
    folder = _find_folder(pairs.masks[0].parent.parent)
    position = {path: index for index, path in enumerate(pairs.pictures)}
    files = None if folder is None else [folder / path.name for path in pairs.masks]

    def check(picture: Path):
        index = position[picture]
        class_mask = masks.decode_mask(pairs.masks[index], pairs.colours)
        file = None if files is None else files[index]
        try:
            ids, classes = _find_objects(class_mask, file)
        except Exception as error:  # Pillow's decoders raise many kinds of errors.
            reason = pictures.describe_error(error)
            unreadable = not isinstance(error, ValueError) or isinstance(error, UnicodeError)
            return None, f"its object mask cannot be read: {reason}" if unreadable else reason
        meaning = f"components of {MIN_COMPONENT}".encode() if file is None else file.read_bytes()
        digest = digests.compute_digest(pairs.labels[index].tobytes() + meaning)
        return (ids.shape, classes, digest), ""

    usable, skipped = pictures.check_all(root, list(pairs.pictures), check)
    kept = [position[picture] for picture in usable]
    present = np.zeros((len(kept), num_classes), bool)
    present[:, 0] = True
    for row, (_, classes, _) in zip(present, usable.values(), strict=True):
        row[classes] = True
    source = MaskedObjects(
        dataclasses.replace(
            pairs,
            pictures=[pairs.pictures[index] for index in kept],
            masks=[pairs.masks[index] for index in kept],
            digests=[pairs.digests[index] for index in kept],
            names=[pairs.names[index] for index in kept],
            labels=pairs.labels[kept],
        ),
        None if files is None else [files[index] for index in kept],
        np.array([digest for *_, digest in usable.values()], np.uint64),
    )
    counts = np.array([len(classes) for _, classes, _ in usable.values()], int)
    sizes = {size for size, *_ in usable.values()}
    origin = f"from {folder}" if folder else _describe_components(pairs.masks[0].parent)
    return CheckedObjects(source, sizes, present, counts), skipped, f"objects are {origin}"


def _describe_components(folder: Path) -> str:
    """Returns the words for objects that are the components of the class masks in `folder`."""
    return (
        f"connected components: of each class in {folder.name}, those of at least {MIN_COMPONENT} "
        "pixels; smaller ones are ignored"
    )


def _find_folder(parent: Path) -> Path | None:
    """Returns the folder of object masks in `parent`; None if there is none with files in it."""
    folders = sorted(path for path in parent.iterdir() if path.name.lower() in FOLDERS)
    filled = [path for path in folders if path.is_dir() and any(path.iterdir())]
    if len(filled) > 1:
        both = " and ".join(path.name for path in filled)
        raise UserError(f"{parent} has {both} for object masks; remove or rename all but one.")
    return filled[0] if filled else None


def make_dataset(
    name: str,
    config: ConfigDict,
    seed: int,
    root: Path,
    checked: Mapping[str, masks.CheckedPairs],
    classes: Sequence[str],
) -> Dataset:
    """Returns the objects of checked pictures and masks as a data set.

    Args:
        name: name of the data set.
        config, seed: as for `splits.make_splits`.
        root: the folder of the data set.
        checked: the pictures and class masks of the splits that the data set has.
        classes: name of each class, first the background.

    Raises:
        UserError: if no picture of a split can be used, or none to train on has an object.
    """
    parts: dict[str, CheckedObjects] = {}
    notes, skipped = [], []
    for split, part in checked.items():
        parts[split], unusable, origin = check_objects(root, part, len(classes))
        if not len(parts[split].source):
            raise UserError(
                f"{name}: no picture of {split} in {root} can be used "
                f"({': '.join(unusable[-1])}). Repair the object masks, or remove their folder: then objects "
                "are connected components."
            )
        notes.append(f"{split}: {origin}.")
        skipped += unusable
    return join_splits(name, config, seed, parts, classes, notes, skipped)


def join_splits(
    name: str,
    config: ConfigDict,
    seed: int,
    parts: Mapping[str, CheckedObjects],
    classes: Sequence[str],
    notes: Sequence[str],
    skipped: Sequence[tuple[str, str]],
) -> Dataset:
    """Returns what `masks.join_splits` does, with notes on the number of objects.

    Raises:
        UserError: if no picture to train on has an object.
    """
    if not parts["train"].counts.any():
        why = f" ({': '.join(skipped[-1])})" if skipped else ""
        raise UserError(
            f"{name}: no picture to train on has an object{why}: there is nothing to learn. {' '.join(notes)}"
        )
    notes = [*notes, *(part.describe(split) for split, part in parts.items())]
    return masks.join_splits(name, config, seed, parts, classes, notes, skipped, "object")
