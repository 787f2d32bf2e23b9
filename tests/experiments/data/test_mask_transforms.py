import pickle

import numpy as np
import pytest
from PIL import Image

from experiments.data import mask_transforms
from experiments.tasks.segmentation_metrics import compute_scores, count_pixels

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
FILL = (102, 128, 153)


def picture(height=12, width=20):
    values = np.random.default_rng(1).integers(0, 256, (height, width, 3))
    return values.astype(np.uint8)


def blobs(height, width):
    """A mask with regions that are large beside a pixel: classes 0 to 3."""
    row, column = np.mgrid[:height, :width]
    wave = np.sin(row / 17) + np.cos(column / 23)
    return np.digitize(wave, [-0.7, 0, 0.7]).astype(np.uint8)


def map_picture(height, width):
    """A picture that says where each of its pixels lies: red the row, green the column."""
    row, column = np.mgrid[:height, :width]
    values = [50 + row * 200 / height, 50 + column * 200 / width, np.full(row.shape, 255)]
    return np.round(np.stack(values, axis=-1)).astype(np.uint8)


def example(height, width):
    return {"inputs": picture(height, width), "label": blobs(height, width)}


# ---------------------------------------------------------------- for evaluation


@pytest.mark.parametrize("shape", [(12, 20), (20, 20), (7, 5)])
def test_small_pictures_are_padded(shape):
    image, mask = picture(*shape), blobs(*shape)
    padded, geometry = mask_transforms.pad_to_square(image, 20, FILL)
    label, same = mask_transforms.pad_to_square(mask, 20, 255)
    assert geometry.tolist() == same.tolist() == [*shape, *shape] and geometry.dtype == np.int32
    assert padded.shape == (20, 20, 3) and padded.dtype == label.dtype == np.uint8
    np.testing.assert_array_equal(padded[: shape[0], : shape[1]], image)
    outside = np.ones((20, 20), bool)
    outside[: shape[0], : shape[1]] = False
    assert (padded[outside] == FILL).all() and (label[outside] == 255).all()
    np.testing.assert_array_equal(mask_transforms.restore_size(label, geometry), mask)


def test_size_0_changes_nothing():
    image, geometry = mask_transforms.pad_to_square(picture(7, 5), 0, FILL)
    np.testing.assert_array_equal(image, picture(7, 5))
    assert geometry.tolist() == [7, 5, 7, 5]


@pytest.mark.parametrize(
    ("shape", "scaled"), [((60, 100), (12, 20)), ((100, 30), (20, 6)), ((500, 3), (20, 1))]
)
def test_large_pictures_are_scaled_down(shape, scaled):
    image, mask = picture(*shape), blobs(*shape)
    padded, geometry = mask_transforms.pad_to_square(image, 20, FILL)
    label, _ = mask_transforms.pad_to_square(mask, 20, 255)
    assert geometry.tolist() == [*shape, *scaled]
    tall, wide = scaled
    size, nearest = (wide, tall), Image.Resampling.NEAREST
    expected = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(padded[:tall, :wide], expected)
    expected = np.asarray(Image.fromarray(mask).resize(size, nearest))
    np.testing.assert_array_equal(label[:tall, :wide], expected)
    assert (padded[tall:] == FILL).all() and (label[:, wide:] == 255).all()
    back = mask_transforms.restore_size(label, geometry)
    expected = np.asarray(Image.fromarray(label[:tall, :wide]).resize(shape[::-1], nearest))
    np.testing.assert_array_equal(back, expected)


def test_logits_are_interpolated(rng):
    logits = rng.normal(size=(8, 8, 3)).astype(np.float32)
    geometry = np.array([15, 11, 8, 6], np.int32)
    expected = np.zeros((15, 11), int)
    for row in range(15):
        for column in range(11):
            y = np.clip((row + 0.5) * 8 / 15 - 0.5, 0, 7)
            x = np.clip((column + 0.5) * 6 / 11 - 0.5, 0, 5)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, 7), min(left + 1, 5)
            y, x = y - top, x - left
            upper = logits[top, left] * (1 - x) + logits[top, right] * x
            lower = logits[bottom, left] * (1 - x) + logits[bottom, right] * x
            expected[row, column] = np.argmax(upper * (1 - y) + lower * y)
    found = mask_transforms.restore_size(logits, geometry)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)


def test_logits_of_an_unscaled_picture_are_only_cropped(rng):
    logits = rng.normal(size=(16, 16, 4)).astype(np.float32)
    found = mask_transforms.restore_size(logits, np.array([10, 13, 10, 13]))
    np.testing.assert_array_equal(found, logits.argmax(axis=-1)[:10, :13])


def test_evaluation_examples_have_one_shape():
    prepare = mask_transforms.make_transform("affine_crop", 16, MEAN, STD, train=False)
    for shape in ((12, 10), (40, 30), (16, 16)):
        out = prepare(example(*shape))
        assert {key: (value.shape, value.dtype.name) for key, value in out.items()} == {
            "inputs": ((16, 16, 3), "float32"),
            "label": ((16, 16), "int32"),
            "geometry": ((4,), "int32"),
        }
    out = prepare(example(12, 10))
    np.testing.assert_allclose(
        out["inputs"][:12, :10], (picture(12, 10) / 255 - np.array(MEAN)) / STD, atol=1e-6
    )
    # The mean as a colour is rounded, so it is nearly zero.
    assert np.abs(out["inputs"][12:]).max() < 0.5 / 255 / min(STD) + 1e-6


# ---------------------------------------------------------------- for training


def fitted_map(shape, size, seed):
    """Augments a map, and finds the affine map from the result to the picture by least squares."""
    height, width = shape
    rng = np.random.default_rng(seed)
    warped, label = mask_transforms.random_affine_crop(
        map_picture(*shape), np.zeros(shape, np.uint8), size, FILL, rng
    )
    inside = label == 0
    points = np.argwhere(inside) + 0.5
    found = warped[inside].astype(float)
    row, column = (found[:, 0] - 50) * height / 200, (found[:, 1] - 50) * width / 200
    design = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    solution, *_ = np.linalg.lstsq(design, np.stack([row, column], axis=1), rcond=None)
    return warped, label, solution[:2].T


@pytest.mark.parametrize(("shape", "size"), [((80, 60), 96), ((200, 150), 96), ((80, 60), 40)])
def test_augmentation_stays_within_its_bounds(shape, size):
    shrink = max(1, max(shape) / size)
    angles, zooms, mirrored = [], [], []
    for seed in range(40):
        _, label, matrix = fitted_map(shape, size, seed)
        assert label.shape == (size, size)
        mirrored.append(np.linalg.det(matrix) < 0)
        zooms.append(shrink / np.sqrt(abs(np.linalg.det(matrix))))
        angles.append(np.rad2deg(np.arctan2(-matrix[0, 1], matrix[0, 0])))
        # A turn and one zoom for both directions: rows at right angles, of equal length.
        first, second = matrix / shrink
        assert abs(first @ second) < 0.05 and abs(first @ first - second @ second) < 0.15
    assert 10 < max(angles) < 15.5 and -15.5 < min(angles) < -10
    assert 0.78 < min(zooms) < 0.87 and 1.13 < max(zooms) < 1.22
    assert 10 < sum(mirrored) < 30


@pytest.mark.parametrize(("shape", "size"), [((80, 60), 96), ((160, 120), 64), ((70, 90), 0)])
def test_picture_and_mask_share_the_geometry(shape, size):
    image, label = map_picture(*shape), np.zeros(shape, np.uint8)
    label[shape[0] // 2 :] += 1
    label[:, shape[1] // 2 :] += 2
    for seed in range(10):
        rng = np.random.default_rng(seed)
        warped, mask = mask_transforms.random_affine_crop(image, label, size, FILL, rng)
        assert warped.shape[:2] == mask.shape == ((size, size) if size else shape)
        assert set(np.unique(mask)) <= {0, 1, 2, 3, 255}
        # The mask lies in the same quarter as the picture, except just at an edge.
        down, right = warped[..., 0] / 1.0 - 150, warped[..., 1] / 1.0 - 150
        clear = (mask != 255) & (abs(down) > 6) & (abs(right) > 6)
        assert clear.sum() > 500
        quarter = (down > 0) + 2 * (right > 0)
        np.testing.assert_array_equal(mask[clear], quarter[clear])
        # Outside of the picture is outside of the mask, to the pixel: blue is 255 inside.
        np.testing.assert_array_equal(warped[..., 2] == 255, mask != 255)
        assert (warped[mask == 255] == FILL).all() if (mask == 255).any() else True


def test_ignored_pixels_stay_ignored():
    label = np.full((40, 40), 255, np.uint8)
    label[10:30, 10:30] = 2
    rng = np.random.default_rng(0)
    _, mask = mask_transforms.random_affine_crop(picture(40, 40), label, 40, FILL, rng)
    assert set(np.unique(mask)) == {2, 255}


def test_crops_come_from_everywhere():
    """The cut of a zoomed picture and the place of a small one are random."""
    places = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        _, mask = mask_transforms.random_affine_crop(
            picture(20, 20), np.zeros((20, 20), np.uint8), 60, FILL, rng
        )
        places.append(np.argwhere(mask == 0).mean(axis=0))
        assert (mask == 0).sum() > 0.6 * 20 * 20  # Only corners may get lost, by the turn.
    assert (np.min(places, axis=0) < 15).all() and (np.max(places, axis=0) > 45).all()


def test_brightness_range():
    grey = np.full((2, 2, 3), 100, np.uint8)
    found = [
        mask_transforms.random_brightness(grey, np.random.default_rng(seed))[0, 0, 0]
        for seed in range(100)
    ]
    assert 80 <= min(found) < 84 and 116 < max(found) <= 120
    white = np.full((2, 2, 3), 255, np.uint8)
    for seed in range(20):
        out = mask_transforms.random_brightness(white, np.random.default_rng(seed))
        assert out.min() >= 204 and out.dtype == np.uint8


@pytest.mark.parametrize("augment", mask_transforms.AUGMENTATIONS)
@pytest.mark.parametrize("size", [0, 24])
def test_examples_for_training(augment, size):
    train = mask_transforms.make_transform(augment, size, MEAN, STD, train=True)
    outs = [train(example(30, 40), np.random.default_rng(seed)) for seed in (0, 0, 1)]
    for out in outs:
        assert set(out) == {"inputs", "label"}
        assert out["inputs"].dtype == np.float32 and out["label"].dtype == np.int32
        assert out["label"].shape == ((size, size) if size else (30, 40))
        assert out["inputs"].shape == (*out["label"].shape, 3)
    np.testing.assert_array_equal(outs[0]["inputs"], outs[1]["inputs"])
    np.testing.assert_array_equal(outs[0]["label"], outs[1]["label"])
    assert (augment == "none") == np.array_equal(outs[0]["inputs"], outs[2]["inputs"])


def test_one_mean_for_all_channels():
    train = mask_transforms.make_transform("affine_crop", 24, 0.5, (0.25,), train=True)
    out = train(example(30, 40), np.random.default_rng(0))
    np.testing.assert_allclose(out["inputs"][out["label"] == 255], 0, atol=0.01)


def test_transforms_can_be_pickled():
    train = mask_transforms.make_transform("affine_crop", 8, [0.5], np.array([0.5]), train=True)
    assert pickle.loads(pickle.dumps(train)) == train


@pytest.mark.parametrize("shape", [(50, 40), (90, 140)])
def test_restored_truth_equals_the_mask(shape):
    mask = blobs(*shape)
    mask[3, 4:9] = 255
    label, geometry = mask_transforms.pad_to_square(mask, 64, 255)
    logits = np.eye(4, dtype=np.float32)[np.where(label == 255, 0, label)]
    for prediction in (label, logits):
        restored = mask_transforms.restore_size(prediction, geometry)
        assert restored.shape == mask.shape
        if max(shape) <= 64:
            assert compute_scores(count_pixels(mask, restored, 4))["miou"] == 1.0
        else:  # borders are as coarse as the picture that the network saw
            restored = np.where(restored == 255, 0, restored)
            assert 0.85 < compute_scores(count_pixels(mask, restored, 4))["miou"] < 1.0
