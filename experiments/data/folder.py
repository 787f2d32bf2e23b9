"""A person's own pictures: `root/<split>/<class>/*`, or `root/<class>/*` to be split here."""

import concurrent.futures
import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from experiments.core import digests as contents
from experiments.core import listing
from experiments.core.errors import UserError
from experiments.data import pictures, places, splits
from experiments.data.dataset import Dataset, Example

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


@dataclasses.dataclass(frozen=True, eq=False)
class _Files:
    """Pictures that stay in their files until they are asked for."""

    paths: Sequence[pathlib.Path]
    labels: np.ndarray
    digests: Sequence[int]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        path = self.paths[index]
        return {"inputs": pictures.read(path, path), "label": self.labels[index]}


def load(config, seed: int) -> Dataset:
    """Returns the pictures of a folder, one class per sub-folder, as uint8 RGB.

    Every file is opened once to see whether it can be used; those that cannot are in `skipped`.

    Args:
        config: the data part of the configuration; `source` is the folder.
        seed: decides the splits that the folder does not have.

    Raises:
        UserError: if the folder is not laid out like this, or holds too little.
    """
    root = places.source_path(config)
    if root is None:
        raise UserError(f"No folder of pictures was given; {_WAYS}")
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; {_WAYS}")
    roots = _split_folders(root)
    listing = {split: _list_classes(folder) for split, folder in roots.items()}
    paths = [path for classes in listing.values() for found in classes.values() for path in found]
    seen, skipped = _check_files(root, paths)
    usable = {
        split: {name: [path for path in found if path in seen] for name, found in classes.items()}
        for split, classes in listing.items()
    }
    notes = _check_classes(root, roots, usable)
    if skipped:
        notes.append(f"{len(skipped):,} files could not be used and were skipped.")

    classes = sorted(name for name, found in usable["train"].items() if found)
    if len(classes) < 2:
        why = (
            f" (skipped {len(skipped):,} files, such as {': '.join(skipped[0])})" if skipped else ""
        )
        raise UserError(
            f"{roots['train']} has usable pictures for {len(classes)} class(es){why}; at least two "
            f"class folders with pictures are needed. {_WAYS[0].upper() + _WAYS[1:]}"
        )
    pools = {split: _pool(root, found, classes, seen) for split, found in usable.items()}
    for split, pool in pools.items():
        if not len(pool.labels):
            raise UserError(f"{roots[split]} has no usable pictures; add some or remove it.")
    parts, remarks = splits.arrange(root.name, config, seed, **pools)
    (height, width), *others = {size for size, _ in seen.values()}
    if others:
        height = width = 0
        notes.append("The pictures differ in size; --config.image_size makes them alike.")
    return Dataset(root.name, parts, classes, (height, width, 3), notes + remarks, skipped)


_WAYS = (
    "give --config.data.source=PATH, where PATH holds one folder of pictures per class, or the "
    "folders train, validation and test with one folder per class in each."
)


def _split_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the folder of each split that is there; the root itself is train if none is."""
    found: dict[str, pathlib.Path] = {}
    others = []
    for folder in _folders(root):
        split = _SPLITS.get(folder.name.lower())
        if split is None:
            others.append(folder.name)
        elif split in found:
            raise UserError(
                f"{root} has both {found[split].name} and {folder.name} for the {split} split; "
                "remove one."
            )
        else:
            found[split] = folder
    if "train" in found:
        return found
    if found and not others:
        raise UserError(f"{root} has {', '.join(sorted(found))} but no folder train; {_WAYS}")
    return {"train": root}


def _list_classes(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    classes = {child.name: list(listing.files_below(child)) for child in _folders(folder)}
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"The class folder {os.fsencode(name)!r} in {folder} has a name that is not UTF-8; "
                "rename it."
            ) from error
    return classes


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _check_classes(root: pathlib.Path, roots: dict, listing: dict) -> list[str]:
    """Complains of classes that cannot be learned, and notes those that are empty."""
    notes = []
    known = {name for name, files in listing["train"].items() if files}
    for split, found in listing.items():
        empty = sorted(name for name, files in found.items() if not files)
        if empty:
            notes.append(f"No usable pictures in {_names(roots[split], root, empty)}.")
        strange = sorted(name for name, files in found.items() if files and name not in known)
        if strange:
            raise UserError(
                f"{_names(roots[split], root, strange)}: no such class in {roots['train']}; "
                "add pictures of it there, or remove it."
            )
        absent = sorted(known - {name for name, files in found.items() if files} - set(empty))
        if absent:
            notes.append(f"{split} has no pictures of {', '.join(absent)}.")
    return notes


def _names(folder: pathlib.Path, root: pathlib.Path, names: Sequence[str]) -> str:
    return ", ".join(str((folder / name).relative_to(root)) for name in names)


def _check_files(
    root: pathlib.Path, paths: Sequence[pathlib.Path]
) -> tuple[dict[pathlib.Path, tuple[tuple[int, int], int]], list[tuple[str, str]]]:
    """Returns size and content's number of each usable picture, and the others with the reason."""
    usable, skipped = {}, []
    with pictures.quiet(), concurrent.futures.ThreadPoolExecutor() as pool:
        for path, (size, seen) in zip(paths, pool.map(_check_file, paths), strict=True):
            if size is None:
                skipped.append((str(path.relative_to(root)), seen))
            else:
                usable[path] = (size, seen)
    return usable, skipped


def _check_file(path: pathlib.Path) -> tuple[tuple[int, int], int] | tuple[None, str]:
    size, reason = pictures.check(path)
    return (None, reason) if size is None else (size, contents.file_digest(path))


def _pool(root: pathlib.Path, found: dict, classes: Sequence[str], seen: dict) -> splits.Pool:
    members = [(path, label) for label, name in enumerate(classes) for path in found.get(name, ())]
    paths = [path for path, _ in members]
    labels = np.array([label for _, label in members], dtype=np.int32)
    digests = [seen[path][1] for path in paths]
    files = _Files(paths, labels, digests, [str(path.relative_to(root)) for path in paths])
    return splits.Pool(files, labels)
