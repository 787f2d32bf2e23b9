import itertools

import numpy as np
import pytest

from experiments.core.errors import UserError
from experiments.data import pipeline, transforms
from experiments.data.views import Arrays

COUNT, BATCH = 21, 8
TRAIN = transforms.make_transform("crop_flip", 6, 0.5, 0.5, train=True)
EVAL = transforms.make_transform("crop_flip", 6, 0.5, 0.5, train=False)


@pytest.fixture
def source():
    pictures = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 1)).astype(np.uint8)
    return Arrays(pictures, np.arange(COUNT))


def take(batches, count):
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def train(source, count=6, **options):
    options = {"batch_size": BATCH, "seed": 7} | options
    return take(pipeline.train_batches(source, TRAIN, **options), count)


def assert_equal(got, wanted):
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert set(a) == set(b)
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def side_by_side(hosts):
    """Puts the hosts' batches next to each other, as a sharded global array does."""
    return [
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for parts in zip(*hosts, strict=True)
    ]


def test_shapes_and_types_of_batches(source):
    batch = train(source, 1)[0]
    assert batch["inputs"].shape == (BATCH, 6, 6, 1) and batch["inputs"].dtype == np.float32
    assert batch["label"].shape == (BATCH,) and batch["label"].dtype == np.int32


def test_epochs_are_shuffled_and_complete(source):
    labels = np.concatenate([batch["label"] for batch in train(source, 2 * COUNT)])
    epochs = labels[: 2 * COUNT].reshape(2, COUNT)
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    assert not np.array_equal(*epochs)


def test_train_records_are_those_of_the_batch(source):
    for step, batch in enumerate(train(source)):
        np.testing.assert_array_equal(
            pipeline.train_records(COUNT, BATCH, seed=7, step=step), batch["label"]
        )


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_change_nothing(source, hosts):
    parts = [train(source, process_index=h, process_count=hosts) for h in range(hosts)]
    assert_equal(side_by_side(parts), train(source))


@pytest.mark.parametrize("start", [1, 4])
def test_restart_continues_with_the_next_batch(source, start):
    assert_equal(train(source, 6 - start, start_step=start), train(source)[start:])
    halves = [
        train(source, 3, start_step=start, process_index=h, process_count=2) for h in range(2)
    ]
    assert_equal(side_by_side(halves), train(source, 3, start_step=start))


def test_the_seed_decides(source):
    assert not np.array_equal(train(source, 1)[0]["label"], train(source, 1, seed=8)[0]["label"])


def test_small_sources_repeat_within_a_batch(source):
    few = Arrays(source.inputs[:3], source.labels[:3])
    labels = train(few, 1)[0]["label"]
    assert sorted(labels[:3]) == [0, 1, 2] and len(labels) == BATCH


@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_sees_every_example_once(source, hosts):
    parts = [
        list(
            pipeline.eval_batches(
                source, EVAL, batch_size=BATCH, process_index=h, process_count=hosts
            )
        )
        for h in range(hosts)
    ]
    assert {len(part) for part in parts} == {3}
    whole = side_by_side(parts)
    mask = np.concatenate([batch["mask"] for batch in whole])
    labels = np.concatenate([batch["label"] for batch in whole])
    assert mask.dtype == np.float32 and mask.sum() == COUNT and len(mask) == 24
    assert labels[mask == 1].tolist() == list(range(COUNT))
    assert all(batch["inputs"].shape == (BATCH, 6, 6, 1) for batch in whole)


def test_impossible_batches_are_refused(source):
    with pytest.raises(UserError, match=r"batch size 8.*3 host"):
        train(source, process_count=3)
    with pytest.raises(UserError, match="no examples"):
        train(Arrays(source.inputs[:0], source.labels[:0]))
