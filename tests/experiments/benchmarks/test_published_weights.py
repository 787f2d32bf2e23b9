"""The accuracy of a published network on the classes that Tiny ImageNet has."""

import numpy as np
import pytest
from picture_files import make_tiny_imagenet_files, write_tiny_imagenet_zip

from experiments.benchmarks import published_weights
from experiments.benchmarks.published_weights import (
    IMAGENET_INDICES,
    NETWORKS,
    count_right,
    read_batches,
)
from experiments.core.errors import UserError


def test_indices_are_two_hundred_places_in_order():
    assert len(IMAGENET_INDICES) == 200 and (np.diff(IMAGENET_INDICES) > 0).all()
    assert IMAGENET_INDICES[0] >= 0 and IMAGENET_INDICES[-1] < 1000


def test_pictures_are_counted_among_all_classes_and_among_those_there_are():
    logits = np.zeros((3, 1000))
    logits[0, IMAGENET_INDICES[7]] = 2  # right of all
    logits[1, IMAGENET_INDICES[9]], logits[1, 0] = 1, 2  # only of 200: class 0 is none of them
    logits[2, IMAGENET_INDICES[:5]] = 1  # five others are better
    number, right = count_right(logits, np.array([7, 9, 100]))
    assert number == 3 and right.tolist() == [2, 2, 1]
    logits[2, IMAGENET_INDICES[0]] = -1  # four others
    assert count_right(logits, np.array([7, 9, 100]))[1].tolist() == [2, 3, 1]


@pytest.fixture
def tiny_zip(tmp_path, monkeypatch):
    monkeypatch.setattr(published_weights, "IMAGENET_INDICES", np.arange(3))
    return write_tiny_imagenet_zip(tmp_path / "tiny.zip", make_tiny_imagenet_files())


def test_pictures_are_resized_and_scaled_as_the_network_wants_them(tiny_zip):
    batches = list(read_batches(tiny_zip, NETWORKS["efficientnet_lite0"], 0, 4))
    assert [len(labels) for _, labels in batches] == [4, 2]
    inputs, labels = batches[0]
    assert inputs.shape == (4, 224, 224, 3)
    # Their red is 60 times the number of the class in the name, their green and blue are 0.
    red = np.array([60 * (1 + label) for label in labels])
    np.testing.assert_allclose(128 * inputs[:, 100, 100, 0] + 127, red, atol=3)
    np.testing.assert_allclose(inputs[..., 2], -127 / 128, atol=0.03)
    (_, labels), *others = read_batches(tiny_zip, NETWORKS["efficientnet_lite0"], 1, 4)
    assert sorted(labels) == [0, 1, 2] and not others


def test_other_files_are_refused(tmp_path):
    source = write_tiny_imagenet_zip(tmp_path / "tiny.zip", make_tiny_imagenet_files())
    with pytest.raises(UserError, match="has 3 classes"):
        next(read_batches(source, NETWORKS["efficientnet_lite0"], 0, 4))
    with pytest.raises(UserError, match="write one of efficientnet_lite0"):
        published_weights.main("weights.pth", str(source), network="resnet18")
    with pytest.raises(UserError, match="zip archive that torch"):
        published_weights.main(str(source), str(source))
