"""The user's own pictures: `root/<split>/<class>/*`, or `root/<class>/*` to be split here."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.core import listing
from experiments.core.errors import UserError
from experiments.core.words import count_noun
from experiments.data import paths, pictures, splits, table
from experiments.data.dataset import Dataset

_LAYOUT = (
    "Give --config.data.source=PATH, where PATH holds one folder of pictures per class, or the folders "
    "train, validation and test with one folder per class in each, or PATH is a CSV with the columns path "
    "and label."
)

ClassFiles = Mapping[str, Sequence[Path]]
"""The files of each class folder, by the folder's name."""


def load(config: ConfigDict, seed: int) -> Dataset:
    """Returns the pictures of the folder `source`, one class per subfolder, as uint8 RGB.

    `source` may be a table of pictures and labels instead, see `table`.

    Every file is opened once to check that it can be used; the unusable ones are in `skipped`.
    """
    root = paths.get_source_path(config)
    if root is None:
        raise UserError(f"No folder of pictures is set. {_LAYOUT}")
    if root.is_file():
        return table.load_table(root, config, seed)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder. {_LAYOUT}")
    folders = _find_split_folders(root)
    listed = {split: _list_classes(folder) for split, folder in folders.items()}
    files = [
        path for classes in listed.values() for members in classes.values() for path in members
    ]
    checked, skipped = pictures.check_all(root, files, pictures.check_and_digest)
    usable = {
        split: {
            name: [path for path in members if path in checked] for name, members in classes.items()
        }
        for split, classes in listed.items()
    }
    notes = _check_classes(root, folders, usable)

    classes = sorted(name for name, members in usable["train"].items() if members)
    if len(classes) < 2:
        why = (
            f" (skipped {count_noun(len(skipped), 'file')}, such as {': '.join(skipped[0])})"
            if skipped
            else ""
        )
        raise UserError(
            f"{folders['train']} has usable pictures for "
            f"{count_noun(len(classes), 'class', 'classes')}{why}; at least two class "
            f"folders with pictures are needed. {_LAYOUT}"
        )
    pools = {split: _make_pool(root, files, classes, checked) for split, files in usable.items()}
    for split, pool in pools.items():
        if not len(pool.labels):
            raise UserError(f"{folders[split]} has no usable pictures; add some or remove it.")
    parts, split_notes = splits.make_splits(root.name, config, seed, **pools)
    shape = pictures.get_common_shape({size for size, _ in checked.values()})
    return Dataset(root.name, parts, classes, shape, notes + split_notes, skipped)


def _find_split_folders(root: Path) -> dict[str, Path]:
    """Returns the folder of each split; the root itself is train if it has no split folders."""
    folders: dict[str, Path] = {}
    others = []
    for folder in _list_folders(root):
        split = splits.ALIASES.get(folder.name.lower())
        if split is None:
            others.append(folder.name)
        elif split in folders:
            raise UserError(
                f"{root} has both {folders[split].name} and {folder.name} for the {split} split; remove one."
            )
        else:
            folders[split] = folder
    if "train" in folders:
        return folders
    if folders and not others:
        raise UserError(f"{root} has {', '.join(sorted(folders))} but no folder train. {_LAYOUT}")
    return {"train": root}


def _list_classes(folder: Path) -> ClassFiles:
    classes = {child.name: list(listing.list_files(child)) for child in _list_folders(folder)}
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"The class folder {os.fsencode(name)!r} in {folder} has a name that is not UTF-8; rename it."
            ) from error
    return classes


def _list_folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _check_classes(
    root: Path, folders: Mapping[str, Path], usable: Mapping[str, ClassFiles]
) -> list[str]:
    """Returns notes on empty classes.

    Raises:
        UserError: if a split has a class without training pictures.
    """
    notes = []
    trained = {name for name, files in usable["train"].items() if files}
    for split, classes in usable.items():
        empty = sorted(name for name, files in classes.items() if not files)
        if empty:
            notes.append(f"No usable pictures in {_join_names(folders[split], root, empty)}.")
        unknown = sorted(name for name, files in classes.items() if files and name not in trained)
        if unknown:
            raise UserError(
                f"{_join_names(folders[split], root, unknown)}: there is no such class in "
                f"{folders['train']}; add pictures of it there, or remove it."
            )
        absent = sorted(trained - classes.keys())
        if absent:
            notes.append(f"{split} has no pictures of {', '.join(absent)}.")
    return notes


def _join_names(folder: Path, root: Path, names: Sequence[str]) -> str:
    return ", ".join(str((folder / name).relative_to(root)) for name in names)


def _make_pool(
    root: Path,
    files: ClassFiles,
    classes: Sequence[str],
    checked: Mapping[Path, tuple[tuple[int, int], int]],
) -> splits.Pool:
    members = [(path, label) for label, name in enumerate(classes) for path in files.get(name, ())]
    in_order = [path for path, _ in members]
    labels = np.array([label for _, label in members], dtype=np.int32)
    source = pictures.PictureFiles(
        in_order,
        labels,
        [checked[path][1] for path in in_order],
        [str(path.relative_to(root)) for path in in_order],
    )
    return splits.Pool(source, labels)
