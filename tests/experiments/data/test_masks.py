import re

import numpy as np
import pytest
from picture_files import encode
from PIL import Image

from experiments.data import masks


def palette_picture(indices):
    image = Image.fromarray(np.asarray(indices, np.uint8), "P")
    image.putpalette(range(256), "RGB")
    return image


@pytest.fixture
def indices(rng):
    return rng.choice([0, 1, 7, 255], (5, 6)).astype(np.uint8)


def test_masks_give_their_indices(indices):
    wide = Image.fromarray(indices.astype(np.uint16))
    for image in (palette_picture(indices), Image.fromarray(indices), wide):
        found = masks.decode_mask(encode(image))
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, indices)
    transparent = encode(palette_picture(indices), transparency=0)
    np.testing.assert_array_equal(masks.decode_mask(transparent), indices)
    two = Image.fromarray(indices > 0)
    np.testing.assert_array_equal(masks.decode_mask(encode(two)), indices > 0)


def test_masks_without_indices_are_refused(indices):
    for mode in ("RGB", "RGBA", "LA"):
        with pytest.raises(ValueError, match=f"{mode} colours; a mask needs"):
            masks.decode_mask(encode(Image.fromarray(indices).convert(mode)))
    with pytest.raises(ValueError, match="holds the number 300"):
        masks.decode_mask(encode(Image.fromarray(np.full((2, 2), 300, np.uint16))))


def test_usable_pairs_give_size_and_indices(tmp_path, indices):
    Image.new("RGB", (6, 5)).save(tmp_path / "a.jpg")
    palette_picture(indices).save(tmp_path / "a.png")
    (size, found), reason = masks.check_pair(tmp_path / "a.jpg", tmp_path / "a.png")
    assert (size, found.tolist(), reason) == ((5, 6), [0, 1, 7], "")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda at, i: (at / "a.jpg").write_bytes(b"no picture"), "not a picture"),
        (lambda at, i: (at / "a.png").write_bytes(b"no picture"), "its mask cannot be read"),
        (lambda at, i: (at / "a.png").unlink(), "its mask cannot be read.*No such file"),
        (lambda at, i: Image.new("RGB", (6, 5)).save(at / "a.png"), "RGB colours"),
        (lambda at, i: palette_picture(i.T).save(at / "a.png"), "6 by 5, but its mask 5 by 6"),
        (lambda at, i: Image.new("L", (6, 5), 255).save(at / "a.png"), "no class for any pixel"),
        (lambda at, i: Image.new("L", (6, 5), 21).save(at / "a.png"), "holds 21, .* 0 to 20"),
    ],
)
def test_unusable_pairs_have_a_reason(tmp_path, indices, damage, reason):
    Image.new("RGB", (6, 5)).save(tmp_path / "a.jpg")
    palette_picture(indices).save(tmp_path / "a.png")
    damage(tmp_path, indices)
    pair = (tmp_path / "a.jpg", tmp_path / "a.png")
    checked = masks.check_pairs(tmp_path, [pair], 21)
    assert len(checked.pairs) == 0 and checked.present.shape == (0, 255)
    ((file, why),) = checked.skipped
    assert file == "a.jpg"
    assert re.search(reason, why), why


def test_pictures_are_stratified_by_their_rarest_class():
    present = np.zeros((60, 4), bool)
    present[:, 0] = True  # background everywhere
    present[:30, 1] = True
    present[:12, 2] = True  # rarer than 1
    present[30:33, 3] = True  # three pictures: too few for a stratum of their own
    labels = masks.compute_strata(present)
    assert labels[:12].tolist() == [2] * 12
    assert labels[12:30].tolist() == [1] * 18
    assert labels[30:33].tolist() == [4] * 3
    assert labels[33:].tolist() == [0] * 27


def test_a_few_pictures_are_one_stratum():
    present = np.eye(6, dtype=bool)
    assert masks.compute_strata(present).tolist() == [6] * 6


def test_absent_classes_are_noted():
    present = np.zeros((2, 255), bool)
    present[:, [0, 2]] = True
    checked = masks.CheckedPairs(masks.Pairs([], []), set(), present, [])
    assert masks.describe_absent_classes({"train": checked}, ["a", "b", "c", "d"]) == [
        "train has no pixel of b, d."
    ]
