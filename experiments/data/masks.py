"""Pictures with a class for every pixel: reading their masks, and what a reader must know of them."""

import concurrent.futures
import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from experiments.core import digests
from experiments.core.errors import UserError
from experiments.data import pictures, splits
from experiments.data.dataset import Example

IGNORE = 255
"""The index of pixels that count for nothing: borders of objects, what lies outside a picture."""

_MODES = ("P", "L", "1", "I;16", "I")


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Pictures and masks that stay in their files until they are asked for.

    `inputs` is uint8 `[H, W, 3]`, `label` uint8 `[H, W]` with 255 where no class is meant.

    Attributes:
        pictures: the file of each picture.
        masks: the file of its mask, in the same order.
        digests: a number for the content of each picture.
        names: what to call each in a sentence.
    """

    pictures: Sequence[pathlib.Path]
    masks: Sequence[pathlib.Path]
    digests: Sequence[int] = ()
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Example:
        picture, mask = self.pictures[index], self.masks[index]
        inputs = pictures.read_picture(picture, picture)
        try:
            label = decode_mask(mask)
        except Exception as error:  # Pillow's decoders raise whatever their formats suggest.
            raise UserError(pictures.describe_unreadable(mask, error)) from error
        return {"inputs": inputs, "label": label}


@dataclasses.dataclass(frozen=True, eq=False)
class CheckedPairs:
    """The pairs that can be used, and what was seen while looking.

    Attributes:
        pairs: those that can be used.
        sizes: the different sizes among them, `(H, W)`.
        present: bool `[N, 255]`, which indices occur in which mask.
        skipped: `(file, reason)` for the others.
    """

    pairs: Pairs
    sizes: set[tuple[int, int]]
    present: np.ndarray
    skipped: list[tuple[str, str]]

    def make_pool(self) -> splits.Pool:
        """Returns the pairs as examples to split, with their strata for labels."""
        return splits.Pool(self.pairs, compute_strata(self.present))


def decode_mask(file: bytes | str | pathlib.Path) -> np.ndarray:
    """Reads a mask: the indices of a palette picture, or the values of a single channel.

    Args:
        file: the encoded bytes, or the path of a file that holds them.

    Returns:
        uint8 `[H, W]`.

    Raises:
        OSError, SyntaxError: Pillow's own, if the picture cannot be decoded.
        ValueError: Pillow's own, or if it has colours instead of indices, or one outside 0 to 255.
    """
    with pictures.open_picture(file) as image:
        if image.mode not in _MODES:
            raise ValueError(
                f"its pixels are {image.mode} colours; a mask needs a palette or one channel of "
                "class numbers"
            )
        indices = np.asarray(image)
    for index in (indices.min(), indices.max()) if indices.dtype.itemsize > 1 else ():
        if not 0 <= index <= 255:
            raise ValueError(f"it holds the number {index}; a mask's go from 0 to 255")
    return indices.astype(np.uint8)


def check_pair(
    picture: pathlib.Path, mask: pathlib.Path, num_classes: int = IGNORE
) -> tuple[tuple[tuple[int, int], np.ndarray] | None, str]:
    """Reads a pair to find out whether it can be used; the mask completely.

    Args:
        picture: the picture's file.
        mask: the mask's file.
        num_classes: classes are numbered from 0 up to but not including this.

    Returns:
        `(((height, width), indices), '')`, the indices without 255 and ascending, or
        `(None, reason)` if the pair cannot be used.
    """
    size, reason = pictures.check_picture(picture)
    if size is None:
        return None, reason
    try:
        truth = decode_mask(mask)
    except Exception as error:  # Pillow's decoders raise whatever their formats suggest.
        return None, f"its mask cannot be read: {pictures.describe_error(error)}"
    if truth.shape != size:
        return None, f"{size[1]} by {size[0]}, but its mask {truth.shape[1]} by {truth.shape[0]}"
    indices = np.flatnonzero(np.bincount(truth.ravel(), minlength=256)[:IGNORE])
    if not len(indices):
        return None, "its mask names no class for any pixel"
    if indices[-1] >= num_classes:
        unknown = ", ".join(str(index) for index in indices if index >= num_classes)
        return None, f"its mask holds {unknown}, but classes are 0 to {num_classes - 1} (255: none)"
    return (size, indices), ""


def check_pairs(
    root: pathlib.Path,
    pairs: Sequence[tuple[pathlib.Path, pathlib.Path]],
    num_classes: int = IGNORE,
) -> CheckedPairs:
    """Reads every pair once and keeps those that can be used.

    Args:
        root: the folder that skipped files are named relative to.
        pairs: `(picture, mask)` files.
        num_classes: classes are numbered from 0 up to but not including this.
    """
    kept, sizes, present, digests, skipped = [], set(), [], [], []
    with pictures.silence_pillow(), concurrent.futures.ThreadPoolExecutor() as pool:
        found = pool.map(lambda pair: _look(*pair, num_classes), pairs)
        for pair, (seen, digest, reason) in zip(pairs, found, strict=True):
            if seen is None:
                skipped.append((str(pair[0].relative_to(root)), reason))
                continue
            size, indices = seen
            kept.append(pair)
            sizes.add(size)
            present.append(np.isin(np.arange(IGNORE), indices))
            digests.append(digest)
    files = [picture for picture, _ in kept]
    return CheckedPairs(
        Pairs(
            files,
            [mask for _, mask in kept],
            digests,
            [str(picture.relative_to(root)) for picture in files],
        ),
        sizes,
        np.array(present, dtype=bool).reshape(len(kept), IGNORE),
        skipped,
    )


def _look(picture: pathlib.Path, mask: pathlib.Path, num_classes: int):
    seen, reason = check_pair(picture, mask, num_classes)
    return seen, digests.compute_file_digest(picture) if seen else 0, reason


_SMALLEST_STRATUM = 10


def compute_strata(present: np.ndarray) -> np.ndarray:
    """Gives each picture one label to stratify by: the rarest of its classes.

    A picture has several classes, and most have the background. The rarest one (in the fewest
    pictures; of equals, the lower number) says most about it: with its share of each part, every
    class has about its own. Strata of fewer than 10 pictures could not give a tenth of
    themselves; they are taken together as one.

    Args:
        present: bool `[N, C]`, which classes occur in which picture; each has at least one.

    Returns:
        int32 `[N]`: class numbers, and C for what was taken together.
    """
    counts = present.sum(axis=0)
    labels = np.where(present, counts, len(present) + 1).argmin(axis=1).astype(np.int32)
    sizes = np.bincount(labels, minlength=present.shape[1])
    return np.where(sizes[labels] < _SMALLEST_STRATUM, present.shape[1], labels).astype(np.int32)


def get_common_shape(sizes: set[tuple[int, int]]) -> tuple[int, int, int]:
    """Returns `(H, W, 3)`, H and W 0 where pictures differ in size."""
    return (*next(iter(sizes)), 3) if len(sizes) == 1 else (0, 0, 3)


def describe_absent_classes(checked: dict[str, CheckedPairs], classes: Sequence[str]) -> list[str]:
    """Says which classes the pools of a data set lack: no score can be measured for those."""
    notes = []
    for split, found in checked.items():
        occurs = found.present.any(axis=0)
        absent = [name for index, name in enumerate(classes) if not occurs[index]]
        if absent:
            notes.append(f"{split} has no pixel of {', '.join(absent)}.")
    return notes
