"""Anchors are torchvision's."""

import numpy as np
import pytest

from dyn.ops import make_anchors

SIZES = [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]


def test_anchors_are_those_of_torchvision():
    levels = make_anchors((96, 128), SIZES, (32, 64, 128, 256, 512))
    anchors = np.concatenate(levels)
    assert [len(level) for level in levels] == [3 * h * w for h, w in SIZES]
    assert anchors.sum(0).tolist() == [112388, 63332, 262780, 213724]
    assert anchors[:3].tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    assert anchors[96].tolist() == [-23, -7, 23, 15]
    assert anchors[2304].tolist() == [-45, -23, 45, 23]
    assert anchors[-1].tolist() == [-117, -314, 245, 410]


def test_halves_are_rounded_to_whole_pixels():
    for scale, (long, short) in {
        64: (45, 23),
        128: (91, 45),
        256: (181, 91),
        512: (362, 181),
    }.items():
        (cell,) = make_anchors((1, 1), [(1, 1)], (scale,))
        assert cell[0].tolist() == [-long, -short, long, short]


def test_every_level_needs_a_scale():
    with pytest.raises(ValueError, match="5 levels"):
        make_anchors((96, 128), SIZES, (32, 64))
