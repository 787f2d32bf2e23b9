"""Damaged and hostile archives in many variants."""

import stat
import struct
import tarfile
import zipfile

import pytest
from archive_files import add, peak, read, write_lists, write_zip

from experiments.core.errors import UserError
from experiments.data import archives

pytestmark = pytest.mark.matrix


def test_zip_bomb_with_a_false_size_is_cut_off(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"bomb": bytes(64 << 20)})
    raw = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        struct.pack_into("<I", raw, raw.index(mark) + offset, 1000)
    path.write_bytes(raw)
    used, error = peak(read, path, "bomb")
    assert isinstance(error, zipfile.BadZipFile) and used < 2 << 20


def test_total_size_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_TOTAL_BYTES", 1 << 20)
    path = write_zip(tmp_path / "a.zip", {f"{number}": bytes(1 << 18) for number in range(5)})
    with pytest.raises(archives.ArchiveError, match="1,310,720 bytes, more than the 1,048,576"):
        read(path, "0")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path, method):
    path = write_zip(tmp_path / "a.zip", {"bomb": bytes(8 << 20)}, method)
    used, error = peak(read, path, "bomb")
    assert "not compressed with deflate" in str(error) and used < 2 << 20


def test_encrypted_and_damaged_files_raise_known_errors(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a": b"hello" * 100})
    whole = path.read_bytes()
    encrypted = bytearray(whole)
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        encrypted[encrypted.index(mark) + offset] |= 1
    damaged = bytearray(whole)
    damaged[36] ^= 255
    for raw in (encrypted, damaged):
        path.write_bytes(raw)
        with pytest.raises(archives.ERRORS):
            read(path, "a")


def sparse(name, size):
    """The header of a sparse file: it has any size without a byte of content."""
    member = tarfile.TarInfo(name)
    member.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = f"{size:011o}\0".encode()
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header[:512]):06o}\0 ".encode()
    return bytes(header)


def test_sparse_files_are_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(sparse("VOC2012/a", 2**40 // 128) + bytes(1024))
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert list(archives.iterate_tar(archive)) == []  # 8 GB: passed over
    (tmp_path / "a.tar").write_bytes(sparse("VOC2012/a", 2**33 - 1) * 3 + bytes(1024))
    with tarfile.open(tmp_path / "a.tar") as archive:
        with pytest.raises(archives.ArchiveError, match="its files would have 25,7"):
            list(archives.iterate_tar(archive))


@pytest.mark.parametrize(
    ("limit", "value", "says"),
    [
        ("MAX_TOTAL_BYTES", 1 << 20, "a.tar.gz is refused: its files would have"),
        ("MAX_FILE_BYTES", 1 << 20, "train_a.jpg would have 4,194,304 bytes"),
    ],
)
def test_compressed_tar_bomb_is_refused(load_voc, tmp_path, monkeypatch, limit, value, says):
    monkeypatch.setattr(archives, limit, value)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        write_lists(archive)
        add(archive, "VOCdevkit/VOC2012/JPEGImages/train_a.jpg", bytes(4 << 20))
    with pytest.raises(UserError, match=says):
        load_voc(tmp_path / "a.tar.gz")
    assert not list((tmp_path / "prepared").rglob("*.txt"))


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz"])
def test_damaged_compressed_tars_are_reported(load_voc, tmp_path, packing, rng):
    path = tmp_path / f"a.tar.{packing}"
    with tarfile.open(path, f"w:{packing}") as archive:
        add(archive, "VOCdevkit/VOC2012/JPEGImages/train_a.jpg", rng.bytes(1 << 16))
        write_lists(archive)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    for position in range(len(damaged) // 2, len(damaged) // 2 + 40):
        damaged[position] ^= 255
    for content in (whole[: len(whole) // 2], bytes(damaged)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"is not complete|is not a tar file|is missing from"):
            load_voc(path)
        assert not list((tmp_path / "prepared").rglob("*.txt"))


def test_tiny_imagenet_with_links_and_bombs_is_refused(load_voc, tmp_path, monkeypatch):
    root = "tiny-imagenet-200"
    link = zipfile.ZipInfo(f"{root}/train/n01/images/link.JPEG")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{root}/wnids.txt", "n01\n")
        archive.writestr(f"{root}/words.txt", "n01\tfish\n")
        archive.writestr(f"{root}/val/val_annotations.txt", "a.JPEG\tn01\n")
        archive.writestr(f"{root}/val/images/a.JPEG", bytes(4 << 20))
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match=r"no usable picture below train .*not a picture"):
        load_voc(path, "tiny_imagenet")
    monkeypatch.setattr(archives, "MAX_TOTAL_BYTES", 1 << 20)
    with pytest.raises(UserError, match=r"a\.zip is refused: its files would have 4,194,"):
        load_voc(path, "tiny_imagenet")
