import pickle

import numpy as np
import pytest

from experiments.core.errors import UserError
from experiments.data import transforms


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def picture(height=12, width=20, channels=3):
    values = np.random.default_rng(1).integers(0, 256, (height, width, channels))
    return values.astype(np.uint8)


@pytest.mark.parametrize("shape", [(12, 20, 3), (20, 12, 1), (8, 8, 3), (5, 4, 1)])
def test_crop_to_square_gives_squares(shape):
    assert transforms.crop_to_square(picture(*shape), 8).shape == (8, 8, shape[2])
    assert transforms.crop_to_square(picture(*shape), 0).shape == shape


def test_crop_to_square_crops_the_middle():
    wide = np.zeros((8, 16, 1), np.uint8)
    wide[:, 4:12] = 200
    assert (transforms.crop_to_square(wide, 8) == 200).all()


def test_normalise_is_float32_and_exact():
    out = transforms.normalise(np.full((2, 2, 3), 255, np.uint8), (0.5, 0.25, 0.0), 0.5)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[0, 0], [1.0, 1.5, 2.0])


def test_mean_for_other_channels_is_refused():
    with pytest.raises(UserError, match=r"mean has 3 values.*1 channel"):
        transforms.normalise(picture(channels=1), (0.5, 0.5, 0.5), 1.0)


@pytest.mark.parametrize("augment", ["none", "shift", "crop_flip", "resized_crop"])
@pytest.mark.parametrize("size", [0, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_for_training(augment, size, channels):
    example = {"inputs": picture(16, 16, channels), "label": np.int64(3)}
    train = transforms.make_transform(augment, size, 0.5, 0.25, train=True)
    outs = [train(example, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    for out in outs:
        assert out["inputs"].dtype == np.float32 and out["label"].dtype == np.int32
        assert out["inputs"].shape == (size or 16, size or 16, channels)
    np.testing.assert_array_equal(outs[0]["inputs"], outs[1]["inputs"])
    assert (augment == "none") == np.array_equal(outs[0]["inputs"], outs[2]["inputs"])


def test_shift_never_mirrors(rng):
    arrow = np.zeros((8, 8, 1), np.uint8)
    arrow[3:5, 2:6] = [[[50], [100], [150], [200]]] * 2
    for _ in range(20):
        moved = transforms.random_shift(arrow, rng)
        row = moved[moved.sum((1, 2)) > 0][0, :, 0]
        assert row[row > 0].tolist() == [50, 100, 150, 200]


def test_resized_crop_of_a_very_long_picture(rng):
    for _ in range(5):
        assert transforms.random_resized_crop(picture(3, 400), 8, rng).shape == (8, 8, 3)


@pytest.mark.parametrize("length", [3, 50])
def test_series_for_training(length):
    series = np.sin(np.arange(length * 2, dtype=np.float32)).reshape(length, 2)
    train = transforms.make_transform("series", 0, 0.0, 1.0, train=True)
    outs = [train({"inputs": series, "label": 1}, np.random.default_rng(s)) for s in (0, 1)]
    for out in outs:
        assert out["inputs"].dtype == np.float32 and out["inputs"].shape == (length, 2)
    assert not np.array_equal(outs[0]["inputs"], outs[1]["inputs"])


def test_a_window_warp_keeps_the_ends(rng):
    series = np.linspace(0, 1, 40, dtype=np.float32)[:, None]
    warped = transforms.random_window_warp(series, rng)
    np.testing.assert_allclose(warped[[0, -1], 0], [0, 1], atol=1e-6)
    assert (np.diff(warped[:, 0]) > 0).all() and not np.allclose(warped, series)


def test_evaluation_leaves_series_as_they_are():
    series = np.ones((5, 1), np.float32)
    out = transforms.make_transform("series", 0, 0.5, 0.5, train=False)(
        {"inputs": series, "label": 0}
    )
    np.testing.assert_array_equal(out["inputs"], series)


def test_unknown_augmentation_is_refused(rng):
    with pytest.raises(UserError, match=r"'flip'.*crop_flip"):
        transforms.make_transform("flip", 0, 0.0, 1.0, train=True)
    for_pictures = transforms.make_transform("crop_flip", 0, 0.0, 1.0, train=True)
    with pytest.raises(UserError, match="not for series"):
        for_pictures({"inputs": np.ones((5, 1), np.float32), "label": 0}, rng)
    for_series = transforms.make_transform("series", 0, 0.0, 1.0, train=True)
    with pytest.raises(UserError, match="not for pictures"):
        for_series({"inputs": picture(), "label": 0}, rng)


def test_transforms_can_be_pickled():
    train = transforms.make_transform("shift", 8, [0.5], [0.5], train=True)
    assert pickle.loads(pickle.dumps(train)) == train
