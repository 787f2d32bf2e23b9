"""Losses and gradients of torchvision's Mask R-CNN, and the whole published network."""

import pytest
from torchvision_detectors import (
    INFERENCE,
    TRAINING,
    check_numbers,
    make_network,
    make_picture,
    run_inference,
    run_training,
)

pytestmark = pytest.mark.long


@pytest.mark.parametrize("depth", [18, 50])
def test_losses_and_gradients_are_those_of_torchvision(depth):
    found = run_training(*make_network(depth), make_picture())
    check_numbers(found, TRAINING[depth])


def test_the_published_network_is_that_of_torchvision():
    found = run_inference(*make_network(50), make_picture())
    check_numbers(found, INFERENCE[50])
    assert found["labels"][0] == 54 and found["labels"][20] == 30
