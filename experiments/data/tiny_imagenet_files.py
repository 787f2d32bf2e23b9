"""The files of Tiny ImageNet as they are distributed: found, downloaded, listed and verified."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import zipfile
from collections.abc import Iterator, Sequence

from experiments.core.errors import UserError
from experiments.data import archives, downloads

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
SIZE = 250_000_000
ZIP = "tiny-imagenet-200.zip"


@dataclasses.dataclass(frozen=True, eq=False)
class ZipFiles:
    """The files below one folder of a zip, read where they are: nothing is ever extracted."""

    archive: zipfile.ZipFile
    root: str

    @functools.cached_property
    def infos(self) -> dict[str, zipfile.ZipInfo]:
        """The zip's files by their full names."""
        return archives.list_zip(self.archive)

    def names(self) -> Iterator[str]:
        """Yields the names of the files, relative to the root."""
        for name in self.infos:
            if name.startswith(self.root):
                yield name[len(self.root) :]

    def read(self, name: str) -> bytes:
        """Returns a file's content; the zip's checksum is verified."""
        return archives.read_zip(self.archive, self.infos[self.root + name])

    def fingerprint(self) -> str:
        """Returns a short name for the content, from the checksums in the zip's directory."""
        return _digest(f"{i.filename} {i.file_size} {i.CRC}" for i in self.archive.infolist())


@dataclasses.dataclass(frozen=True, eq=False)
class FolderFiles:
    """The files below a folder."""

    root: pathlib.Path

    def names(self) -> Iterator[str]:
        """Yields the names of the files, relative to the root."""
        for folder, folders, files in os.walk(self.root):
            folders.sort()
            prefix = pathlib.Path(folder).relative_to(self.root).as_posix()
            yield from (f"{prefix}/{file}".removeprefix("./") for file in sorted(files))

    def read(self, name: str) -> bytes:
        """Returns a file's content."""
        return (self.root / name).read_bytes()

    def fingerprint(self) -> str:
        """Returns a short name for the content, from the names, sizes and times of the files."""
        stats = ((name, (self.root / name).stat()) for name in self.names())
        return _digest(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)


Files = ZipFiles | FolderFiles


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the files say, verified.

    Attributes:
        wnids: the WordNet id of each class, sorted; the position is the label.
        classes: the first synonym of each.
        members: for `train` and `val`, `(file, label)` in the order of the labels.
    """

    wnids: Sequence[str]
    classes: Sequence[str]
    members: dict[str, Sequence[tuple[str, int]]]


def open_files(source: pathlib.Path) -> Files:
    """Opens the zip, the extracted folder or the folder that holds it.

    Raises:
        UserError: if there is nothing, or something else.
    """
    if not source.exists():
        raise UserError(_missing(f"{source} does not exist."))
    if source.is_dir():
        for root in (source, source / "tiny-imagenet-200"):
            if (root / "wnids.txt").is_file():
                return FolderFiles(root)
        if (source / ZIP).is_file():
            return open_files(source / ZIP)
        raise UserError(_missing(f"There is no wnids.txt in {source} or its tiny-imagenet-200."))
    try:
        archive = zipfile.ZipFile(source)
        names = archives.list_zip(archive)
    except archives.ArchiveError as error:
        raise UserError(_missing(f"{source} is refused: {error}.")) from error
    except (*archives.ERRORS, OSError, ValueError) as error:
        raise UserError(
            _missing(
                f"{source} is not a complete zip file ({error}); it may be a broken download: delete it."
            )
        ) from error
    found = [name for name in names if name == "wnids.txt" or name.endswith("/wnids.txt")]
    found = [name for name in found if not name.startswith("__MACOSX/")]
    if not found:
        raise UserError(_missing(f"There is no wnids.txt in {source}."))
    return ZipFiles(archive, min(found, key=len).removesuffix("wnids.txt"))


def read_layout(files: Files) -> Layout:
    """Lists the pictures and verifies that they are all there.

    Raises:
        UserError: if a class has no training pictures, a validation picture is missing, or a
            label is unknown.
    """
    names = sorted(n for n in files.names() if not n.rpartition("/")[2].startswith("."))
    known = set(names)
    for name in ("wnids.txt", "words.txt", "val/val_annotations.txt"):
        if name not in known:
            raise UserError(_missing(f"{name} is missing from {_where(files)}."))
    wnids = sorted(set(_text(files, "wnids.txt").split()))
    labels = {wnid: label for label, wnid in enumerate(wnids)}

    train = []
    for name in names:
        match name.split("/"):
            case ["train", wnid, "images", _]:
                if wnid not in labels:
                    raise UserError(_missing(f"train/{wnid} is not a class of wnids.txt."))
                train.append((name, labels[wnid]))
    empty = sorted(set(wnids) - {wnids[label] for _, label in train})
    if empty:
        raise UserError(
            _missing(
                f"{_where(files)} has no training pictures for {len(empty)} of {len(wnids)} "
                f"classes ({_some(empty)})."
            )
        )

    lines = _text(files, "val/val_annotations.txt").splitlines()
    rows = [line.split("\t") for line in lines if line.strip()]
    strange = sorted({row[1] if len(row) > 1 else row[0] for row in rows} - set(wnids))
    if strange:
        raise UserError(
            _missing(f"val_annotations.txt names classes not in wnids.txt ({_some(strange)}).")
        )
    val = [(f"val/images/{row[0]}", labels[row[1]]) for row in rows]
    absent = sorted(name for name, _ in val if name not in known)
    if absent:
        raise UserError(
            _missing(
                f"{_where(files)} lacks {len(absent)} of the {len(val)} pictures of "
                f"val_annotations.txt ({_some(absent)})."
            )
        )
    val.sort(key=lambda member: (member[1], member[0]))
    train.sort(key=lambda member: (member[1], member[0]))
    return Layout(wnids, _class_names(files, wnids), {"train": train, "val": val})


def download(data_dir: pathlib.Path) -> pathlib.Path:
    """Returns the official zip in the data folder, downloading it first if it is not there.

    Raises:
        UserError: if it cannot be downloaded, or something else arrives.
    """
    try:
        return downloads.download_file(URL, MD5, data_dir / "downloads" / ZIP, SIZE)
    except downloads.DownloadError as error:
        raise UserError(_missing(f"{error}.")) from error


def _text(files: Files, name: str) -> str:
    try:
        return files.read(name).decode()
    except (archives.ArchiveError, *archives.ERRORS, OSError, ValueError) as error:
        raise UserError(_missing(f"{name} of {_where(files)} cannot be read ({error}).")) from error


def _class_names(files: Files, wnids: Sequence[str]) -> list[str]:
    rows = (line.partition("\t") for line in _text(files, "words.txt").splitlines())
    words = {wnid.strip(): synonyms.split(",")[0].strip() for wnid, _, synonyms in rows}
    names = [words.get(wnid) or wnid for wnid in wnids]
    # Two classes may share their first synonym; a report could not tell them apart.
    return [
        f"{name} ({wnid})" if names.count(name) > 1 else name
        for name, wnid in zip(names, wnids, strict=True)
    ]


def _missing(what: str) -> str:
    return (
        f"Tiny ImageNet: {what} Either download {URL} yourself and give the zip or the extracted "
        "folder as --config.data.source=PATH, or start without a source on a machine with a "
        "network, which downloads it."
    )


def _where(files: Files) -> str:
    return str(files.archive.filename if isinstance(files, ZipFiles) else files.root)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _digest(lines: Iterator[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
