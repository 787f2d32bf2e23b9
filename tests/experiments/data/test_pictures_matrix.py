"""Pictures of every kind and format: used as RGB, or skipped with the reason."""

import io
import os
import re
import struct
import zlib

import numpy as np
import pytest
from picture_files import encode, rotate
from PIL import Image, ImageOps

from experiments import data
from experiments.data import mask_transforms, masks, pictures, transforms

pytestmark = pytest.mark.matrix


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def animated(kind):
    frames = [Image.new("RGB", (6, 4), (value, 0, 0)) for value in (100, 200, 250)]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)


def black(width, height):
    """A PNG of one bit a pixel: a thousandth of the bytes that its pixels take."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + -(-width // 8)) * height), 1)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


GREY = Image.fromarray(noise(4, 6))
COLOUR = Image.fromarray(noise(4, 6, 3))
WIDE = Image.fromarray((np.arange(24, dtype=np.uint16) * 2730).reshape(4, 6))
BROKEN_EXIF = b"Exif\0\0" + b"MM\0*" + b"\xff" * 30

USED = {
    "grey.png": (encode(GREY), (4, 6)),
    "grey with alpha.png": (encode(GREY.convert("LA")), (4, 6)),
    "palette with transparency.png": (encode(COLOUR.quantize(8), transparency=0), (4, 6)),
    "one bit.png": (encode(GREY.convert("1")), (4, 6)),
    "cmyk.jpg": (encode(COLOUR.convert("CMYK"), "JPEG"), (4, 6)),
    "ycbcr.tif": (encode(COLOUR.convert("YCbCr"), "TIFF"), (4, 6)),
    "16 bit.png": (encode(WIDE), (4, 6)),
    "16 bit.tif": (encode(WIDE, "TIFF"), (4, 6)),
    "16 bit.pgm": (b"P5 6 4 65535\n" + np.asarray(WIDE).astype(">u2").tobytes(), (4, 6)),
    "animated.gif": (animated("GIF"), (4, 6)),
    "animated.webp": (animated("WEBP"), (4, 6)),
    "animated.png": (animated("PNG"), (4, 6)),
    "pages.tif": (animated("TIFF"), (4, 6)),
    "turned.jpg": (encode(COLOUR, "JPEG", exif=rotate(6)), (6, 4)),
    "turned 16 bit.png": (encode(WIDE, exif=rotate(5)), (6, 4)),
    "turned in no known way.jpg": (encode(COLOUR, "JPEG", exif=rotate(9)), (4, 6)),
    "broken exif.jpg": (encode(COLOUR, "JPEG", exif=BROKEN_EXIF), (4, 6)),
    "row.png": (encode(Image.fromarray(noise(1, 5000, 3))), (1, 5000)),
    "column.jpg": (encode(Image.fromarray(noise(5000, 1, 3)), "JPEG"), (5000, 1)),
    "pixel.png": (encode(Image.fromarray(noise(1, 1, 3))), (1, 1)),
    "wrong suffix.jpg": (encode(COLOUR), (4, 6)),
}
SKIPPED = {
    "empty.jpg": (b"", "the file is empty"),
    "text.jpg": (b"not a picture", "not a picture that Pillow can read"),
    "page.png": (b"<!DOCTYPE html><title>404</title>", "not a picture"),
    "half.jpg": (encode(Image.fromarray(noise(64, 64, 3)), "JPEG")[:2000], "truncated"),
    "half.png": (encode(Image.fromarray(noise(64, 64, 3)))[:2000], "truncated"),
    "header only.gif": (animated("GIF")[:13], "image|EOF|truncated|no"),
    "bomb.png": (black(30_000, 30_000), "more pixels than the 89,478,485 allowed"),
    "large.png": (black(9_460, 9_460), "9,460 by 9,460, more pixels"),
    "program.eps": (encode(COLOUR, "EPS"), "the format EPS is not supported"),
    "fractions.tif": (encode(GREY.convert("F"), "TIFF"), "mode F; save it as RGB"),
    "32 bit.tif": (encode(GREY.convert("I"), "TIFF"), "mode I; save it as RGB"),
    "lab.tif": (encode(Image.new("LAB", (6, 4)), "TIFF"), "mode LAB"),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", USED)
def test_odd_pictures_are_used_upright_as_rgb(tmp_path, name):
    content, shape = USED[name]
    (tmp_path / name).write_bytes(content)
    assert pictures.check_picture(tmp_path / name) == (shape, "")
    for picture in (pictures.decode_picture(tmp_path / name), pictures.decode_picture(content)):
        assert picture.shape == (*shape, 3) and picture.dtype == np.uint8
    assert pictures.decode_picture(content, channels=1).shape == (*shape, 1)


def test_sixteen_bit_formats_are_scaled():
    for name in ("16 bit.png", "16 bit.tif", "16 bit.pgm"):
        picture = pictures.decode_picture(USED[name][0])
        np.testing.assert_array_equal(picture[..., 0], np.asarray(WIDE) >> 8, name)


def test_first_frame_of_animations():
    for name in ("animated.gif", "animated.webp", "animated.png", "pages.tif"):
        assert abs(int(pictures.decode_picture(USED[name][0])[0, 0, 0]) - 100) <= 2, name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations(orientation):
    content = encode(COLOUR, exif=rotate(orientation))
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(pictures.decode_picture(content), expected)


@pytest.mark.parametrize("name", SKIPPED)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_pictures_have_a_reason(tmp_path, name):
    content, says = SKIPPED[name]
    (tmp_path / name).write_bytes(content)
    size, reason = pictures.check_picture(tmp_path / name)
    assert size is None
    assert re.search(says, reason), reason
    with pytest.raises(Exception):  # noqa: B017  Pillow has many.
        pictures.decode_picture(content)


def test_all_kinds_in_one_folder(make_config, tmp_path, capfd):
    for folder, kinds in (("odd", USED), ("plain", {}), ("bad", SKIPPED)):
        (tmp_path / "all" / folder).mkdir(parents=True)
        for name, (content, _) in kinds.items():
            (tmp_path / "all" / folder / name).write_bytes(content)
    for number in range(10):
        Image.new("RGB", (6, 4), (number, 0, 0)).save(tmp_path / "all" / "plain" / f"{number}.png")
    os.mkfifo(tmp_path / "all" / "plain" / "pipe.png")
    os.symlink(tmp_path / "nowhere", tmp_path / "all" / "plain" / "dangling.png")
    found = data.load(make_config(name="folder", source=tmp_path / "all"), 0)
    assert found.classes == ["odd", "plain"]
    assert sum(len(split) for split in found.splits.values()) == len(USED) + 10
    skipped = dict(found.skipped)
    assert set(skipped) == {f"bad/{name}" for name in SKIPPED} | {
        "plain/pipe.png",
        "plain/dangling.png",
    }
    assert skipped["plain/pipe.png"] == "not a regular file"
    assert "No such file" in skipped["plain/dangling.png"]
    assert "No usable pictures in bad." in found.notes
    assert not capfd.readouterr().err  # Pillow's warnings are in the list, in its words.


@pytest.mark.parametrize("augment", ["none", "affine", "shift", "crop_flip", "resized_crop"])
def test_pictures_of_any_shape_become_squares(augment, rng):
    for shape in ((1, 20_000), (20_000, 1), (1, 1), (3, 400), (4, 6)):
        example = {"inputs": noise(*shape, 3), "label": np.int32(0)}
        for train in (True, False):
            make = transforms.make_transform(augment, 16, (0.5,), (0.25,), train=train)
            inputs = (make(example, rng) if train else make(example))["inputs"]
            assert inputs.shape == (16, 16, 3) and np.isfinite(inputs).all()


def test_crop_of_a_long_picture():
    for height, width in ((2, 90), (90, 2), (40, 300), (300, 41)):
        picture = noise(height, width, 3)
        scale = 16 / min(height, width)
        whole = transforms.resize(picture, round(height * scale), round(width * scale))
        top, left = (whole.shape[0] - 16) // 2, (whole.shape[1] - 16) // 2
        expected = whole[top : top + 16, left : left + 16].astype(int)
        assert np.abs(transforms.crop_to_square(picture, 16) - expected).mean() < 12


@pytest.mark.parametrize("augment", mask_transforms.AUGMENTATIONS)
def test_pairs_of_any_shape_become_squares(augment, rng):
    for shape in ((1, 20_000), (20_000, 1), (1, 1), (4, 6)):
        example = {"inputs": noise(*shape, 3), "label": np.zeros(shape, np.uint8)}
        for train in (True, False):
            make = mask_transforms.make_transform(augment, 16, (0.5,), (0.25,), train=train)
            made = make(example, rng) if train else make(example)
            assert made["inputs"].shape == (16, 16, 3) and np.isfinite(made["inputs"]).all()
            assert made["label"].shape == (16, 16)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"no mask", "not a picture"),
        (encode(Image.fromarray(noise(64, 64)))[:600], "truncated"),
        (black(30_000, 30_000), "more pixels"),
        (encode(COLOUR.convert("CMYK"), "JPEG"), "CMYK colours"),
        (encode(Image.fromarray(np.full((4, 6), 300, np.uint16))), "the number 300"),
        (encode(Image.fromarray(np.full((4, 6), -1, np.int32)), "TIFF"), "the number -1"),
        (animated("PNG"), "RGB colours"),
    ],
)
def test_bad_masks_have_a_reason(tmp_path, content, says):
    COLOUR.save(tmp_path / "a.jpg")
    (tmp_path / "a.png").write_bytes(content)
    seen, reason = masks.check_pair(tmp_path / "a.jpg", tmp_path / "a.png")
    assert seen is None and reason.startswith("its mask cannot be read: ") and says in reason
