"""Tiny ImageNet-200: 200 classes of 64 by 64 pictures, prepared once from its zip or folder.

The official zip is downloaded if no source is set. TFDS keeps the prepared pictures, still encoded, as
array_record files.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import os
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from ml_collections import ConfigDict

from experiments.core import digests
from experiments.core.console import print_line
from experiments.core.errors import UserError
from experiments.core.files import replace_file
from experiments.data import archives, paths, pictures, splits
from experiments.data.dataset import Dataset, Example

OFFICIAL_TRAIN, OFFICIAL_VAL = 100_000, 10_000
"""Number of pictures in the official splits."""

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
SIZE = 250_000_000
ZIP = "tiny-imagenet-200.zip"
IMAGENET_INDICES = np.array(
    """
    1 25 30 32 50 61 69 71 75 76 79 99 105 107 109 113 114 115 122 123 128 145 146 149 151 187 207
    208 235 267 281 283 285 286 291 294 301 308 309 311 313 314 315 319 323 325 329 338 341 345 347
    349 353 354 365 367 372 386 387 398 400 406 411 414 421 424 425 427 430 435 436 437 438 440 445
    447 448 457 458 462 463 466 467 470 471 474 480 485 488 492 496 500 508 509 511 517 525 526 532
    542 543 557 562 565 567 568 570 573 576 604 605 612 614 619 621 625 627 635 645 652 655 675 677
    678 682 683 687 704 707 716 720 731 733 734 735 737 739 744 747 758 760 761 765 768 774 779 781
    786 801 806 808 811 815 817 821 826 837 839 842 845 849 850 853 862 866 873 874 877 879 887 888
    890 899 900 909 910 917 923 924 928 929 932 935 938 945 947 950 951 954 957 962 963 964 967 970
    972 973 975 978 988
    """.split(),
    np.int32,
)
"""The places of the classes among the 1000 of ImageNet, both sorted by WordNet id."""


def load(config: ConfigDict, seed: int) -> Dataset:
    """Returns Tiny ImageNet; its official val split is the test split here.

    `source` is the zip or the extracted folder, or '' to download the zip.
    """
    source = paths.get_source_path(config) or download_zip(paths.get_data_dir(config))
    builder = _prepare(source, paths.get_data_dir(config))
    metadata = builder.info.metadata
    pools = {}
    for split, counts in metadata["counts"].items():
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        if len(labels) != len(records):
            raise UserError(
                f"{builder.data_path} is damaged; delete that folder and start again to prepare it again."
            )
        picture_digests, names = _mark_copies(metadata["copies"], split, len(labels))
        contents = _read_or_write_contents(builder, split, records)
        source = _Records(records, split, labels, picture_digests, contents, names)
        pools[split] = splits.Pool(source, labels)
    parts, notes = splits.make_splits(
        "tiny_imagenet", config, seed, train=pools["train"], test=pools["val"]
    )
    skipped = [(name, reason) for name, reason in metadata["skipped"]]
    return Dataset(
        "tiny_imagenet",
        parts,
        list(metadata["classes"]),
        (64, 64, 3),
        _describe(metadata) + notes,
        skipped,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Records:
    """Prepared pictures, decoded with Pillow to the same numbers on every machine."""

    records: Sequence[Mapping]
    split: str
    labels: np.ndarray
    digests: np.ndarray
    contents: np.ndarray
    names: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def files(self) -> list[str]:
        """Number of each picture in its split, because the prepared ones have no names."""
        return [f"picture {index} of {self.split}" for index in range(len(self.records))]

    def __getitem__(self, index: int) -> Example:
        record = self.records[index]
        name = f"Picture {index} of the prepared Tiny ImageNet"
        picture = pictures.read_picture(record["image"], name)
        return {"inputs": picture, "label": np.int32(record["label"])}


def _describe(metadata: Mapping) -> list[str]:
    notes = ["test is the official val split: the official test split has no labels."]
    for split, official, name in (
        ("train", OFFICIAL_TRAIN, "training"),
        ("val", OFFICIAL_VAL, "val"),
    ):
        count = sum(metadata["counts"][split])
        if count != official:
            notes.append(f"{count:,} of the official {official:,} {name} pictures: a subset.")
    counts = zip(metadata["classes"], metadata["counts"]["train"], strict=True)
    if absent := [name for name, count in counts if not count]:
        notes.append(f"train has no usable pictures of {', '.join(absent)}.")
    return notes


def _mark_copies(copies: list, split: str, count: int) -> tuple[np.ndarray, dict[int, str]]:
    """Returns digests of a split's pictures that are equal for copies, and the names of the copied files."""
    picture_digests = np.arange(count, dtype=np.uint64) + (len(copies) + (split == "val") * 2**32)
    names = {}
    for number, group in enumerate(copies):
        for copy_split, position, name in group:
            if copy_split == split:
                picture_digests[position] = number
                names[position] = name
    return picture_digests, names


def _read_or_write_contents(
    builder: "TinyImagenet", split: str, records: Sequence[Mapping]
) -> np.ndarray:
    """Returns the digest of every encoded picture; they are computed once and kept beside the records."""
    file = Path(builder.data_path) / f"contents-{split}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        contents = np.load(file, allow_pickle=False)
        if contents.shape == (len(records),) and contents.dtype == np.uint64:
            return contents
    contents = np.array([digests.compute_digest(one["image"]) for one in records], np.uint64)
    with (
        contextlib.suppress(OSError),
        replace_file(file) as temporary,
        open(temporary, "wb") as out,
    ):
        np.save(out, contents)  # a folder that cannot be written costs the time again
    return contents


# ---------------------------------------------------------------- preparation


@dataclasses.dataclass
class _Config(tfds.core.BuilderConfig):
    """One prepared copy; its name is the fingerprint of the files it was made from."""

    source: str = ""


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """Writes the encoded pictures into array_record files, class after class."""

    VERSION = tfds.core.Version("1.1.0")
    # Keeps TFDS from looking for a list of checksums next to this file, which needs importlib_resources.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(64, 64, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=None),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="http://cs231n.stanford.edu/",
            # Keeps the order of the classes, so that the counts per class determine all labels.
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        files = open_files(Path(self.builder_config.source))
        layout = read_layout(files)
        self.info.features["label"].names = list(layout.wnids)
        self.info.metadata.update(classes=list(layout.classes), skipped=[], counts={}, copies=[])
        by_digest: dict[int, list] = {}
        return {
            "train": self._generate_examples(files, layout, "train", by_digest),
            "val": self._generate_examples(files, layout, "val", by_digest),
        }

    def _generate_examples(
        self, files: "Files", layout: "Layout", split: str, by_digest: dict[int, list]
    ) -> Iterator[tuple[int, dict]]:
        counts = [0] * len(layout.wnids)
        for name, label in layout.members[split]:
            try:
                encoded = files.read(name)
                shape = pictures.decode_picture(encoded).shape
                reason = "" if shape == (64, 64, 3) else f"{shape[1]} by {shape[0]}, not 64 by 64"
            except Exception as error:  # From zip, zlib or Pillow.
                reason = pictures.describe_error(error)
            if reason:
                self.info.metadata["skipped"].append([name, reason])
                continue
            number = sum(counts)
            counts[label] += 1
            digest = digests.compute_digest(encoded)
            by_digest.setdefault(digest, []).append([split, number, name])
            yield number, {"image": encoded, "label": label}
        if not sum(counts):
            skipped = self.info.metadata["skipped"]
            raise UserError(
                f"Tiny ImageNet: {self.builder_config.source} has no usable picture below {split} "
                f"({': '.join(skipped[-1])}). Give the official zip as --config.data.source=PATH."
            )
        self.info.metadata["counts"][split] = counts
        self.info.metadata["copies"] = [same for same in by_digest.values() if len(same) > 1]


def _prepare(source: Path, data_dir: Path) -> TinyImagenet:
    files = open_files(source)
    # pyrefly: ignore [unexpected-keyword]
    config = _Config(name=files.compute_fingerprint(), source=str(source), description="")
    builder = _make_builder(data_dir, config)
    _delete_leftovers(builder.data_path.parent)
    with _silence_tfds():
        is_prepared = builder.is_prepared()
    if is_prepared:
        return builder
    read_layout(files)  # Raises before anything is written.
    print_line(f"Preparing {source} (once) in {builder.data_path}")
    start = time.monotonic()
    try:
        # TFDS writes into a temporary folder and renames it at the end.
        with _silence_tfds():
            builder.download_and_prepare(download_dir=data_dir / "downloads")
    except OSError as error:
        # Another process may have renamed its folder first; its copy is just as good.
        builder = _make_builder(data_dir, config)
        if not builder.is_prepared():
            raise UserError(
                f"Tiny ImageNet could not be prepared in {data_dir} ({error}). Make room or choose another "
                "folder with --config.data.dir=PATH."
            ) from error
    print_line(f"Prepared in {time.monotonic() - start:.0f} s.")
    return builder


def _make_builder(data_dir: Path, config: _Config) -> TinyImagenet:
    with _silence_tfds():
        return TinyImagenet(data_dir=data_dir, config=config, file_format="array_record")


def _delete_leftovers(folder: str | os.PathLike) -> None:
    """Deletes the folders of killed preparations; one that is still running was written to recently."""
    for leftover in Path(folder).glob("incomplete.*"):
        with contextlib.suppress(OSError):
            if time.time() - max(f.stat().st_mtime for f in (leftover, *leftover.iterdir())) > 3600:
                shutil.rmtree(leftover)


@contextlib.contextmanager
def _silence_tfds() -> Iterator[None]:
    """Suppresses TFDS's prints of unknown sizes and warnings of new folders, but not its progress bars."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


# ---------------------------------------------------------------- files


@dataclasses.dataclass(frozen=True, eq=False)
class ZipFiles:
    """The files below one folder of a zip, which is never extracted."""

    archive: zipfile.ZipFile
    root: str

    def __str__(self) -> str:
        return str(self.archive.filename)

    @functools.cached_property
    def infos(self) -> dict[str, zipfile.ZipInfo]:
        """The zip's files by their full names."""
        return archives.list_zip(self.archive)

    def list_names(self) -> Iterator[str]:
        """Yields the names of the files, relative to the root."""
        for name in self.infos:
            if name.startswith(self.root):
                yield name[len(self.root) :]

    def read(self, name: str) -> bytes:
        """Returns a file's content; the zip's checksum is verified."""
        return archives.read_zip(self.archive, self.infos[self.root + name])

    def compute_fingerprint(self) -> str:
        """Returns a short name for the content, from the checksums in the zip's directory."""
        return _hash_lines(f"{i.filename} {i.file_size} {i.CRC}" for i in self.archive.infolist())


@dataclasses.dataclass(frozen=True, eq=False)
class FolderFiles:
    """The files below a folder."""

    root: Path

    def __str__(self) -> str:
        return str(self.root)

    def list_names(self) -> Iterator[str]:
        """Yields the names of the files, relative to the root."""
        for folder, folders, files in os.walk(self.root):
            folders.sort()
            prefix = Path(folder).relative_to(self.root).as_posix()
            yield from (f"{prefix}/{file}".removeprefix("./") for file in sorted(files))

    def read(self, name: str) -> bytes:
        """Returns a file's content."""
        return (self.root / name).read_bytes()

    def compute_fingerprint(self) -> str:
        """Returns a short name for the content, from the names, sizes and times of the files."""
        stats = ((name, (self.root / name).stat()) for name in self.list_names())
        return _hash_lines(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)


Files = ZipFiles | FolderFiles


@dataclasses.dataclass(frozen=True)
class Layout:
    """Classes and pictures of the data set.

    Attributes:
        wnids: the WordNet id of each class, sorted; the position is the label.
        classes: the first synonym of each class.
        members: for `train` and `val`, `(file, label)` in the order of the labels.
    """

    wnids: Sequence[str]
    classes: Sequence[str]
    members: dict[str, Sequence[tuple[str, int]]]


def download_zip(data_dir: Path) -> Path:
    """Returns the official zip in the data folder; downloads it first if it is not there."""
    from experiments.data import downloads  # Needs pooch, which reading does not.

    try:
        return downloads.download_file(URL, MD5, data_dir / "downloads" / ZIP, SIZE)
    except downloads.DownloadError as error:
        raise _make_error(f"{error}.") from error


def open_files(source: Path) -> Files:
    """Opens the zip, the extracted folder or the folder that holds either."""
    if not source.exists():
        raise _make_error(f"{source} does not exist.")
    if source.is_dir():
        for root in (source, source / "tiny-imagenet-200"):
            if (root / "wnids.txt").is_file():
                return FolderFiles(root)
        if (source / ZIP).is_file():
            return open_files(source / ZIP)
        raise _make_error(f"There is no wnids.txt in {source} or its tiny-imagenet-200.")
    try:
        archive = zipfile.ZipFile(source)
        names = archives.list_zip(archive)
    except archives.ArchiveError as error:
        raise _make_error(f"{source} is refused: {error}.") from error
    except (*archives.ERRORS, OSError, ValueError) as error:
        raise _make_error(
            f"{source} is not a complete zip file ({error}); it may be a broken download: delete it."
        ) from error
    lists = [name for name in names if name == "wnids.txt" or name.endswith("/wnids.txt")]
    lists = [name for name in lists if not name.startswith("__MACOSX/")]
    if not lists:
        raise _make_error(f"There is no wnids.txt in {source}.")
    return ZipFiles(archive, min(lists, key=len).removesuffix("wnids.txt"))


def read_layout(files: Files) -> Layout:
    """Lists the pictures and checks that none is missing."""
    names = sorted(n for n in files.list_names() if not n.rpartition("/")[2].startswith("."))
    known = set(names)
    for name in ("wnids.txt", "words.txt", "val/val_annotations.txt"):
        if name not in known:
            raise _make_error(f"{name} is missing from {files}.")
    wnids = sorted(set(_read_text(files, "wnids.txt").split()))
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    members = {
        "train": _list_train(files, names, labels),
        "val": _list_val(files, known, labels),
    }
    for split in members.values():
        split.sort(key=lambda member: (member[1], member[0]))
    return Layout(wnids, _read_class_names(files, wnids), members)


def _list_train(
    files: Files, names: Sequence[str], labels: Mapping[str, int]
) -> list[tuple[str, int]]:
    members = []
    for name in names:
        match name.split("/"):
            case ["train", wnid, "images", _]:
                if wnid not in labels:
                    raise _make_error(f"train/{wnid} is not a class of wnids.txt.")
                members.append((name, labels[wnid]))
    present = {label for _, label in members}
    empty = sorted(wnid for wnid, label in labels.items() if label not in present)
    if empty:
        raise _make_error(
            f"{files} has no training pictures for {len(empty)} of {len(labels)} classes "
            f"({_shorten_list(empty)})."
        )
    return members


def _list_val(files: Files, known: set[str], labels: Mapping[str, int]) -> list[tuple[str, int]]:
    lines = _read_text(files, "val/val_annotations.txt").splitlines()
    rows = [line.split("\t") for line in lines if line.strip()]
    unknown = sorted({row[1] if len(row) > 1 else row[0] for row in rows} - labels.keys())
    if unknown:
        raise _make_error(
            f"val_annotations.txt names classes not in wnids.txt ({_shorten_list(unknown)})."
        )
    members = [(f"val/images/{row[0]}", labels[row[1]]) for row in rows]
    absent = sorted(name for name, _ in members if name not in known)
    if absent:
        raise _make_error(
            f"{files} lacks {len(absent)} of the {len(members)} pictures of val_annotations.txt "
            f"({_shorten_list(absent)})."
        )
    return members


def _read_text(files: Files, name: str) -> str:
    try:
        return files.read(name).decode()
    except (archives.ArchiveError, *archives.ERRORS, OSError, ValueError) as error:
        raise _make_error(f"{name} of {files} cannot be read ({error}).") from error


def _read_class_names(files: Files, wnids: Sequence[str]) -> list[str]:
    rows = (line.partition("\t") for line in _read_text(files, "words.txt").splitlines())
    words = {wnid.strip(): synonyms.split(",")[0].strip() for wnid, _, synonyms in rows}
    names = [words.get(wnid) or wnid for wnid in wnids]
    # Two classes may share their first synonym; the id tells them apart in reports.
    return [
        f"{name} ({wnid})" if names.count(name) > 1 else name
        for name, wnid in zip(names, wnids, strict=True)
    ]


def _make_error(problem: str) -> UserError:
    """Returns the error for missing or damaged files, with where to get them."""
    return UserError(
        f"Tiny ImageNet: {problem} Either download {URL} yourself and give the zip or the extracted folder "
        "as --config.data.source=PATH, or start without a source on a machine with a network, which "
        "downloads it."
    )


def _shorten_list(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _hash_lines(lines: Iterator[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
