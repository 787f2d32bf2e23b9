import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.figures.style import break_name, make_voc_palette, paint_mask, shorten

ROOT = Path(__file__).parents[3]
VOC = ROOT.parent / "shared/data/voc2012/VOCdevkit/VOC2012"


def test_names_of_sweeps_are_broken_between_settings():
    assert break_name("odconv") == "odconv"
    assert break_name("odconv,from=base,min_squeeze=16") == "odconv,from=base,\nmin_squeeze=16"
    longest = max(map(len, break_name("a,b=1," + 40 * "c").split("\n")))
    assert longest <= 22


def test_shorten():
    assert shorten("wren", 4) == "wren" and shorten("a wren", 4) == "a w…"
    assert shorten("stage1/conv", 5, keep_end=True) == "…conv"
    assert shorten("$a$") == r"\$a\$"
    assert shorten("_a\x1b\n") == "\u200b_a\\x1b\\n"  # A legend leaves out what begins with "_".


def by_bits(number):
    """The rule as the challenge's own kit states it, one bit at a time."""
    red = green = blue = 0
    for turn in range(8):
        red |= (number & 1) << (7 - turn)
        green |= ((number >> 1) & 1) << (7 - turn)
        blue |= ((number >> 2) & 1) << (7 - turn)
        number >>= 3
    return red, green, blue


def test_voc_palette():
    palette = make_voc_palette()
    assert [tuple(colour) for colour in palette.tolist()] == [by_bits(n) for n in range(256)]
    known = {0: (0, 0, 0), 1: (128, 0, 0), 15: (192, 128, 128), 255: (224, 224, 192)}
    assert {number: tuple(palette[number].tolist()) for number in known} == known


def test_paint_mask():
    picture = paint_mask(np.array([[0, 255, 1], [2, 3, 4]], np.uint8))
    assert picture.shape == (2, 3, 3) and picture.dtype == np.uint8
    assert tuple(picture[1, 0]) == by_bits(2)
    for mask in ([[0.5]], [[-1]], [[256]]):
        with pytest.raises(ValueError):
            paint_mask(np.array(mask))


def test_masks_of_the_challenge_have_these_colours():
    masks = sorted((VOC / "SegmentationClass").glob("*.png"))
    if not masks:
        pytest.skip(f"the real data is not here ({VOC})")
    with Image.open(masks[0]) as image:
        np.testing.assert_array_equal(paint_mask(np.asarray(image)), image.convert("RGB"))


@pytest.mark.process
def test_figures_leave_pyplot_alone():
    code = "import sys, experiments.report; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
