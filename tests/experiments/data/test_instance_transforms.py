import itertools
import pickle

import numpy as np
import pytest
from PIL import Image

from experiments.core.errors import UserError
from experiments.data import instance_transforms, mask_transforms, pipeline
from experiments.data.instances import VOID

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CLASSES = np.array([4, 9, 2, 4, 7, 1], np.int32)


def make_example(height, width):
    """Six objects on a background and a void border; the colour of an object is its number in bits."""
    ids = np.zeros((height, width), np.uint8)
    for number in range(6):
        row, column = divmod(number, 3)
        top, left = (row * height) // 2, (column * width) // 3
        ids[top + 2 : top + height // 2 - 2, left + 2 : left + width // 3 - 2] = number + 1
    picture = np.stack([(ids >> bit & 1) * 200 for bit in range(3)], axis=-1).astype(np.uint8)
    ids[: height // 8, : width // 6] = VOID
    return {"inputs": picture, "label": ids, "classes": CLASSES}


def read_colours(inputs):
    """The number that each pixel's colour means, and whether the colour is clear."""
    values = inputs / max(inputs.max(), 1e-9)  # the light differs
    return (values > 0.5) @ np.array([1, 2, 4]), (np.abs(values - 0.5) > 0.45).all(axis=-1)


def make_transform(augment="none", size=96, train=True, max_objects=8, mean=0.0, std=1.0):
    return instance_transforms.make_transform(
        augment, size, mean, std, max_objects=max_objects, train=train
    )


# ---------------------------------------------------------------- for evaluation


@pytest.mark.parametrize(
    ("shape", "shown"), [((60, 100), (38, 64)), ((30, 24), (64, 51)), ((64, 64), (64, 64))]
)
def test_the_longer_side_becomes_the_square(shape, shown):
    example = make_example(*shape)
    out = make_transform(size=64, train=False, mean=MEAN, std=STD)(example)
    assert {key: (value.shape, value.dtype.name) for key, value in out.items()} == {
        "inputs": ((64, 64, 3), "float32"),
        "ids": ((64, 64), "uint8"),
        "classes": ((8,), "int32"),
        "sizes": ((2,), "int32"),
        "geometry": ((4,), "int32"),
    }
    height, width = shown
    assert out["sizes"].tolist() == [*shown] and out["geometry"].tolist() == [*shape, *shown]
    picture, ids = (
        np.asarray(Image.fromarray(example[name]).resize((width, height), kind))
        for name, kind in (
            ("inputs", Image.Resampling.BILINEAR),
            ("label", Image.Resampling.NEAREST),
        )
    )
    expected = (picture / 255 - np.array(MEAN)) / STD
    np.testing.assert_allclose(out["inputs"][:height, :width], expected, atol=1e-5)
    np.testing.assert_array_equal(out["ids"][:height, :width], ids)
    assert out["classes"].tolist() == [*CLASSES, 0, 0]
    outside = np.ones((64, 64), bool)
    outside[:height, :width] = False
    assert (out["inputs"][outside] == 0).all() and (out["ids"][outside] == VOID).all()


def test_maps_come_back_to_their_size():
    example = make_example(48, 60)
    out = make_transform(size=120, train=False)(example)  # doubled: nothing is lost
    restored = mask_transforms.restore_size(out["ids"], out["geometry"])
    np.testing.assert_array_equal(restored, example["label"])


def test_small_and_surplus_objects_become_void():
    ids = np.zeros((64, 64), np.uint8)
    for number, side in enumerate((10, 3, 4, 12, 11), 1):  # 9 pixels are too few, 16 are not
        ids[:side, 12 * number - 10 : 12 * number - 10 + side] = number
    ids[40, 40] = VOID
    example = {"inputs": np.zeros((64, 64, 3), np.uint8), "label": ids, "classes": CLASSES[:5]}
    out = make_transform(size=64, train=False)(example)
    assert out["classes"].tolist() == [4, 2, 4, 7, 0, 0, 0, 0]
    for new, old in ((1, 1), (2, 3), (3, 4), (4, 5)):
        np.testing.assert_array_equal(out["ids"] == new, ids == old)
    assert (out["ids"] == VOID).sum() == 9 + 1
    out = make_transform(size=64, train=False, max_objects=2)(example)
    assert out["classes"].tolist() == [4, 7]
    np.testing.assert_array_equal(out["ids"] == 1, ids == 4)
    assert (out["ids"] == VOID).sum() == 1 + 9 + 16 + 100


def test_pictures_without_objects_are_legal():
    blank = {
        "inputs": np.zeros((20, 30, 3), np.uint8),
        "label": np.zeros((20, 30), np.uint8),
        "classes": np.zeros(0, np.int32),
    }
    out = make_transform(size=32, train=False)(blank)
    assert not out["classes"].any() and set(np.unique(out["ids"])) == {0, VOID}
    out = make_transform("large_scale_jitter", 32)(blank, np.random.default_rng(0))
    assert not out["classes"].any()


# ---------------------------------------------------------------- for training


@pytest.mark.parametrize("augment", ["scale_jitter", "large_scale_jitter"])
@pytest.mark.parametrize("shape", [(90, 150), (160, 70)])
def test_objects_move_with_their_picture(augment, shape):
    example, transform = make_example(*shape), make_transform(augment)
    checked = 0
    for seed in range(12):
        out = transform(example, np.random.default_rng(seed))
        height, width = out["sizes"]
        inside = out["ids"][:height, :width]
        assert (out["ids"][height:] == VOID).all() and (out["ids"][:, width:] == VOID).all()
        assert (out["inputs"][height:] == 0).all() and (out["inputs"][:, width:] == 0).all()
        kept = int((out["classes"] > 0).sum())
        assert not out["classes"][kept:].any()
        seen, clear = read_colours(out["inputs"][:height, :width])
        numbers = []
        for number in range(1, kept + 1):
            here = (inside == number) & clear
            assert (inside == number).sum() >= instance_transforms.MIN_PIXELS
            values, counts = np.unique(seen[here], return_counts=True)
            # All but the pixels at its edge have the colour of one object, and its class.
            assert len(values) and counts.max() >= 0.9 * counts.sum()
            numbers.append(int(values[counts.argmax()]))
            assert out["classes"][number - 1] == CLASSES[numbers[-1] - 1]
            checked += 1
        assert numbers == sorted(set(numbers))
        # Nothing that is clearly an object's is background, and the other way round.
        assert (inside[clear & (seen > 0)] == 0).mean() < 0.1
        assert np.isin(seen[clear & (inside == 0)], 0).mean() > 0.95
    assert checked > 24


def make_map(height, width):
    """A picture that says where each pixel lies."""
    row, column = np.mgrid[:height, :width]
    values = [50 + row * 200 / height, 50 + column * 200 / width, np.full(row.shape, 255)]
    return np.round(np.stack(values, axis=-1)).astype(np.uint8)


@pytest.mark.parametrize("augment", ["scale_jitter", "large_scale_jitter"])
def test_scales_and_places_are_drawn(augment, monkeypatch):
    monkeypatch.setattr(mask_transforms, "random_brightness", lambda picture, rng: picture)
    low, high = instance_transforms.SCALES[augment]
    height, width, size = 120, 160, 96
    example = {"inputs": make_map(height, width), "label": np.zeros((height, width), np.uint8)}
    example["classes"] = np.zeros(0, np.int32)
    transform, scales, lefts, mirrored = make_transform(augment, size), [], [], 0
    for seed in range(60):
        out = transform(example, np.random.default_rng(seed))
        shown = out["sizes"]
        part = out["inputs"][: shown[0], : shown[1]] * 255
        column = (part[shown[0] // 2, :, 1] - 50) * width / 200
        step = np.abs(np.diff(column)).mean() if shown[1] > 1 else width / shown[1]
        mirrored += bool(column[-1] < column[0])
        scales.append((width / size) / step)
        if shown[1] == size:
            lefts.append(min(column[0], column[-1]))
        else:  # all of it is there
            assert abs(abs(column[-1] - column[0]) - width) < 2 * step + 2
    assert low * 0.85 < min(scales) < low + 0.25 * (high - low)
    assert high * 1.1 > max(scales) > high - 0.25 * (high - low)
    assert 15 < mirrored < 45 and max(lefts) - min(lefts) > 10


def test_without_augmentation_training_is_evaluation(rng):
    example = make_example(60, 100)
    evaluated = make_transform(train=False)(example)
    trained = make_transform(train=True)(example, rng)
    assert evaluated.pop("geometry").tolist() == [60, 100, 58, 96]
    for name, value in evaluated.items():
        np.testing.assert_array_equal(trained[name], value)


def test_the_seed_decides():
    example, transform = make_example(60, 100), make_transform("large_scale_jitter")
    first, same, other = (transform(example, np.random.default_rng(s)) for s in (3, 3, 4))
    for name, value in first.items():
        np.testing.assert_array_equal(same[name], value)
    assert (first["inputs"] != other["inputs"]).any()


def test_batches_have_one_shape():
    examples = [make_example(*shape) for shape in ((60, 100), (100, 60), (40, 40))]
    batches = pipeline.train_batches(
        examples, pickle.loads(pickle.dumps(make_transform("scale_jitter"))), batch_size=2, seed=0
    )
    batch = next(batches)
    batches.close()
    assert {key: value.shape for key, value in batch.items()} == {
        "inputs": (2, 96, 96, 3),
        "ids": (2, 96, 96),
        "classes": (2, 8),
        "sizes": (2, 2),
    }
    batches = pipeline.eval_batches(examples, make_transform(train=False), batch_size=2)
    masks = [
        (batch["mask"].tolist(), batch["geometry"].tolist())
        for batch in itertools.islice(batches, 2)
    ]
    assert masks[1][0] == [1, 0] and masks[0][1][0] == [60, 100, 58, 96]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"augment": "affine_crop"}, "no augmentation 'affine_crop' for pictures with objects"),
        ({"size": 0}, "image_size=0: a detector needs one size"),
        ({"max_objects": 255}, "choose 1 to 254"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        make_transform(**fields)
