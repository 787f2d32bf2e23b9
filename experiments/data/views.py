"""The plainest sources: arrays in memory, and views of other sources' examples."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.core import digests
from experiments.data.dataset import Example, Source


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Examples that are held in memory, inputs beside labels.

    Attributes:
        inputs: one array of inputs per example, `[N, ...]`.
        labels: `[N]` integers.
        names: what to call each in a sentence.
    """

    inputs: np.ndarray
    labels: np.ndarray
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return {"inputs": self.inputs[index], "label": np.int32(self.labels[index])}

    @property
    def digests(self) -> list[int]:
        """A number for the content of each example."""
        return [
            digests.compute_digest(np.ascontiguousarray(example).tobytes())
            for example in self.inputs
        ]


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


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """The examples of several sources, one source after another, without copying any.

    Attributes:
        sources: where the examples come from.
    """

    sources: Sequence[Source]

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, index: int) -> Example:
        for source in self.sources:
            if index < len(source):
                return source[index]
            index -= len(source)
        raise IndexError(index)


def flatten(source: Source) -> tuple[list[Source], np.ndarray, np.ndarray]:
    """What a view of views shows in the end.

    Returns:
        The sources behind it that are no views, and for each example which of them it is from and its
        position there.
    """
    if isinstance(source, Subset | Relabelled):
        bases, owners, positions = flatten(source.source)
        indices = np.asarray(source.indices, dtype=int)
        return bases, owners[indices], positions[indices]
    if isinstance(source, Chain):
        bases, owners, positions = [], [np.empty(0, int)], [np.empty(0, int)]
        for part in source.sources:
            behind, owner, position = flatten(part)
            owners.append(owner + len(bases))
            positions.append(position)
            bases += behind
        return bases, np.concatenate(owners), np.concatenate(positions)
    return [source], np.zeros(len(source), int), np.arange(len(source))
