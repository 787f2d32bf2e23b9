"""Data sets that nobody has to download: made up, in the files and folders of the real ones.

What a reader's speed depends on is theirs: formats, layouts, and the sizes of pictures in pixels and in
bytes (1.9 kB for a JPEG of Tiny ImageNet, 96 kB for one of VOC). What they show is clouds. One thread
decodes and augments about as many as of the real ones: 4,170 a second and 3,702 of Tiny ImageNet's, 64 and
65 of VOC's with their masks (two x86-64 cores, Pillow).

Each function writes so many examples to train on, and a few to test on, below a folder, and returns the
fields of `config.data` by which its reader finds them.
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
_PHOTO = (375, 500)  # height and width of most pictures of VOC
_SERIES = 176  # length of Adiac's
_TEST = 20


def digits(root: Path, count: int) -> dict[str, str]:
    """Nothing: the digits come with scikit-learn, always as many."""
    return {}


def ucr(root: Path, count: int) -> dict[str, str]:
    """Tab separated series, as in the archive of 2018."""
    rng = np.random.default_rng(0)
    for split, number in (("TRAIN", count), ("TEST", _TEST)):
        walks = rng.standard_normal((number, _SERIES)).cumsum(axis=1)
        lines = [
            "\t".join([str(index % CLASSES + 1), *(f"{value:.6f}" for value in walk)])
            for index, walk in enumerate(walks)
        ]
        _write(root / f"Synthetic_{split}.tsv", lines)
    return {"source": str(root), "variant": "Synthetic"}


def folder(root: Path, count: int) -> dict[str, str]:
    """JPEGs of 64 x 64 pixels in class folders."""
    rng = np.random.default_rng(0)
    for index in range(count):
        _save_small(rng, root / f"class_{index % CLASSES}" / f"{index}.jpg")
    return {"source": str(root)}


def tiny_imagenet(root: Path, count: int) -> dict[str, str]:
    """The distributed folder of Tiny ImageNet, with fewer classes; prepared data goes beside it."""
    rng = np.random.default_rng(0)
    files = root / "tiny-imagenet-200"
    wnids = [f"n{number:08}" for number in range(CLASSES)]
    _write(files / "wnids.txt", wnids)
    _write(files / "words.txt", [f"{wnid}\tthing {wnid[1:]}" for wnid in wnids])
    for index in range(count):
        wnid = wnids[index % CLASSES]
        _save_small(rng, files / "train" / wnid / "images" / f"{wnid}_{index}.JPEG")
    names = [f"val_{index}.JPEG" for index in range(_TEST)]
    for name in names:
        _save_small(rng, files / "val" / "images" / name)
    rows = [f"{name}\t{wnids[i % CLASSES]}\t0\t0\t63\t63" for i, name in enumerate(names)]
    _write(files / "val" / "val_annotations.txt", rows)
    return {"source": str(root), "dir": str(root / "prepared")}


def tfds(root: Path, count: int) -> dict[str, str]:
    """A prepared set of the catalogue: what the reader of Tiny ImageNet prepares is one."""
    config = common.get_config("tiny_imagenet")
    config.data.update(tiny_imagenet(root, count))
    data.load(config.data, seed=0)
    (info,) = root.rglob("dataset_info.json")
    return {"source": str(info.parent), "variant": "synthetic"}


def mask_folder(root: Path, count: int) -> dict[str, str]:
    """Photographs and masks of the same names in two folders."""
    rng = np.random.default_rng(0)
    for index in range(_fewer(count)):
        _save_pair(rng, root / "images" / f"{index}.jpg", root / "masks" / f"{index}.png")
    _write(root / "classes.txt", list(voc2012.CLASSES))
    return {"source": str(root)}


def voc2012_folder(root: Path, count: int) -> dict[str, str]:
    """The VOC2012 of a VOCdevkit: photographs, palette masks, and lists of both splits."""
    rng = np.random.default_rng(0)
    files = root / "VOC2012"
    for split, number in (("train", _fewer(count)), ("val", _TEST)):
        names = [f"2007_{split}{index:05}" for index in range(number)]
        for name in names:
            picture_path = files / voc2012.get_picture_path(name)
            _save_pair(rng, picture_path, files / voc2012.get_mask_path(name))
        _write(files / "ImageSets" / "Segmentation" / f"{split}.txt", names)
    return {"source": str(root)}


SETS = {
    "digits": digits,
    "ucr": ucr,
    "folder": folder,
    "tiny_imagenet": tiny_imagenet,
    "tfds": tfds,
    "mask_folder": mask_folder,
    "voc2012": voc2012_folder,
}


def picture(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Clouds in colour: noise in every octave, about as hard to compress as a photograph."""
    total = np.full((height, width, 3), 128.0)
    for scale in 2.0 ** np.arange(np.ceil(np.log2(max(height, width)))):
        coarse = (int(height / scale) + 2, int(width / scale) + 2, 3)
        noise = np.clip(128 + 64 * rng.standard_normal(coarse), 0, 255).astype(np.uint8)
        octave = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        # Fine detail is faint in photographs.
        total += (np.asarray(octave) - 128.0) * min(1.0, 0.07 * scale)
    return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


def mask(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """A few ellipses of VOC's classes on its background, with borders of none, as a palette picture."""
    image = Image.new("P", (width, height))
    image.putpalette(rng.integers(0, 256, 768).tolist())
    draw = ImageDraw.Draw(image)
    for number in rng.integers(1, len(voc2012.CLASSES), 4).tolist():
        left, right = np.sort(rng.integers(0, width, 2)).tolist()
        top, bottom = np.sort(rng.integers(0, height, 2)).tolist()
        draw.ellipse((left, top, right, bottom), fill=number, outline=IGNORE, width=4)
    return image


def _fewer(count: int) -> int:
    """Photographs are large: a few of them are as much work as many small pictures."""
    return max(count // 4, _TEST)


def _save_small(rng: np.random.Generator, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(rng, 64, 64).save(path, "JPEG", quality=85)


def _save_pair(rng: np.random.Generator, picture_path: Path, mask_path: Path) -> None:
    for path in (picture_path, mask_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    picture(rng, *_PHOTO).save(picture_path, "JPEG", quality=95)
    mask(rng, *_PHOTO).save(mask_path, "PNG")


def _write(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
