"""Arrays in memory as a source of examples, and views of other sources."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.core import digests
from experiments.data.dataset import Example, Source


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Examples that are held in memory.

    Attributes:
        inputs: the inputs of each example, `[N, ...]`.
        labels: `[N]` integers.
        names: name of each example for messages.
        contents: digest of each example in its file, if the inputs were computed from it; see `Source`.
    """

    inputs: np.ndarray
    labels: np.ndarray
    names: Sequence[str] = ()
    contents: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return {"inputs": self.inputs[index], "label": np.int32(self.labels[index])}

    @property
    def digests(self) -> list[int]:
        """Digest of the content of each example."""
        return [
            digests.compute_digest(np.ascontiguousarray(inputs).tobytes()) for inputs in self.inputs
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class Relabelled:
    """Some examples of another source with new class numbers.

    Attributes:
        source: the source.
        indices: positions in the source.
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
    """Some examples of another source in a chosen order.

    Attributes:
        source: the source.
        indices: positions in the source; a position may occur more than once.
    """

    source: Source
    indices: np.ndarray | Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.source[int(self.indices[index])]


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """The examples of several sources, one source after another."""

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
    """Resolves nested views.

    Returns:
        The base sources, which are not views, and for each example the index of its base and its position
        there.
    """
    if isinstance(source, Subset | Relabelled):
        bases, owners, positions = flatten(source.source)
        indices = np.asarray(source.indices, dtype=int)
        return bases, owners[indices], positions[indices]
    if isinstance(source, Chain):
        bases, owners, positions = [], [np.empty(0, int)], [np.empty(0, int)]
        for part in source.sources:
            part_bases, part_owners, part_positions = flatten(part)
            owners.append(part_owners + len(bases))
            positions.append(part_positions)
            bases += part_bases
        return bases, np.concatenate(owners), np.concatenate(positions)
    return [source], np.zeros(len(source), int), np.arange(len(source))


def list_labels(source: Source) -> np.ndarray:
    """Returns the label of each example; of a segmentation, the digest of each mask."""
    if isinstance(source, Subset):
        return list_labels(source.source)[np.asarray(source.indices, dtype=int)]
    if isinstance(source, Relabelled):
        old = list_labels(source.source)[np.asarray(source.indices, dtype=int)]
        return np.array([source.numbers[int(label)] for label in old], np.int32)
    if isinstance(source, Chain):
        return np.concatenate([list_labels(part) for part in source.sources])
    labels = getattr(source, "labels", None)
    if labels is not None:
        return np.asarray(labels)
    read = [np.asarray(source[index]["label"]) for index in range(len(source))]
    if read[0].ndim < 2:
        return np.stack(read)
    return np.array([digests.compute_digest(label.tobytes()) for label in read], np.uint64)
