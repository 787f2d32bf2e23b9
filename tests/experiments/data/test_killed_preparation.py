"""Processes that are killed while they unpack or prepare: the next one starts from whole files."""

import io
import signal
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from experiments import data

pytestmark = pytest.mark.process

# Kills itself when it reads the file with this number.
DIES = """
import os, signal, sys
from ml_collections import ConfigDict
from experiments import data
from experiments.data import archives
name, source, dir, read_name, number = sys.argv[1:]
read, left = getattr(archives, read_name), [int(number)]
def dies(*args):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(*args)
setattr(archives, read_name, dies)
config = {"name": name, "source": source, "dir": dir, "validation": 0.25, "test": 0.2, "limit": 0}
data.load(ConfigDict(config), 0)
"""


def encoded(values, kind):
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, kind)
    return stream.getvalue()


def voc(path):
    with tarfile.open(path, "w") as archive:

        def add(name, content):
            member = tarfile.TarInfo(f"VOCdevkit/VOC2012/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        for number in range(24):
            name = f"2007_{number:06}"
            mask = np.full((4, 6), 1 + number % 2, np.uint8)
            add(f"JPEGImages/{name}.jpg", encoded(np.full((4, 6, 3), number, np.uint8), "JPEG"))
            add(f"SegmentationClass/{name}.png", encoded(mask, "PNG"))
        for split, numbers in (("train", range(20)), ("val", range(20, 24))):
            text = "".join(f"2007_{number:06}\n" for number in numbers)
            add(f"ImageSets/Segmentation/{split}.txt", text.encode())
    return path


def tiny_imagenet(path):
    with zipfile.ZipFile(path, "w") as archive:
        root, rows = "tiny-imagenet-200", []
        for label, wnid in enumerate(("n01", "n02")):
            for number in range(10):
                picture = encoded(np.full((64, 64, 3), 100 * label + number, np.uint8), "JPEG")
                archive.writestr(f"{root}/train/{wnid}/images/{number}.JPEG", picture)
            picture = encoded(np.full((64, 64, 3), 50 + label, np.uint8), "JPEG")
            archive.writestr(f"{root}/val/images/{wnid}.JPEG", picture)
            rows.append(f"{wnid}.JPEG\t{wnid}")
        archive.writestr(f"{root}/wnids.txt", "n01\nn02\n")
        archive.writestr(f"{root}/words.txt", "n01\tone\nn02\ttwo\n")
        archive.writestr(f"{root}/val/val_annotations.txt", "\n".join(rows))
    return path


@pytest.mark.parametrize(
    ("name", "write", "reader", "moments", "finished"),
    [
        ("voc2012", voc, "read_tar", (1, 30, 25), "val.txt"),
        ("tiny_imagenet", tiny_imagenet, "read_zip", (8, 27), "dataset_info.json"),
    ],
)
def test_killed_preparation_starts_again(
    make_config, tmp_path, name, write, reader, moments, finished
):
    source = write(tmp_path / "archive")
    for moment in moments:
        arguments = [name, source, tmp_path / "prepared", reader, moment]
        process = subprocess.run(
            [sys.executable, "-c", DIES, *map(str, arguments)], capture_output=True, text=True
        )
        assert process.returncode == -signal.SIGKILL, process.stderr
        left = [path for path in (tmp_path / "prepared").rglob(finished)]
        assert all("incomplete" in str(path) for path in left), left
    interrupted, untouched = (
        data.load(make_config(name=name, source=source, dir=tmp_path / where, validation=0.25), 0)
        for where in ("prepared", "elsewhere")
    )
    assert interrupted.notes == untouched.notes and not interrupted.skipped
    for split, expected in untouched.splits.items():
        found = interrupted.splits[split]
        assert len(found) == len(expected)
        for index in range(len(expected)):
            for key, value in expected[index].items():
                np.testing.assert_array_equal(found[index][key], value)
