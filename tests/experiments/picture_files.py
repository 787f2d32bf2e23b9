"""Encoded pictures, folders of them, and the published data sets in small, as tests write them."""

import io
import tarfile

import numpy as np
from archive_files import add, write_zip
from PIL import Image

LISTS = "ImageSets/Segmentation"
WNIDS = ["n03", "n01", "n02"]


def encode(image, kind="PNG", **options):
    stream = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(stream, kind, **options)
    return stream.getvalue()


def encode_grey(value, kind="PNG", size=(6, 4)):
    return encode(Image.new("RGB", size, (value,) * 3), kind)


def rotate(orientation):
    """EXIF data that says that a picture is rotated."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def write_files(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_classes(root, count=10, classes=("cat", "dog"), **options):
    """Writes one folder of grey pictures per class; dogs are lighter than cats."""
    for number, name in enumerate(classes):
        values = range(100 * number, 100 * number + count)
        pictures = {f"{name}/{i}.png": encode_grey(v, **options) for i, v in enumerate(values)}
        write_files(root, pictures)
    return root


def encode_voc_mask(index, size=(6, 8)):
    """A block of one class on background, with a void border."""
    values = np.zeros(size, np.uint8)
    values[1:5, 1:6] = 255
    values[2:4, 2:5] = index
    image = Image.fromarray(values, "P")
    image.putpalette(range(256), "RGB")
    return encode(image)


def make_voc_files():
    """The files of VOC 2012 with 40 training and 6 val pictures, and some of other tasks."""
    files, names = {}, {"train": [], "val": []}
    for number in range(46):
        name = f"2007_{number:06}"
        names["train" if number < 40 else "val"].append(name)
        # The class is in the picture's grey, so that a test can tell whose mask it is.
        index = 1 + number % 2
        picture = np.full((6, 8, 3), 100 * index, np.uint8)
        files[f"JPEGImages/{name}.jpg"] = encode(picture, "JPEG")
        files[f"SegmentationClass/{name}.png"] = encode_voc_mask(index)
        files[f"SegmentationObject/{name}.png"] = encode_voc_mask(1)
        files[f"Annotations/{name}.xml"] = b"<annotation/>"
    files["JPEGImages/2008_000000.jpg"] = encode_grey(0, "JPEG")
    for split, listed in names.items():
        files[f"{LISTS}/{split}.txt"] = ("\n".join(listed) + "\n").encode()
    return files


def write_voc_tar(path, files, root="VOCdevkit/VOC2012"):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            add(archive, f"{root}/{name}", content)
    return path


def encode_jpeg(value=0, mode="RGB", size=(64, 64)):
    return encode(Image.new(mode, size, value if mode == "L" else (value, 0, 0)), "JPEG")


def make_tiny_imagenet_files():
    """The files of Tiny ImageNet with 3 classes of 4 training and 2 val pictures each."""
    files = {
        "wnids.txt": "\n".join(WNIDS).encode(),
        "words.txt": b"n00\tentity\nn01\tgoldfish, Carassius\nn02\tcrane\nn03\tcrane, bird",
    }
    annotations = []
    for wnid in WNIDS:
        value = 60 * int(wnid[1:])
        for index in range(4):
            files[f"train/{wnid}/images/{wnid}_{index}.JPEG"] = encode_jpeg(value)
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b""
        for index in range(2):
            name = f"val_{wnid[2]}{index}.JPEG"
            files[f"val/images/{name}"] = encode_jpeg(value)
            annotations.append(f"{name}\t{wnid}\t0\t0\t63\t63")
    files["val/val_annotations.txt"] = "\n".join(annotations).encode()
    files["test/images/test_0.JPEG"] = encode_jpeg()
    return files


def write_tiny_imagenet_zip(path, files):
    return write_zip(path, {f"tiny-imagenet-200/{name}": files[name] for name in files})
