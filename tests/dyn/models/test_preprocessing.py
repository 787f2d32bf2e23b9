"""Pictures as a network's inputs: the numbers of Pillow, sizes, and mistakes."""

import numpy as np
import pytest
from PIL import Image

from dyn.models import Preprocessing
from dyn.models.preprocessing import resize_picture

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@pytest.mark.parametrize("interpolation", RESAMPLING)
@pytest.mark.parametrize(
    ("old", "new"), [((40, 31), (40, 13)), ((40, 31), (77, 31)), ((9, 9), (4, 4)), ((1, 1), (3, 3))]
)
def test_resampling_is_that_of_pillow(interpolation, old, new, rng):
    for picture in (
        rng.integers(0, 256, (*old, 3), np.uint8),
        rng.choice(np.array([0, 255], np.uint8), (*old, 3)),
    ):
        image = Image.fromarray(picture).resize(new[::-1], RESAMPLING[interpolation])
        ours = resize_picture(picture, *new, interpolation)
        np.testing.assert_array_equal(ours, np.asarray(image))


def test_the_middle_of_the_resized_picture_is_normalised(rng):
    pictures = [rng.integers(0, 256, shape, np.uint8) for shape in ((20, 30, 1), (24, 12, 1))]
    prepare = Preprocessing(0.5, (0.25,), size=6, resize=8)
    inputs = prepare(pictures)
    assert inputs.shape == (2, 6, 6, 1) and inputs.dtype == np.float32
    image = Image.fromarray(pictures[0][..., 0]).resize((12, 8), RESAMPLING["bilinear"])
    middle = np.asarray(image)[1:7, 3:9]
    # Pillow may resample the columns first, which can change a level.
    np.testing.assert_allclose(
        inputs[0, ..., 0], (middle / 255 - 0.5) / 0.25, atol=1.01 / 255 / 0.25
    )
    whole = Preprocessing((0.0,), (1.0,), size=None)(pictures[:1])
    np.testing.assert_array_equal(whole[0], pictures[0].astype(np.float32) / np.float32(255))


def prepare_as_torchvision(picture, resize, size, interpolation):
    """`Resize(resize)` and `CenterCrop(size)`, as torchvision has them for Pillow's pictures."""
    height, width = picture.shape[:2]
    short, long = sorted((height, width))
    longer = int(resize * long / short)
    shape = (resize, longer) if width <= height else (longer, resize)
    resized = np.asarray(Image.fromarray(picture).resize(shape, RESAMPLING[interpolation]))
    top, left = (round((n - size) / 2) for n in resized.shape[:2])
    return resized[top : top + size, left : left + size]


@pytest.mark.parametrize("turned", [False, True], ids=["as given", "turned"])
@pytest.mark.parametrize(
    "shape", [(427, 640), (500, 334), (500, 357), (500, 332), (375, 500), (256, 383), (300, 300)]
)
def test_resizing_before_the_crop_is_that_of_torchvision(shape, turned, rng):
    picture = rng.integers(0, 256, (*(shape[::-1] if turned else shape), 3), np.uint8)
    for resize, size, interpolation in ((256, 224, "bilinear"), (255, 240, "bicubic")):
        prepare = Preprocessing((0.0,), (1.0,), size, resize, interpolation)
        expected = prepare_as_torchvision(picture, resize, size, interpolation)
        # Pillow may resample the columns first, which changes levels, but one pixel more changes dozens.
        difference = np.abs(prepare([picture])[0] * 255 - expected)
        assert difference.max() < (1.01 if interpolation == "bilinear" else 25)
        assert difference.mean() < 0.5


def test_without_a_size_before_the_crop_halves_are_rounded_as_in_runs(rng):
    """The longer side is rounded, not cut off, and the crop of an odd rest begins before its middle."""
    picture = rng.integers(0, 256, (357, 500, 3), np.uint8)
    image = Image.fromarray(picture).resize((314, 224), RESAMPLING["bilinear"])
    inputs = Preprocessing((0.0,), (1.0,))([picture])[0] * 255
    assert np.abs(inputs - np.asarray(image)[:, 45 : 45 + 224]).max() < 1.01


@pytest.mark.parametrize("resize", [None, 70])
def test_a_thin_picture_is_cut_before_it_grows(resize):
    prepare = Preprocessing((0.0,), (1.0,), size=64, resize=resize)
    for shape in ((1, 50_000), (50_000, 1)):
        assert prepare(np.ones((1, *shape, 3), np.uint8)).shape == (1, 64, 64, 3)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (np.zeros((8, 8, 3), np.uint8), "uint8 .H, W, C.; got uint8 .8, 3."),
        (np.zeros((1, 8, 8, 3), np.float32), "got float32"),
        (np.zeros((1, 8, 8, 1), np.uint8), "mean=.* is for 3 channels"),
        ([], "no pictures"),
    ],
)
def test_other_pictures_are_refused(pictures, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing()(pictures)
    shapes = [np.zeros((8, n, 3), np.uint8) for n in (8, 9)]
    with pytest.raises(ValueError, match="one by one"):
        Preprocessing(size=None)(shapes)


@pytest.mark.parametrize(
    "fields",
    [{"std": (0.0,)}, {"mean": ()}, {"size": 0}, {"size": 8, "resize": 7}, {"interpolation": "x"}],
)
def test_invalid_values_are_refused(fields):
    with pytest.raises(ValueError, match=next(reversed(fields))):
        Preprocessing(**fields)
