"""The interface of every data set: named splits of random-access examples."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

Example = dict[str, np.ndarray]
"""`inputs`: uint8 `[H, W, C]` for pictures, float32 `[L, C]` for series. `label`: int32 scalar, or, if an
example can have several labels, float32 `[classes]`: 1 present, 0 absent, NaN unknown."""


class Source(Protocol):
    """A random-access collection of examples, as grain's `MapDataset.source` takes it.

    A source may also have, with one entry for each example, and so that no example has to be read for it:
    `labels` (for a segmentation, digests of the masks), `digests` of the inputs, by which copies are
    recognised, `contents` (digests of the files instead, where the inputs depend on a library), `names` for
    messages, and `files` (where several examples are from one file).
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set that is ready to train on.

    Attributes:
        name: name in reports, such as `digits` or `Adiac`.
        splits: `train`, `validation` and `test`, each without the others' examples.
        classes: name of each class, in the order of the class numbers.
        shape: shape of one example, `(H, W, C)` or `(L, C)`; H and W are 0 if pictures differ in size.
        notes: sentences about what was done to the data, shown once at the start of a run.
        skipped: `(file, reason)` for each unusable file.
        assignment: `(file, split)` for each file, if files hold several examples and were split here.
        augment: maps an example of `train` and a random generator to another one, before the task's own
            transform; None changes nothing.
        incomplete: `(file, reason)` for each file that is used without a part of it, such as an annotation.
    """

    name: str
    splits: Mapping[str, Source]
    classes: Sequence[str]
    shape: tuple[int, ...]
    notes: Sequence[str] = ()
    skipped: Sequence[tuple[str, str]] = ()
    assignment: Sequence[tuple[str, str]] = ()
    augment: Callable[[Example, np.random.Generator], Example] | None = None
    incomplete: Sequence[tuple[str, str]] = ()
