"""Writes synthetic data sets in the files and folders of the real ones, so that nothing has to be downloaded.

They equal the real ones in all that a reader's speed depends on: formats, layouts, and the sizes of
pictures in pixels and in bytes (1.9 kB for a JPEG of Tiny ImageNet, 96 kB for one of VOC). The pictures
show clouds. One thread decodes and augments about as many per second: 4,170 (3,702 real ones) of Tiny
ImageNet, 64 (65 real ones) of VOC with masks, on two x86-64 cores with Pillow.

Each function writes `count` training examples and a few test examples below a folder, and returns the
fields of `config.data` with which its reader finds them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from experiments import data
from experiments.configs import common
from experiments.data import voc2012
from experiments.data.masks import IGNORE

CLASSES = 10
_PHOTO = (375, 500)  # height and width of most of VOC's pictures
_SERIES = 176  # length of Adiac's
_TEST = 20
_PALETTE = np.random.default_rng(0).integers(0, 256, 768).tolist()  # all masks share it


def write_digits(root: Path, count: int) -> dict[str, str]:
    """Writes nothing: scikit-learn contains the digits; `SETS` needs an entry for them."""
    return {}


def write_ucr(root: Path, count: int) -> dict[str, str]:
    """Writes tab-separated series, as in the archive of 2018."""
    rng = np.random.default_rng(0)
    for split, number in (("TRAIN", count), ("TEST", _TEST)):
        walks = rng.standard_normal((number, _SERIES)).cumsum(axis=1)
        lines = [
            "\t".join([str(index % CLASSES + 1), *(f"{value:.6f}" for value in walk)])
            for index, walk in enumerate(walks)
        ]
        _write_lines(root / f"Synthetic_{split}.tsv", lines)
    return {"source": str(root), "variant": "Synthetic"}


def write_folder(root: Path, count: int) -> dict[str, str]:
    """Writes JPEGs of 64 x 64 pixels in class folders."""
    rng = np.random.default_rng(0)
    for index in range(count):
        _save_small(rng, root / f"class_{index % CLASSES}" / f"{index}.jpg")
    return {"source": str(root)}


def write_tiny_imagenet(root: Path, count: int) -> dict[str, str]:
    """Writes the distributed folder of Tiny ImageNet with fewer classes; prepared data goes beside it."""
    rng = np.random.default_rng(0)
    files = root / "tiny-imagenet-200"
    wnids = [f"n{number:08}" for number in range(CLASSES)]
    _write_lines(files / "wnids.txt", wnids)
    _write_lines(files / "words.txt", [f"{wnid}\tthing {wnid[1:]}" for wnid in wnids])
    for index in range(count):
        wnid = wnids[index % CLASSES]
        _save_small(rng, files / "train" / wnid / "images" / f"{wnid}_{index}.JPEG")
    names = [f"val_{index}.JPEG" for index in range(_TEST)]
    for name in names:
        _save_small(rng, files / "val" / "images" / name)
    rows = [f"{name}\t{wnids[i % CLASSES]}\t0\t0\t63\t63" for i, name in enumerate(names)]
    _write_lines(files / "val" / "val_annotations.txt", rows)
    return {"source": str(root), "dir": str(root / "prepared")}


def write_tfds(root: Path, count: int) -> dict[str, str]:
    """Writes a prepared data set of the catalogue, as the reader of Tiny ImageNet does."""
    config = common.get_config("tiny_imagenet")
    config.data.update(write_tiny_imagenet(root, count))
    data.load(config.data, seed=0)
    (info,) = root.rglob("dataset_info.json")
    return {"source": str(info.parent), "variant": "synthetic"}


def write_mask_folder(root: Path, count: int) -> dict[str, str]:
    """Writes photographs and masks with the same names into two folders."""
    rng = np.random.default_rng(0)
    for index in range(_reduce_count(count)):
        _save_pair(rng, root / "images" / f"{index}.jpg", root / "masks" / f"{index}.png")
    _write_lines(root / "classes.txt", list(voc2012.CLASSES))
    return {"source": str(root)}


def write_voc2012(root: Path, count: int) -> dict[str, str]:
    """Writes the VOC2012 folder of a VOCdevkit: photographs, palette masks, and lists of both splits."""
    rng = np.random.default_rng(0)
    files = root / "VOC2012"
    for split, number in (("train", _reduce_count(count)), ("val", _TEST)):
        names = [f"2007_{split}{index:05}" for index in range(number)]
        for name in names:
            picture_path = files / voc2012.get_picture_path(name)
            _save_pair(rng, picture_path, files / voc2012.get_mask_path(name))
        _write_lines(files / "ImageSets" / "Segmentation" / f"{split}.txt", names)
    return {"source": str(root)}


SETS = {
    "digits": write_digits,
    "ucr": write_ucr,
    "folder": write_folder,
    "tiny_imagenet": write_tiny_imagenet,
    "tfds": write_tfds,
    "mask_folder": write_mask_folder,
    "voc2012": write_voc2012,
}


def make_picture(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Returns clouds in colour: noise in every octave, about as hard to compress as a photograph."""
    total = np.full((height, width, 3), 128.0)
    for scale in 2.0 ** np.arange(np.ceil(np.log2(max(height, width)))):
        coarse = (int(height / scale) + 2, int(width / scale) + 2, 3)
        noise = np.clip(128 + 64 * rng.standard_normal(coarse), 0, 255).astype(np.uint8)
        octave = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        # Photographs have little contrast in fine detail.
        total += (np.asarray(octave) - 128.0) * min(1.0, 0.07 * scale)
    return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


def make_mask(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Returns a palette picture: ellipses of VOC's classes on its background, with borders to ignore."""
    image = Image.new("P", (width, height))
    image.putpalette(_PALETTE)
    draw = ImageDraw.Draw(image)
    for number in rng.integers(1, len(voc2012.CLASSES), 4).tolist():
        left, right = np.sort(rng.integers(0, width, 2)).tolist()
        top, bottom = np.sort(rng.integers(0, height, 2)).tolist()
        draw.ellipse((left, top, right, bottom), fill=number, outline=IGNORE, width=4)
    return image


def _reduce_count(count: int) -> int:
    """Returns the number of photographs, which are large, instead of small pictures."""
    return max(count // 4, _TEST)


def _save_small(rng: np.random.Generator, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    make_picture(rng, 64, 64).save(path, "JPEG", quality=85)


def _save_pair(rng: np.random.Generator, picture_path: Path, mask_path: Path) -> None:
    for path in (picture_path, mask_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    make_picture(rng, *_PHOTO).save(picture_path, "JPEG", quality=95)
    make_mask(rng, *_PHOTO).save(mask_path, "PNG")


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
