"""Pascal VOC 2012 segmentation: 20 classes of objects and the background, for every pixel.

The official tar is downloaded if no source is set, and unpacked once.
"""

import hashlib
import tarfile
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from experiments.core.console import print_line
from experiments.core.errors import UserError
from experiments.core.files import replace_file, write_text
from experiments.core.words import count_noun
from experiments.data import archives, masks, paths
from experiments.data.dataset import Dataset

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
OFFICIAL = {"train": 1_464, "val": 1_449}
"""Number of pictures in the official splits."""

URL = "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
MD5 = "6cd6e144f989b92b3379bac3b3de84fd"
SIZE = 2_000_000_000
TAR = "VOCtrainval_11-May-2012.tar"

_LISTS = {split: f"ImageSets/Segmentation/{split}.txt" for split in ("train", "val")}
# Written last: if it exists, everything that the lists name has been unpacked. Versions before the masks of
# objects did not write it, and what they unpacked is completed.
_MARK = "unpacked.txt"


def load(config: ConfigDict, seed: int) -> Dataset:
    """Returns the pictures with their masks; the official val split is the test split here.

    `source` is the official tar, the folder VOCdevkit or VOC2012, or '' to download the tar. Pictures and
    masks stay in their files; every pair is read once to check that it can be used. Validation is taken from
    train, stratified by the rarest class of each picture. Examples are `inputs`, uint8 `[H, W, 3]`, and
    `label`, uint8 `[H, W]`, with 255 on the borders of objects, which are ignored.
    """
    root = find_root(paths.get_source_path(config), paths.get_data_dir(config))
    checked, skipped = check_lists(root)
    by_split = {"train": checked["train"], "test": checked["val"]}
    notes = describe_subset(checked)
    return masks.join_splits("voc2012", config, seed, by_split, CLASSES, notes, skipped)


def check_lists(root: Path) -> tuple[dict[str, masks.CheckedPairs], list[tuple[str, str]]]:
    """Returns the usable pairs of `train` and `val`, and `(file, reason)` of the others."""
    checked, skipped = {}, []
    for split, names in read_lists(root).items():
        pairs = [(root / get_picture_path(name), root / get_mask_path(name)) for name in names]
        checked[split] = masks.check_pairs(root, pairs, len(CLASSES))
        skipped += checked[split].skipped
        if not len(checked[split].pairs):
            raise UserError(
                f"VOC 2012: none of the {count_noun(len(names), 'picture')} of {split}.txt in "
                f"{root} can be used "
                f"({': '.join(skipped[-1])}). Give the complete VOCdevkit folder or the official tar as "
                "--config.data.source=PATH."
            )
    masks.check_palettes(checked.values(), "Restore the official masks.")
    return checked, skipped


def describe_subset(checked: dict[str, masks.CheckedPairs]) -> list[str]:
    """Returns notes on the splits: their origin, and which of them are incomplete."""
    notes = ["test is the official val split: the official test split has no public masks."]
    for split, official in OFFICIAL.items():
        count = len(checked[split].pairs)
        if count != official:
            notes.append(f"{count:,} of the official {official:,} {split} pictures: a subset.")
    return notes


# ---------------------------------------------------------------- files


def get_picture_path(name: str) -> str:
    """Returns the path of a picture below VOC2012."""
    return f"JPEGImages/{name}.jpg"


def get_mask_path(name: str) -> str:
    """Returns the path of a picture's class mask below VOC2012."""
    return f"SegmentationClass/{name}.png"


def get_object_path(name: str) -> str:
    """Returns the path of a picture's mask of objects below VOC2012."""
    return f"SegmentationObject/{name}.png"


def find_root(source: Path | None, data_dir: Path) -> Path:
    """Returns the folder VOC2012; downloads the tar to `data_dir` and unpacks it there if necessary.

    Args:
        source: the official tar, the folder VOC2012, the VOCdevkit around it or the folder around that;
            None to download the tar.
    """
    if source is None:
        from experiments.data import downloads  # Needs pooch, which reading does not.

        try:
            tar = downloads.download_file(URL, MD5, data_dir / "downloads" / TAR, SIZE)
        except downloads.DownloadError as error:
            raise _make_error(f"{error}.") from error
        return unpack_tar(tar, data_dir)
    if not source.exists():
        raise _make_error(f"{source} does not exist.")
    if source.is_file():
        return unpack_tar(source, data_dir)
    for root in (source, source / "VOC2012", source / "VOCdevkit" / "VOC2012"):
        if (root / "ImageSets" / "Segmentation").is_dir():
            return root
    if (source / TAR).is_file():
        return unpack_tar(source / TAR, data_dir)
    raise _make_error(
        f"There is no ImageSets/Segmentation in {source}, its VOC2012 or its VOCdevkit/VOC2012."
    )


def unpack_tar(tar: Path, data_dir: Path) -> Path:
    """Unpacks the pictures that have masks, their masks of classes and of objects, and the lists, once.

    That is a sixth of the tar. An interrupted call continues where it stopped, and two processes may
    unpack at the same time: every file appears whole, and the one that marks completion last. Each tar
    gets its own folder below `data_dir`; the result is the path of VOC2012 there.
    """
    state = tar.stat()
    name = hashlib.sha256(f"{tar} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:16]
    root = data_dir / "voc2012" / name / "VOCdevkit" / "VOC2012"
    if (root / _MARK).is_file():
        return root
    try:
        archive = tarfile.open(tar)
    except (*archives.ERRORS, OSError) as error:
        raise _make_error(f"{tar} is not a tar file ({error}).") from error
    print_line(f"Unpacking {tar} (once) to {root}")
    with archive:
        try:
            _unpack_members(archive, tar, root)
        except archives.ArchiveError as error:
            raise _make_error(f"{tar} is refused: {error}.") from error
        except archives.ERRORS as error:
            raise _make_error(
                f"{tar} is not complete ({error}); it may be a broken download: delete it."
            ) from error
        except OSError as error:
            raise UserError(
                f"VOC 2012 could not be unpacked to {data_dir} ({error}). Make room or choose another folder "
                "with --config.data.dir=PATH."
            ) from error
    return root


def _unpack_members(archive: tarfile.TarFile, tar: Path, root: Path) -> None:
    members = _index_members(archive)
    for path in _LISTS.values():
        if path not in members:
            raise _make_error(f"{path} is missing from {tar}.")
    wanted = _select_members(archive, members)
    # Reading in the order of the file is fastest; the lists still come last.
    wanted.sort(key=lambda path: members[path].offset)
    for path in [*wanted, *_LISTS.values()]:
        _write_member(root / path, archive, members[path])
    write_text(root / _MARK, "Pictures, masks of classes and masks of objects.\n")


def read_lists(root: Path) -> dict[str, Sequence[str]]:
    """Returns the names of the pictures in `train` and `val`, in the order of the lists."""
    lists = {}
    for split, path in _LISTS.items():
        try:
            text = (root / path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _make_error(f"{root / path} cannot be read ({error}).") from error
        lists[split] = _parse_names(text)
        if not lists[split]:
            raise _make_error(f"{root / path} lists no pictures.")
    shared = sorted(set(lists["train"]) & set(lists["val"]))
    if shared:
        raise UserError(
            f"VOC 2012: {len(shared)} pictures, such as {shared[0]}, are in both train.txt and val.txt of "
            f"{root / 'ImageSets/Segmentation'}, and a network would be tested on what it was trained on. "
            "Restore the official lists."
        )
    return lists


def _parse_names(text: str) -> list[str]:
    # The lists of the other VOC tasks repeat names and put more columns after them.
    return list(dict.fromkeys(line.split()[0] for line in text.splitlines() if line.strip()))


def _index_members(archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """Returns the files below VOC2012 by their path there; all other files are ignored."""
    members = {}
    for member in archives.iterate_tar(archive):
        parts = member.name.split("/")
        if "VOC2012" in parts and ".." not in parts:
            inside = parts[parts.index("VOC2012") + 1 :]
            members["/".join(inside)] = member
    return members


def _select_members(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> list[str]:
    """Returns the paths of the listed pictures and their masks; not all tars have masks of objects."""
    names = []
    for path in _LISTS.values():
        content = archives.read_tar(archive, members[path])
        names += _parse_names(content.decode("utf-8", errors="replace"))
    kinds = (get_picture_path, get_mask_path, get_object_path)
    wanted = [get_path(name) for name in names for get_path in kinds]
    return [path for path in dict.fromkeys(wanted) if path in members]


def _write_member(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    if path.is_file() and path.stat().st_size == member.size:
        return
    with replace_file(path) as temporary:
        temporary.write_bytes(archives.read_tar(archive, member))


def _make_error(problem: str) -> UserError:
    """Returns the error for missing or damaged files, with where to get them."""
    return UserError(
        f"VOC 2012: {problem} Either download {URL} yourself and give the tar, or its VOCdevkit folder, as "
        "--config.data.source=PATH, or start without a source on a machine with a network, which downloads "
        "it."
    )
