"""Batches for training and evaluation, the same for any number of hosts, workers and threads.

No iterator state has to be saved: batch `i` is a function of the seed and `i` alone, so a run that starts
again at step `s` asks for the batches from `s` on.
"""

from collections.abc import Callable

import grain
import numpy as np

from experiments.core.errors import UserError
from experiments.core.words import count_noun
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
    """Returns an endless iterator over shuffled and augmented batches.

    Global batch `i` is the concatenation of the hosts' batches `i` in the order of the hosts, and does not
    depend on the number of hosts, workers or threads. Every epoch is shuffled again; a batch may span two
    epochs.

    Args:
        source: the examples; a source smaller than a batch is repeated within it.
        transform: maps an example and its random generator to the network's inputs.
        batch_size: number of examples in a global batch; each host gets its share.
        seed: decides the order and the augmentation.
        start_step: number of the first batch.
        num_threads: number of batches that each process prepares at once; 0 prepares each on demand.
        num_workers: number of additional processes that prepare batches; 0 uses threads only.
        process_index: index of this host.
        process_count: number of hosts.

    Returns:
        An iterator of `{'inputs': [b, ...], 'label': [b]}` with this host's `b` examples. Its `close()`
        ends the threads and workers.

    Raises:
        UserError: if the source is empty or the batch cannot be divided among the hosts.
    """
    local = _divide_batch(source, batch_size, process_count)
    data = (
        _shuffle(source, seed)
        # Before the hosts' shares are taken, so that an example's randomness follows its global position.
        .random_map(transform)
        # Local batch j is examples [j * local, (j + 1) * local): hosts take turns, and their
        # batches side by side are the global batch in its own order.
        .batch(local)[process_index::process_count][start_step:]
        .to_iter_dataset(_make_read_options(num_threads))
    )
    if num_workers:
        options = grain.multiprocessing.MultiprocessingOptions(num_workers=num_workers)
        data = data.mp_prefetch(options)
    return iter(data)


def train_records(examples: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Returns the positions of the examples in global batch `step` of `train_batches`."""
    order = _shuffle(range(examples), seed)
    return np.array([order[step * batch_size + place] for place in range(batch_size)])


def _shuffle(source: Source, seed: int) -> grain.MapDataset:
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
    """Returns an iterator over all examples in order, once, in batches of one shape.

    Arguments as for `train_batches`; `transform` maps an example alone.

    Returns:
        An iterator of `{'inputs': [b, ...], 'label': [b], 'mask': [b]}`, with the same number of batches on
        every host. `mask` is 1.0 for an example and 0.0 for the copies that fill the last batch.
    """
    local = _divide_batch(source, batch_size, process_count)
    count = len(source)
    positions = np.arange(-(-count // batch_size) * batch_size)
    filled = Subset(source, np.minimum(positions, count - 1))

    def prepare(index: int, example: Example) -> Example:
        return {**transform(example), "mask": np.float32(index < count)}

    return iter(
        grain.MapDataset.source(filled)
        .map_with_index(prepare)
        .batch(local)[process_index::process_count]
        .to_iter_dataset(_make_read_options(num_threads))
    )


def _divide_batch(source: Source, batch_size: int, process_count: int) -> int:
    """Returns the number of examples of a batch on each host."""
    if not len(source):
        raise UserError("There are no examples to make batches of.")
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"The batch size {batch_size} cannot be divided among "
            f"{count_noun(process_count, 'host')}; choose a positive "
            f"multiple of {process_count}."
        )
    return batch_size // process_count


def _make_read_options(num_threads: int) -> grain.ReadOptions:
    # Here each element is a whole batch: grain's default buffer of 500 would fill the memory.
    return grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
