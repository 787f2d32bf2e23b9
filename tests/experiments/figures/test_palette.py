import pathlib

import numpy as np
import pytest
from PIL import Image

from experiments.figures import palette

VOC = pathlib.Path(__file__).parents[4] / "shared/data/voc2012/VOCdevkit/VOC2012"


def by_bits(number):
    """The rule as the challenge's own kit states it, one bit at a time."""
    red = green = blue = 0
    for turn in range(8):
        red |= (number & 1) << (7 - turn)
        green |= ((number >> 1) & 1) << (7 - turn)
        blue |= ((number >> 2) & 1) << (7 - turn)
        number >>= 3
    return red, green, blue


def test_every_colour_follows_from_the_bits_of_its_index():
    colours = palette.colour_map()
    assert colours.dtype == np.uint8
    assert [tuple(colour) for colour in colours.tolist()] == [by_bits(n) for n in range(256)]
    assert len(np.unique(colours, axis=0)) == 256


@pytest.mark.parametrize(
    ("index", "colour"),
    [
        (0, (0, 0, 0)),  # background
        (1, (128, 0, 0)),  # aeroplane
        (15, (192, 128, 128)),  # person
        (20, (0, 64, 128)),  # tv monitor
        (255, (224, 224, 192)),  # void
    ],
)
def test_the_colours_that_everybody_knows(index, colour):
    assert tuple(palette.colours(np.array([[index]]))[0, 0]) == colour


def test_a_mask_becomes_a_picture():
    mask = np.array([[0, 255, 1], [2, 3, 4]], np.uint8)
    picture = palette.colours(mask)
    assert picture.shape == (2, 3, 3) and picture.dtype == np.uint8
    assert tuple(picture[1, 0]) == by_bits(2)
    assert palette.colours(np.stack([mask, mask]).astype(np.int32)).shape == (2, 2, 3, 3)


@pytest.mark.parametrize("mask", [[[0.5]], [[-1]], [[256]]])
def test_what_has_no_colour_is_refused(mask):
    with pytest.raises(ValueError):
        palette.colours(np.array(mask))


def test_the_masks_of_the_challenge_carry_the_same_colours():
    masks = sorted((VOC / "SegmentationClass").glob("*.png"))
    if not masks:
        pytest.skip(f"the real data is not here ({VOC})")
    with Image.open(masks[0]) as image:
        shown = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(palette.colours(np.asarray(image)), shown)
