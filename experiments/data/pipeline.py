"""Batches for training and evaluation, the same on any number of hosts, workers and threads.

There is no iterator state to save: batch `i` is a function of the seed and `i` alone, so a run
that starts again at step `s` asks for the batches from `s` on.
"""

from collections.abc import Callable

import grain
import numpy as np

from experiments.core.errors import UserError
from experiments.data.dataset import Example, Source
from experiments.data.views import Subset

Batch = dict[str, np.ndarray]


def train_batches(
    source: Source,
    transform: Callable[[Example, np.random.Generator], Example],
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    num_threads: int = 2,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Iterates without end over shuffled and augmented batches.

    Global batch `i` is the concatenation of the hosts' batches `i` in the order of the hosts, and
    does not depend on how many hosts, workers or threads there are. Every epoch is shuffled anew;
    a batch may reach over the end of an epoch.

    Args:
        source: the examples; a source smaller than a batch is gone through more than once.
        transform: what is done to each example, given the example's own random generator.
        batch_size: the examples in a global batch; each host gets its share.
        seed: decides the order and the augmentation.
        start_step: the number of the first batch to return.
        num_threads: how many batches are prepared at once in each process; 0 prepares each when
            it is asked for.
        num_workers: how many further processes prepare batches; 0 means threads only.
        process_index: which host this is.
        process_count: how many hosts there are.

    Returns:
        An iterator of `{'inputs': [b, ...], 'label': [b]}` with this host's `b` examples. Its
        `close()` ends the threads and workers.

    Raises:
        UserError: if the source is empty or the hosts cannot share a batch evenly.
    """
    local = _local_size(source, batch_size, process_count)
    data = (
        _in_order(source, seed)
        # Before the hosts part ways, so that an example's randomness follows its global position.
        .random_map(transform)
        # Local batch j is examples [j * local, (j + 1) * local): hosts take turns, and their
        # batches side by side are the global batch in its own order.
        .batch(local)[process_index::process_count][start_step:]
        .to_iter_dataset(_read_options(num_threads))
    )
    if num_workers:
        options = grain.multiprocessing.MultiprocessingOptions(num_workers=num_workers)
        data = data.mp_prefetch(options)
    return iter(data)


def train_records(examples: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Which of so many examples are in global batch `step` of `train_batches`, by position."""
    order = _in_order(range(examples), seed)
    return np.array([order[step * batch_size + place] for place in range(batch_size)])


def _in_order(source: Source, seed: int) -> grain.MapDataset:
    return grain.MapDataset.source(source).seed(seed % 2**32).shuffle().repeat()


def eval_batches(
    source: Source,
    transform: Callable[[Example], Example],
    *,
    batch_size: int,
    num_threads: int = 2,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Iterates once over all examples in order, in batches of one shape.

    Args:
        source: the examples.
        transform: what is done to each example.
        batch_size: the examples in a global batch; each host gets its share.
        num_threads: how many batches are prepared at once.
        process_index: which host this is.
        process_count: how many hosts there are.

    Returns:
        An iterator of `{'inputs': [b, ...], 'label': [b], 'mask': [b]}`, as many on every host.
        `mask` is 1.0 for an example and 0.0 for the copies that fill the last batch.

    Raises:
        UserError: if the source is empty or the hosts cannot share a batch evenly.
    """
    local = _local_size(source, batch_size, process_count)
    count = len(source)
    positions = np.arange(-(-count // batch_size) * batch_size)
    filled = Subset(source, np.minimum(positions, count - 1))

    def prepare(index: int, example: Example) -> Example:
        return {**transform(example), "mask": np.float32(index < count)}

    return iter(
        grain.MapDataset.source(filled)
        .map_with_index(prepare)
        .batch(local)[process_index::process_count]
        .to_iter_dataset(_read_options(num_threads))
    )


def _local_size(source: Source, batch_size: int, process_count: int) -> int:
    if not len(source):
        raise UserError("There are no examples to make batches of.")
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"The batch size {batch_size} cannot be shared evenly by {process_count} host(s); "
            f"choose a positive multiple of {process_count}."
        )
    return batch_size // process_count


def _read_options(num_threads: int) -> grain.ReadOptions:
    # Each element is a whole batch by now: grain's own buffer of 500 would fill the memory.
    return grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
