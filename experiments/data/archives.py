"""Archives of strangers: sizes are looked at before anything is read, and only plain files are.

Neither zip nor tar is ever extracted by its own paths: a reader asks for the files that it knows by name,
and decides itself where to write them. Links, devices and whatever else may be inside are passed over.
"""

import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

MAX_FILE_BYTES = 64 << 20
"""No file of an archive may have more bytes: pictures, masks and lists of names have fewer."""

MAX_TOTAL_BYTES = 16 << 30
"""Nor all of them together: the largest archive that is read has 2 GB."""

ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    NotImplementedError,  # a zip's exotic compression
    RuntimeError,  # a zip's password
)
"""What the libraries raise of an archive that is damaged."""


class ArchiveError(Exception):
    """Why an archive or a file in it is refused, without a full stop: a reader says what to do about it."""


def list_zip(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The files of a zip by their names, each once.

    Raises:
        ArchiveError: if they would be too large together.
    """
    files = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    _check_total(sum(info.file_size for info in files.values()))
    return files


def check_zip(archive: zipfile.ZipFile) -> None:
    """Returns if all files of a zip could be read one after another; for libraries that read them.

    Raises:
        ArchiveError: if one is too large, or all together.
    """
    for info in list_zip(archive).values():
        _check_file(info.filename, info.file_size)


def read_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A file of a zip, its checksum verified.

    Never more than the size that the zip declares is unpacked, however much there is.

    Raises:
        ArchiveError: if it is too large, or packed so that its size could not be kept to.
    """
    _check_file(info.filename, info.file_size)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(f"{info.filename} is not packed by deflate")
    with archive.open(info) as file:
        return file.read(info.file_size)


def iterate_tar(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yields the plain files of a tar; links, devices and pipes are passed over.

    Raises:
        ArchiveError: as soon as they are too large together, before the rest is unpacked.
    """
    total = 0
    for member in archive:
        total += member.size
        _check_total(total)
        if member.isreg() and not member.issparse():
            yield member
    # A packed tar ends with the checksum of it all, which is not looked at before.
    while rest := archive.fileobj.read(1 << 20):
        total += len(rest)
        _check_total(total)


def read_tar(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """A plain file of a tar.

    Raises:
        ArchiveError: if it is too large.
        EOFError: if it ends early.
    """
    _check_file(member.name, member.size)
    file = archive.extractfile(member)
    content = file.read() if file else b""
    if len(content) != member.size:
        raise EOFError(f"{member.name} ends early")
    return content


def _check_file(name: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise ArchiveError(
            f"{name} would have {size:,} bytes, more than the {MAX_FILE_BYTES:,} allowed"
        )


def _check_total(size: int) -> None:
    if size > MAX_TOTAL_BYTES:
        raise ArchiveError(
            f"its files would have {size:,} bytes, more than the {MAX_TOTAL_BYTES:,} allowed"
        )
