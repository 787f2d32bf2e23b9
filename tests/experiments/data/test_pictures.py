"""Pictures of several kinds: used as RGB, or skipped with a reason."""

import os
import struct
import zlib

import numpy as np
import pytest
from picture_files import encode, rotate, write_classes
from PIL import Image

from experiments import data
from experiments.core.errors import UserError
from experiments.data import masks, pictures

COLOUR = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8))


@pytest.fixture
def pets(make_config, tmp_path):
    return make_config(name="folder", source=write_classes(tmp_path / "pets"))


@pytest.mark.parametrize(
    ("content", "shape"),
    [
        (encode(COLOUR.convert("CMYK"), "JPEG"), (4, 6, 3)),
        (encode(COLOUR.quantize(8), transparency=0), (4, 6, 3)),
        (encode(COLOUR, "JPEG", exif=rotate(6)), (6, 4, 3)),
    ],
)
def test_pictures_are_decoded_upright_as_rgb(content, shape):
    picture = pictures.decode_picture(content)
    assert picture.shape == shape and picture.dtype == np.uint8


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"text", "not a picture"),
        (encode(COLOUR)[:-30], "truncated"),
        (encode(COLOUR, "EPS"), "EPS is not supported"),
    ],
)
def test_unusable_pictures_have_a_reason(tmp_path, content, says):
    (tmp_path / "a.png").write_bytes(content)
    size, reason = pictures.check_picture(tmp_path / "a.png")
    assert size is None and says in reason


def test_too_many_pixels_are_refused_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 20)
    COLOUR.save(tmp_path / "a.png")
    assert "more pixels" in pictures.check_picture(tmp_path / "a.png")[1]


def test_sixteen_bits_are_scaled_and_not_clipped():
    wide = (np.arange(24, dtype=np.uint16) * 2730).reshape(4, 6)
    picture = pictures.decode_picture(encode(Image.fromarray(wide)))
    np.testing.assert_array_equal(picture[..., 0], wide >> 8)


@pytest.mark.parametrize(("highest", "shift"), [(255, 0), (256, 4), (4095, 4), (4096, 8)])
def test_twelve_bits_in_sixteen_are_not_black(highest, shift):
    wide = np.linspace(0, highest, 24).astype(np.uint16).reshape(4, 6)
    picture = pictures.decode_picture(encode(Image.fromarray(wide)), channels=1)
    np.testing.assert_array_equal(picture[..., 0], wide >> shift)


@pytest.mark.parametrize("kind", [2, 6])  # colours, with and without transparency
def test_colours_of_twelve_bits_in_sixteen_are_refused(tmp_path, kind):
    (tmp_path / "a.png").write_bytes(encode_deep(4095, kind))
    assert "nearly black" in pictures.check_picture(tmp_path / "a.png")[1]
    with pytest.raises(ValueError, match="nearly black"):
        pictures.decode_picture(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(encode_deep(4096, kind))
    assert pictures.check_picture(tmp_path / "a.png") == ((2, 3), "")
    assert (pictures.decode_picture(tmp_path / "a.png") == 16).all()


def encode_deep(value, kind):
    """A PNG with 16 bits a channel, which Pillow cannot write."""
    channels = {2: 3, 6: 4}[kind]
    rows = (b"\0" + struct.pack(">H", value) * 3 * channels) * 2

    def chunk(name, content):
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 3, 2, 16, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_mask_must_match_the_upright_picture(tmp_path):
    COLOUR.save(tmp_path / "a.jpg", exif=rotate(6))
    Image.new("L", (4, 6)).save(tmp_path / "a.png")
    ((size, _), _) = masks.check_pair(tmp_path / "a.jpg", tmp_path / "a.png")
    assert size == (6, 4)
    Image.new("L", (6, 4)).save(tmp_path / "a.png")
    assert masks.check_pair(tmp_path / "a.jpg", tmp_path / "a.png") == (
        None,
        "4 by 6, but its mask 6 by 4",
    )


def test_file_damaged_during_a_run_is_named(pets):
    train = data.load(pets, 0).splits["train"]
    first = train.source.paths[int(train.indices[0])]
    first.write_bytes(first.read_bytes()[:-30])
    with pytest.raises(UserError, match=rf"{first} cannot be read any more \(.*truncated"):
        train[0]
    first.unlink()
    with pytest.raises(UserError, match=r"any more \(.*No such file.*Restore the file"):
        train[0]


def test_circular_links_are_followed_once(make_config, tmp_path):
    write_classes(tmp_path / "pets", classes=("cat/more", "dog/more"))
    for name in ("cat", "dog"):
        os.symlink(tmp_path / "pets" / name, tmp_path / "pets" / name / "more" / "back")
    (tmp_path / "elsewhere").mkdir()
    COLOUR.save(tmp_path / "elsewhere" / "linked.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "pets" / "cat" / "linked")
    pets = data.load(make_config(name="folder", source=tmp_path / "pets"), 0)
    assert sum(len(split) for split in pets.splits.values()) == 21


def test_names_that_are_not_utf8(pets, tmp_path):
    odd = os.fsencode(tmp_path / "pets" / "cat") + b"/caf\xe9.png"
    with open(odd, "wb") as file:
        file.write(encode(COLOUR))
    assert sum(len(split) for split in data.load(pets, 0).splits.values()) == 21
    os.mkdir(os.fsencode(tmp_path / "pets") + b"/b\xeate")
    with pytest.raises(UserError, match=r"class folder b'b\\xeate'.* not UTF-8; rename it"):
        data.load(pets, 0)
