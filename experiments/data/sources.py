"""The two plainest sources: arrays in memory, and a view of some of another source's examples."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.data.dataset import Example, Source


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Examples that are held in memory, inputs beside labels.

    Attributes:
        inputs: one array of inputs per example, `[N, ...]`.
        labels: `[N]` integers.
    """

    inputs: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return {"inputs": self.inputs[index], "label": np.int32(self.labels[index])}


@dataclasses.dataclass(frozen=True, eq=False)
class Relabelled:
    """Some of the examples of another source, their labels numbered anew.

    Attributes:
        source: where the examples come from.
        indices: which of them, by position.
        numbers: the new number of each old one.
    """

    source: Source
    indices: np.ndarray | Sequence[int]
    numbers: Mapping[int, int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        example = self.source[int(self.indices[index])]
        return {**example, "label": np.int32(self.numbers[int(example["label"])])}


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Some of the examples of another source, in the given order, without copying any.

    Attributes:
        source: where the examples come from.
        indices: which of them, by position; one may be named more than once.
    """

    source: Source
    indices: np.ndarray | Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.source[int(self.indices[index])]
