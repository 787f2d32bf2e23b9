"""Hostile archives: nothing is written outside, and sizes are limited."""

import os
import stat
import tarfile
import zipfile

import pytest
from archive_files import add, peak, read, write_lists, write_zip

from experiments.core.errors import UserError
from experiments.data import archives


def test_zip_files_are_read(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a/b.txt": b"hello", "empty": b"", "folder/": b""})
    with zipfile.ZipFile(path) as archive:
        files = archives.list_zip(archive)
        assert list(files) == ["a/b.txt", "empty"]
        assert archives.read_zip(archive, files["a/b.txt"]) == b"hello"
        assert archives.read_zip(archive, files["empty"]) == b""


def test_zip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 1 << 20)
    path = write_zip(tmp_path / "a.zip", {"bomb": bytes(64 << 20)})
    assert path.stat().st_size < 1 << 17
    used, error = peak(read, path, "bomb")
    assert isinstance(error, archives.ArchiveError)
    assert "bomb would have 67,108,864 bytes, more than the 1,048,576 allowed" in str(error)
    assert used < 2 << 20


def test_tar_yields_plain_files_only(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "a.txt", b"hello")
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            add(archive, "link", kind=kind, target="/etc/passwd")
        for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            add(archive, "node", kind=kind)
    with tarfile.open(tmp_path / "a.tar") as archive:
        (member,) = archives.iterate_tar(archive)
        assert archives.read_tar(archive, member) == b"hello"


def test_hostile_tar_writes_nothing_outside(load_voc, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.jpg").write_bytes(b"mine")
    names = [
        "../../../../../../outside/up",
        "plain",
        "link",
        "hard",
        "node",
        "pipe",
        str(outside / "abs"),
    ]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        root = "VOCdevkit/VOC2012"
        # A link for the folder that pictures go to, then pictures that would go through it.
        add(archive, f"{root}/JPEGImages", kind=tarfile.SYMTYPE, target=str(outside))
        add(archive, f"{root}/SegmentationClass", kind=tarfile.SYMTYPE, target=str(outside))
        write_lists(archive, names)
        for split in ("train", "val"):
            pictures = f"{root}/JPEGImages/{split}_"
            add(archive, f"{pictures}plain.jpg", b"through the link")
            add(archive, f"{pictures}../../../../../../outside/up.jpg", b"up")
            add(
                archive,
                f"{pictures}link.jpg",
                kind=tarfile.SYMTYPE,
                target=str(outside / "secret.jpg"),
            )
            add(
                archive,
                f"{pictures}hard.jpg",
                kind=tarfile.LNKTYPE,
                target=str(outside / "secret.jpg"),
            )
            add(archive, f"{pictures}node.jpg", kind=tarfile.CHRTYPE)
            add(archive, f"{pictures}pipe.jpg", kind=tarfile.FIFOTYPE)
        add(archive, str(outside / "VOC2012" / "JPEGImages" / "abs.jpg"), b"absolute")
        add(archive, f"VOC2012/{outside}/abs.jpg", b"absolute")
    with pytest.raises(UserError, match="can be used"):
        load_voc(tmp_path / "a.tar")
    assert os.listdir(outside) == ["secret.jpg"]
    assert (outside / "secret.jpg").read_bytes() == b"mine"
    modes = [path.lstat().st_mode for path in (tmp_path / "prepared").rglob("*")]
    assert modes and all(stat.S_ISDIR(mode) or stat.S_ISREG(mode) for mode in modes)
    written = [path.name for path in (tmp_path / "prepared").rglob("*.jpg")]
    assert sorted(written) == ["train_plain.jpg", "val_plain.jpg"]
