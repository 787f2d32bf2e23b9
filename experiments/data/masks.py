"""Pictures with a class for every pixel: reads their masks and checks pairs of a picture and a mask."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from ml_collections import ConfigDict

from experiments.core import digests
from experiments.core.errors import UserError
from experiments.data import pictures, splits
from experiments.data.dataset import Dataset, Example

IGNORE = 255
"""Index of pixels that are ignored: borders of objects, and the area outside a picture."""

Colour = tuple[int, int, int]
Colours = Mapping[Colour, int]
"""The class number of each colour, or `IGNORE`."""

_MODES = ("P", "L", "1", "I;16", "I")
_SMALLEST_STRATUM = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Pictures and masks that are read when they are needed.

    `inputs` is uint8 `[H, W, 3]`, `label` uint8 `[H, W]` with 255 for pixels without a class.

    Attributes:
        pictures: the file of each picture.
        masks: the file of its mask, in the same order.
        digests: digest of the content of each picture.
        names: name of each picture for messages.
        labels: digest of each mask and of the meaning of its colours, uint64 `[N]`.
        colours: the class number of each colour in the masks; None if masks hold class numbers.
    """

    pictures: Sequence[Path]
    masks: Sequence[Path]
    digests: Sequence[int] = ()
    names: Sequence[str] = ()
    labels: np.ndarray | None = None
    colours: Colours | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Example:
        picture, mask = self.pictures[index], self.masks[index]
        inputs = pictures.read_picture(picture, picture)
        try:
            label = decode_mask(mask, self.colours)
        except Exception as error:  # Pillow's decoders raise many kinds of errors.
            raise UserError(pictures.describe_unreadable(mask, error)) from error
        return {"inputs": inputs, "label": label}


@dataclasses.dataclass(frozen=True, eq=False)
class CheckedPairs:
    """The usable pairs, and what the check has seen.

    Attributes:
        pairs: the usable pairs.
        sizes: the different sizes among them, `(H, W)`.
        present: bool `[N, 255]`, the indices that occur in each mask.
        skipped: `(file, reason)` for the unusable pairs.
        palettes: the colours of the indices in each mask that has a palette.
    """

    pairs: Pairs
    sizes: set[tuple[int, int]]
    present: np.ndarray
    skipped: list[tuple[str, str]]
    palettes: Mapping[Path, Mapping[int, Colour]] = dataclasses.field(default_factory=dict)

    def make_pool(self) -> splits.Pool:
        """Returns the pairs as examples to split, with their strata as labels."""
        return splits.Pool(self.pairs, compute_strata(self.present))


def decode_mask(file: bytes | str | Path, colours: Colours | None = None) -> np.ndarray:
    """Reads a mask: the indices of a palette picture, or the values of a single channel.

    Args:
        file: the encoded bytes, or the path of a file that holds them.
        colours: the class number of each colour, instead of the indices.

    Raises:
        OSError, SyntaxError: from Pillow, if the picture cannot be decoded.
        ValueError: from Pillow, or if it has colours instead of indices, or an index outside 0 to 255.
    """
    with pictures.open_picture(file) as image:
        if colours is not None:
            rgb = np.asarray(pictures.turn_upright(image).convert("RGB"))
            return _number_colours(rgb, colours)
        if image.mode not in _MODES:
            raise ValueError(
                f"its pixels are {image.mode} colours; a mask needs a palette or one channel of class "
                "numbers, or give each class its colour in classes.txt (a line 'road 128 64 128')"
            )
        indices = np.asarray(pictures.turn_upright(image))
    for index in (indices.min(), indices.max()):
        if not 0 <= index <= 255:
            raise ValueError(f"it holds the number {index}; a mask's go from 0 to 255")
    return indices.astype(np.uint8)


def _number_colours(rgb: np.ndarray, colours: Colours) -> np.ndarray:
    """Returns the class numbers of colours `[H, W, 3]`."""
    codes = rgb.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    unique, inverse = np.unique(codes, return_inverse=True)
    numbers = []
    for code in unique.tolist():
        colour = (code >> 16, code >> 8 & 255, code & 255)
        if colour not in colours:
            raise ValueError(
                f"it holds the colour {' '.join(map(str, colour))}, which is of no class"
            )
        numbers.append(colours[colour])
    return np.array(numbers, np.uint8)[inverse.reshape(codes.shape)]


def read_palette(file: str | Path, indices: np.ndarray) -> dict[int, Colour]:
    """Returns the colours of some indices of a palette; {} if the file has none, or one of its numbers."""
    with pictures.open_picture(file) as image:
        if image.mode != "P":
            return {}
        palette = np.asarray(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    used = {int(index): tuple(palette[index].tolist()) for index in indices if index < len(palette)}
    # Index 7 as the grey 7 7 7 is what a picture of numbers becomes, and means no colour.
    return {} if all(set(colour) == {index} for index, colour in used.items()) else used


def check_palettes(checked: Iterable["CheckedPairs"], advice: str) -> None:
    """Checks that a class number has one colour in all masks, and a colour one number.

    Raises:
        UserError: names the first two masks that do not agree; ends with the sentence `advice`.
    """
    colour_of: dict[int, tuple[Colour, Path]] = {}
    index_of: dict[Colour, tuple[int, Path]] = {}
    for part in checked:
        for path, palette in part.palettes.items():
            for index, colour in palette.items():
                first, other = colour_of.setdefault(index, (colour, path))
                number, another = index_of.setdefault(colour, (index, path))
                shown, now = (" ".join(map(str, one)) for one in (first, colour))
                if first != colour:
                    conflict = f"index {index} is the colour {shown} in {other} and {now} in {path}"
                elif number != index and another != path:
                    conflict = (
                        f"the colour {now} is index {number} in {another} and {index} in {path}"
                    )
                else:
                    continue
                raise UserError(f"The palettes of the masks differ: {conflict}. {advice}")


def check_pair(
    picture: Path, mask: Path, num_classes: int = IGNORE, colours: Colours | None = None
) -> tuple[tuple[tuple[int, int], np.ndarray] | None, str]:
    """Checks that a pair can be used, with class numbers below `num_classes`; decodes the whole mask.

    Returns:
        `(((height, width), indices), '')`, the indices without 255 and ascending, or `(None, reason)` if
        the pair cannot be used.
    """
    size, reason = pictures.check_picture(picture)
    if size is None:
        return None, reason
    try:
        truth = decode_mask(mask, colours)
    except Exception as error:  # Pillow's decoders raise many kinds of errors.
        return None, f"its mask cannot be read: {pictures.describe_error(error)}"
    if truth.shape != size:
        return None, f"{size[1]} by {size[0]}, but its mask {truth.shape[1]} by {truth.shape[0]}"
    indices = np.flatnonzero(np.bincount(truth.ravel(), minlength=256)[:IGNORE])
    if not len(indices):
        return None, "its mask has no class for any pixel"
    if indices[-1] >= num_classes:
        unknown = ", ".join(str(index) for index in indices if index >= num_classes)
        return None, f"its mask holds {unknown}, but classes are 0 to {num_classes - 1} (255: none)"
    return (size, indices), ""


def check_pairs(
    root: Path,
    pairs: Sequence[tuple[Path, Path]],
    num_classes: int = IGNORE,
    colours: Colours | None = None,
) -> CheckedPairs:
    """Reads every pair of files below `root` once and keeps the usable ones, as `check_pair` decides."""
    masks_of = dict(pairs)
    palettes = {}
    meaning = repr(sorted(colours.items())).encode() if colours else b""

    def check(picture: Path):
        mask = masks_of[picture]
        seen, reason = check_pair(picture, mask, num_classes, colours)
        if seen is None:
            return None, reason
        if colours is None:
            palettes[mask] = read_palette(mask, seen[1])
        of_mask = digests.compute_digest(mask.read_bytes() + meaning)
        return (*seen, digests.compute_file_digest(picture), of_mask), ""

    usable, skipped = pictures.check_all(root, list(masks_of), check)
    return CheckedPairs(
        Pairs(
            list(usable),
            [masks_of[picture] for picture in usable],
            [digest for _, _, digest, _ in usable.values()],
            [str(picture.relative_to(root)) for picture in usable],
            np.array([digest for *_, digest in usable.values()], np.uint64),
            colours,
        ),
        {size for size, *_ in usable.values()},
        np.array(
            [np.isin(np.arange(IGNORE), indices) for _, indices, *_ in usable.values()], dtype=bool
        ).reshape(len(usable), IGNORE),
        skipped,
        {mask: palettes[mask] for mask in masks_of.values() if palettes.get(mask)},
    )


def compute_strata(present: np.ndarray) -> np.ndarray:
    """Returns one label per picture to stratify by: the rarest of its classes.

    A picture has several classes, and most have the background. The rarest one (in the fewest pictures; for
    ties, the lower number) characterises it best: splitting it in proportion splits every class about in
    proportion. Strata of fewer than 10 pictures could not give a tenth of themselves and are merged into
    one. `present`, bool `[N, C]`, tells the classes of each picture, at least one.

    Returns:
        int32 `[N]`: class numbers, and C for the merged strata.
    """
    counts = present.sum(axis=0)
    labels = np.where(present, counts, len(present) + 1).argmin(axis=1).astype(np.int32)
    sizes = np.bincount(labels, minlength=present.shape[1])
    return np.where(sizes[labels] < _SMALLEST_STRATUM, present.shape[1], labels).astype(np.int32)


class Checked(Protocol):
    """The usable pictures of a split: `CheckedPairs`, or `instances.CheckedObjects`."""

    sizes: set[tuple[int, int]]
    present: np.ndarray

    def make_pool(self) -> splits.Pool:
        """Returns the pictures to split."""


def join_splits(
    name: str,
    config: ConfigDict,
    seed: int,
    parts: Mapping[str, Checked],
    classes: Sequence[str],
    notes: Sequence[str],
    skipped: Sequence[tuple[str, str]],
    unit: str = "pixel",
) -> Dataset:
    """Returns the data set of the splits `parts`; those that are missing are set aside from train.

    Args:
        name: of the data set.
        config, seed: as for `splits.make_splits`.
        parts: the usable pictures of each split that there is.
        classes: name of each class.
        notes: sentences that come first.
        skipped: `(file, reason)` for each unusable file.
        unit: what a picture has of a class.
    """
    pools = {split: part.make_pool() for split, part in parts.items()}
    made, split_notes = splits.make_splits(name, config, seed, **pools)
    shape = pictures.get_common_shape(set().union(*(part.sizes for part in parts.values())))
    notes = [*notes, *describe_absent_classes(parts, classes, unit), *split_notes]
    return Dataset(name, made, list(classes), shape, notes, skipped)


def describe_absent_classes(
    checked: Mapping[str, Checked], classes: Sequence[str], unit: str = "pixel"
) -> list[str]:
    """Returns a note for each split that lacks classes, whose scores cannot be measured there."""
    notes = []
    for split, part in checked.items():
        occurs = part.present.any(axis=0)
        absent = [name for index, name in enumerate(classes) if not occurs[index]]
        if absent:
            notes.append(f"{split} has no {unit} of {', '.join(absent)}.")
    return notes
