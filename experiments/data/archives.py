"""Reads untrusted zip and tar archives safely: sizes are checked first, and only plain files are read.

Nothing is extracted to the archive's own paths: a reader asks for the files that it knows by name, and
decides itself where to write them. Links, devices and the like are ignored.
"""

import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

MAX_FILE_BYTES = 64 << 20
"""Maximum size of a file in an archive; pictures, masks and lists of names are smaller."""

MAX_TOTAL_BYTES = 16 << 30
"""Maximum size of all files of an archive; the largest supported archive has 2 GB."""

ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    NotImplementedError,  # A zip with an unsupported compression.
    RuntimeError,  # A zip with a password.
)
"""Errors that the libraries raise for damaged archives."""


class ArchiveError(Exception):
    """Reason why an archive or a file in it is refused, without a full stop; the reader adds the remedy."""


def list_zip(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Returns the files of a zip by name; raises an ArchiveError if they are too large together."""
    files = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    _check_total(sum(info.file_size for info in files.values()))
    return files


def check_zip(archive: zipfile.ZipFile) -> None:
    """Raises an ArchiveError if a file of a zip, or all files together, are too large.

    For libraries that then read the zip themselves.
    """
    for info in list_zip(archive).values():
        _check_file(info.filename, info.file_size)


def read_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Returns the content of a file of a zip, its checksum verified.

    At most the declared size is unpacked, even if the file has more.

    Raises:
        ArchiveError: if it is too large, or compressed so that its size could not be limited.
    """
    _check_file(info.filename, info.file_size)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(f"{info.filename} is not compressed with deflate")
    with archive.open(info) as file:
        return file.read(info.file_size)


def iterate_tar(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yields the plain files of a tar, without links, devices and pipes.

    Raises:
        ArchiveError: as soon as they are too large together, before the rest is unpacked.
    """
    total = 0
    for member in archive:
        total += member.size
        _check_total(total)
        if member.isreg() and not member.issparse():
            yield member
    # The checksum of a compressed tar is at its end and is verified only when that is read.
    while rest := archive.fileobj.read(1 << 20):
        total += len(rest)
        _check_total(total)


def read_tar(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Returns the content of a plain file of a tar; raises an EOFError if it ends early."""
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
