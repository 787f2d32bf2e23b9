"""What every data set looks like to the laboratory: named splits of random-access examples."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

Example = dict[str, np.ndarray]
"""`inputs`: uint8 `[H, W, C]` for pictures, float32 `[L, C]` for series. `label`: int32 scalar, or, where
there are several, float32 `[classes]`: 1 for yes, 0 for no, NaN for not known."""


class Source(Protocol):
    """A random-access collection of examples, as grain's `MapDataset.source` takes it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set that is ready to train on.

    Attributes:
        name: what it is called in reports, such as `digits` or `Adiac`.
        splits: `train`, `validation` and `test`, each without the others' examples.
        classes: the name of each label, in the order of the label's number.
        shape: the shape of one example, `(H, W, C)` or `(L, C)`; H and W are 0 where pictures
            differ in size.
        notes: sentences about what was done to the data, shown once at the start of a run.
        skipped: `(file, reason)` for each file that could not be used.
        assignment: `(file, split)` for each file, where files were dealt out here and hold several examples.
    """

    name: str
    splits: Mapping[str, Source]
    classes: Sequence[str]
    shape: tuple[int, ...]
    notes: Sequence[str] = ()
    skipped: Sequence[tuple[str, str]] = ()
    assignment: Sequence[tuple[str, str]] = ()
