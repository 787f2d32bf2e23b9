"""A ResNet-18 with torchvision's Mask R-CNN has its numbers, from the stages to the pasted masks."""

import jax
import numpy as np
import pytest
from torchvision_detectors import (
    INFERENCE,
    check_numbers,
    make_network,
    make_picture,
    run_inference,
)

pytestmark = pytest.mark.matrix


def test_detections_are_those_of_torchvision():
    net, variables = make_network(18)
    picture = make_picture()
    found = run_inference(net, variables, picture)
    check_numbers(found, INFERENCE[18])
    assert found["labels"][0] == 5 and found["labels"][-1] == 9

    # Filled up to 96 x 128: boxes are clipped to the picture.
    smaller = np.zeros_like(picture)
    smaller[:, :90, :120] = picture[:, :90, :120]
    scores = jax.jit(net.apply)(variables, smaller, sizes=np.array([[90, 120]])).scores
    np.testing.assert_allclose(scores[0, [0, 2]], [0.64310538, 0.47822837], rtol=1e-3)
