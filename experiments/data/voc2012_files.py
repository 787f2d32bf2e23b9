"""The files of Pascal VOC 2012 as they are distributed: found, downloaded, unpacked and listed."""

import hashlib
import os
import pathlib
import tarfile
from collections.abc import Sequence

from experiments.core.errors import UserError
from experiments.data import archives, downloads

URL = "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
MD5 = "6cd6e144f989b92b3379bac3b3de84fd"
SIZE = 2_000_000_000
TAR = "VOCtrainval_11-May-2012.tar"

# The lists come last: where they are, everything they name has been unpacked.
_LISTS = {split: f"ImageSets/Segmentation/{split}.txt" for split in ("train", "val")}


def find(source: pathlib.Path | None, data_dir: pathlib.Path) -> pathlib.Path:
    """Returns the folder VOC2012, from wherever it has to be taken.

    Args:
        source: the official tar, the folder VOC2012, the VOCdevkit around it or the folder around
            that; None to download the tar.
        data_dir: where a download and what is unpacked from a tar are kept.

    Raises:
        UserError: if there is nothing, or something else.
    """
    if source is None:
        try:
            final = data_dir / "downloads" / TAR
            return unpack(downloads.fetch(URL, MD5, final, SIZE), data_dir)
        except downloads.DownloadError as error:
            raise UserError(_missing(f"{error}.")) from error
    if not source.exists():
        raise UserError(_missing(f"{source} does not exist."))
    if source.is_file():
        return unpack(source, data_dir)
    for root in (source, source / "VOC2012", source / "VOCdevkit" / "VOC2012"):
        if (root / "ImageSets" / "Segmentation").is_dir():
            return root
    if (source / TAR).is_file():
        return unpack(source / TAR, data_dir)
    raise UserError(
        _missing(
            f"There is no ImageSets/Segmentation in {source}, its VOC2012 or its VOCdevkit/VOC2012."
        )
    )


def unpack(tar: pathlib.Path, data_dir: pathlib.Path) -> pathlib.Path:
    """Takes the pictures with masks, the masks and their lists out of the official tar, once.

    That is a sixth of it. What was interrupted goes on where it stopped, and two processes at
    once do no harm: every file appears whole, and the lists, which say that all is there, last.

    Args:
        tar: the tar.
        data_dir: where to unpack, each tar into a folder of its own.

    Returns:
        The folder VOC2012.

    Raises:
        UserError: if it is no such tar, is broken, or there is no room.
    """
    state = tar.stat()
    name = hashlib.sha256(f"{tar} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:16]
    root = data_dir / "voc2012" / name / "VOCdevkit" / "VOC2012"
    if all((root / path).is_file() for path in _LISTS.values()):
        return root
    try:
        archive = tarfile.open(tar)
    except (*archives.ERRORS, OSError) as error:
        raise UserError(_missing(f"{tar} is not a tar file ({error}).")) from error
    print(f"Unpacking {tar} (once) to {root}", flush=True)
    with archive:
        try:
            members = _members(archive)
            for path in _LISTS.values():
                if path not in members:
                    raise UserError(_missing(f"{path} is missing from {tar}."))
            wanted = _wanted(archive, members)
            # In the order of the file, as a disk likes it; the lists, again, last.
            wanted.sort(key=lambda path: members[path].offset)
            for path in [*wanted, *_LISTS.values()]:
                _write(root / path, archive, members[path])
        except archives.ArchiveError as error:
            raise UserError(_missing(f"{tar} is not read: {error}.")) from error
        except archives.ERRORS as error:
            raise UserError(
                _missing(
                    f"{tar} is not complete ({error}); it may be a broken download: delete it."
                )
            ) from error
        except OSError as error:
            raise UserError(
                f"VOC 2012 could not be unpacked to {data_dir} ({error}). Make room or choose "
                "another folder with --config.data.dir=PATH."
            ) from error
    return root


def read_lists(root: pathlib.Path) -> dict[str, Sequence[str]]:
    """Returns the names of the pictures in `train` and `val`, in the order of the lists.

    Raises:
        UserError: if a list is missing or empty, or they have pictures in common.
    """
    lists = {}
    for split, path in _LISTS.items():
        try:
            text = (root / path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(_missing(f"{root / path} cannot be read ({error}).")) from error
        lists[split] = _names(text)
        if not lists[split]:
            raise UserError(_missing(f"{root / path} names no pictures."))
    shared = sorted(set(lists["train"]) & set(lists["val"]))
    if shared:
        raise UserError(
            f"VOC 2012: {len(shared)} pictures are in both train.txt and val.txt of "
            f"{root / 'ImageSets/Segmentation'}, {shared[0]} among them; a network would be tested "
            "on what it was trained on. Restore the official lists."
        )
    return lists


def _names(text: str) -> list[str]:
    # Once each, whatever stands behind the name, as in the lists of the other tasks.
    return list(dict.fromkeys(line.split()[0] for line in text.splitlines() if line.strip()))


def _members(archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """Returns the files by their path within VOC2012; nothing else in the tar has such a path."""
    found = {}
    for member in archives.tar_files(archive):
        parts = member.name.split("/")
        if "VOC2012" in parts and ".." not in parts:
            inside = parts[parts.index("VOC2012") + 1 :]
            found["/".join(inside)] = member
    return found


def _wanted(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> list[str]:
    names = [
        name
        for path in _LISTS.values()
        for name in _names(
            archives.read_tar(archive, members[path]).decode("utf-8", errors="replace")
        )
    ]
    paths = [path for name in names for path in (picture_path(name), mask_path(name))]
    return [path for path in dict.fromkeys(paths) if path in members]


def picture_path(name: str) -> str:
    """Returns where a picture is within VOC2012."""
    return f"JPEGImages/{name}.jpg"


def mask_path(name: str) -> str:
    """Returns where a picture's mask of classes is within VOC2012."""
    return f"SegmentationClass/{name}.png"


def _write(path: pathlib.Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    if path.is_file() and path.stat().st_size == member.size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(archives.read_tar(archive, member))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _missing(what: str) -> str:
    return (
        f"VOC 2012: {what} Either download {URL} yourself and give the tar, or the VOCdevkit "
        "folder that is in it, as --config.data.source=PATH, or start without a source on a "
        "machine with a network, which downloads it."
    )
