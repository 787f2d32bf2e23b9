"""Archives that tests write, and the memory that reading them takes."""

import io
import tarfile
import tracemalloc
import zipfile

import pytest

from experiments.data import archives


def write_zip(path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def read(path, name):
    with zipfile.ZipFile(path) as archive:
        return archives.read_zip(archive, archives.list_zip(archive)[name])


def peak(function, *args):
    tracemalloc.start()
    try:
        with pytest.raises(Exception) as error:
            function(*args)
        return tracemalloc.get_traced_memory()[1], error.value
    finally:
        tracemalloc.stop()


def add(archive, name, content=b"", kind=tarfile.REGTYPE, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, target, len(content)
    archive.addfile(member, io.BytesIO(content))


LISTS = "VOCdevkit/VOC2012/ImageSets/Segmentation"


def write_lists(archive, names=("a",)):
    for split in ("train", "val"):
        text = "".join(f"{split}_{name}\n" for name in names).encode()
        add(archive, f"{LISTS}/{split}.txt", text)
