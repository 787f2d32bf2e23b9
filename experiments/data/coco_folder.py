"""The user's own objects in COCO's format: pictures, and a JSON of annotations for each split or for all."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.core import digests
from experiments.core.checked_json import (
    Anything,
    ListOf,
    Number,
    Record,
    Text,
    find_fault,
    read_json,
)
from experiments.core.errors import UserError
from experiments.core.files import MEGABYTE
from experiments.core.words import count_noun
from experiments.data import instances, masks, paths, pictures, splits
from experiments.data.coco_annotations import (
    AnnotatedPictures,
    Annotation,
    check_annotation,
    outline_box,
)
from experiments.data.dataset import Dataset

_LAYOUT = (
    "Give --config.data.source=PATH, where PATH is a JSON file in COCO's format, or a folder that has such "
    "files in it or in its folder annotations: instances_train.json, instances_val.json and "
    "instances_test.json, train.json and so on, or one file for all pictures. Pictures lie where their "
    "file_name says: below the JSON's folder, below PATH or its folder images, or below a folder there "
    "with the name of the split."
)
_BACKGROUND = "background"
_PREFIX = "instances_"
_SPLIT = re.compile(rf"(?:^|[-_. ])({'|'.join(splits.ALIASES)})(?:\d{{4}})?$")
_MAX_BYTES = 2000 * MEGABYTE  # COCO's own largest file has 450
_LONGEST = 10**8
_FILE = Record(
    {
        name: ListOf(Anything(), longest=_LONGEST)
        for name in ("images", "annotations", "categories")
    },
    needed=("images", "annotations", "categories"),
)
_CATEGORY = Record({"id": Number(whole=True), "name": Text()}, needed=("id", "name"))
_SHOWN = 5  # bad annotations of a picture

Skipped = list[tuple[str, str]]


def load(config: ConfigDict, seed: int) -> Dataset:
    """Returns pictures with the objects of COCO's annotation files.

    `source` is a folder, or one JSON file. Classes are the background and the categories of the training file
    in the order of their ids, whatever these are. Masks are polygons or run lengths. A region with `iscrowd`
    is void. A picture without annotations has no objects. A map of objects has one object for each pixel, the
    smallest that lies there; `annotations` have all of every mask.

    Pictures that are missing or cannot be read are in `skipped`. Annotations that cannot be used are in
    `incomplete`, in a row for each picture; if one has a box, its pixels are void. If there is one file, its
    pictures are split here, stratified by the rarest class of each picture. Examples as `AnnotatedPictures`
    has them.
    """
    root = paths.get_source_path(config)
    if root is None:
        raise UserError(f"No annotations are set. {_LAYOUT}")
    if root.is_file():
        files = {"train": root}
        root = root.parent.parent if root.parent.name.lower() == "annotations" else root.parent
    elif root.is_dir():
        files = find_files(root)
    else:
        raise UserError(f"{root} does not exist. {_LAYOUT}")
    read = {split: read_file(file) for split, file in files.items()}
    classes = [_BACKGROUND, *read["train"].categories.values()]
    parts, notes, skipped, incomplete = {}, [], [], []
    for split, content in read.items():
        parts[split], unusable, left_out = check_file(root, content, classes)
        skipped += unusable
        incomplete += left_out
        if not len(parts[split].source):
            why = f" ({': '.join(unusable[-1])})" if unusable else ""
            raise UserError(f"{content.path} has no picture that can be used{why}. {_LAYOUT}")
        notes.append(f"{split}: objects are from {content.path}.")
    if incomplete:
        notes.append(
            f"Annotations that cannot be used are in {count_noun(len(incomplete), 'row')} of skipped.csv, "
            f"such as {': '.join(incomplete[0])}."
        )
    notes.append(
        "Where objects overlap, the map of objects has the smallest; metrics have all of each."
    )
    made = instances.join_splits(root.name, config, seed, parts, classes, notes, skipped)
    return dataclasses.replace(made, incomplete=incomplete)


# ---------------------------------------------------------------- files


def find_files(root: Path) -> dict[str, Path]:
    """Returns the annotation file of each split; a single one is for training, whatever its name.

    Raises:
        UserError: if there is none, none for training, or more than one for a split.
    """
    folders = sorted(
        path
        for path in root.iterdir()
        if path.is_dir() and path.name.lower() in ("annotations", *splits.ALIASES)
    )
    found = [
        path
        for folder in (root, *folders)
        for path in sorted(folder.glob("*.json"))
        if path.is_file() and not path.name.startswith(".")
    ]
    # COCO's own folder has captions and key points, too.
    found = [path for path in found if path.name.lower().startswith(_PREFIX)] or found
    if len(found) == 1:
        return {"train": found[0]}
    files: dict[str, Path] = {}
    for path in found:
        split = _find_split(path)
        if split in files:
            raise UserError(
                f"{root}: {files[split].relative_to(root)} and {path.relative_to(root)} are both for "
                f"{split}; move one of them elsewhere."
            )
        if split is not None:
            files[split] = path
    if "train" in files:
        return files
    names = ", ".join(str(path.relative_to(root)) for path in found[:_SHOWN])
    problem = f"no annotations for training, only {names}" if found else "no JSON file"
    raise UserError(f"{root} has {problem}. {_LAYOUT}")


def _find_split(path: Path) -> str | None:
    """Returns the split that a file is for by its name, or else by its folder's; None for neither."""
    match = _SPLIT.search(path.stem.lower())
    return splits.ALIASES.get(match[1] if match else path.parent.name.lower())


@dataclasses.dataclass(frozen=True)
class Content:
    """The content of an annotation file, of which no picture and no annotation is checked yet.

    Attributes:
        path: the file.
        categories: the name of each category by its id, ascending.
        images: the pictures.
        annotations: the annotations.
    """

    path: Path
    categories: Mapping[int, str]
    images: Sequence[Any]
    annotations: Sequence[Any]


def read_file(path: Path) -> Content:
    """Reads an annotation file and its categories.

    Raises:
        UserError: if it is no such file, or its categories do not have one id and one name each.
    """
    content = read_json(path, _FILE, _LAYOUT, _MAX_BYTES)
    categories: dict[int, str] = {}
    for number, category in enumerate(content["categories"]):
        if fault := find_fault(category, _CATEGORY, f"categories[{number}]"):
            raise UserError(f"{path} cannot be read: {fault}.")
        taken = ("", _BACKGROUND, *categories.values())
        if category["id"] in categories or category["name"] in taken:
            raise UserError(
                f"{path}: the category {category['id']}, {category['name']!r}, needs an id and a name of its "
                f"own; {_BACKGROUND} is where no object is."
            )
        categories[category["id"]] = category["name"]
    if not 0 < len(categories) < masks.IGNORE:
        raise UserError(
            f"{path} has {count_noun(len(categories), 'category', 'categories')}; it may have 1 to "
            f"{masks.IGNORE - 1}."
        )
    return Content(
        path, dict(sorted(categories.items())), content["images"], content["annotations"]
    )


# ---------------------------------------------------------------- pictures and annotations


def check_file(
    root: Path, content: Content, classes: Sequence[str]
) -> tuple[instances.CheckedObjects, Skipped, Skipped]:
    """Reads the pictures and the annotations of a file once, and keeps those that can be used.

    A picture is used without those of its annotations that cannot be used.

    Returns:
        The usable pictures, `(file, reason)` of the others, and a row with the number and the reasons for
        each usable picture of which annotations are left out.
    """
    numbers = _number_categories(content, classes)
    images, skipped = _locate_images(root, content)
    annotations, lost = _group_annotations(content)

    def check(path: Path):
        seen, reason = pictures.check_and_digest(path)
        if seen is None:
            return None, reason
        (height, width), digest = seen
        image = images[path]
        stated = [image.get("height", height), image.get("width", width)]
        if stated != [height, width]:
            return (
                None,
                f"{width} by {height}, but its annotations are for {stated[1]} by {stated[0]}",
            )
        named = annotations.get(image["id"], ())
        return ((height, width), digest, *_check_annotations(named, numbers, height, width)), ""

    usable, unusable = pictures.check_all(root, list(images), check)
    found = [good for _, _, good, _ in usable.values()]
    present = np.zeros((len(usable), len(classes)), bool)
    present[:, 0] = True
    counts = np.zeros(len(usable), int)
    for index, good in enumerate(found):
        of_objects = [one["category_id"] for one in good if not one["iscrowd"]]
        present[index, of_objects] = True
        counts[index] = len(of_objects)
    source = AnnotatedPictures(
        list(usable),
        found,
        [digest for _, digest, _, _ in usable.values()],
        [str(path.relative_to(root) if path.is_relative_to(root) else path) for path in usable],
        np.array([_compute_digest(good) for good in found], np.uint64),
    )
    bad = [
        (
            f"{content.path.name}: {images[path]['file_name']}",
            _describe_bad(bad, len(annotations[images[path]["id"]])),
        )
        for path, (*_, bad) in usable.items()
        if bad
    ]
    sizes = {size for size, *_ in usable.values()}
    checked = instances.CheckedObjects(source, sizes, present, counts)
    return checked, [*skipped, *unusable], [*lost, *bad]


def _number_categories(content: Content, classes: Sequence[str]) -> dict[int, int]:
    """Returns the class number of each category of a file; the training file decides on the classes.

    Raises:
        UserError: if an object has a category that the training file does not have.
    """
    numbers = {name: number for number, name in enumerate(classes[1:], 1)}
    for annotation in content.annotations:
        category = annotation.get("category_id") if isinstance(annotation, dict) else None
        name = content.categories.get(category) if isinstance(category, int) else None
        if name is not None and name not in numbers:
            raise UserError(
                f"{content.path} has objects of {name}, which the file for training does not have: add the "
                "category there, or remove them."
            )
    return {
        category: numbers[name] for category, name in content.categories.items() if name in numbers
    }


def _locate_images(root: Path, content: Content) -> tuple[dict[Path, dict[str, Any]], Skipped]:
    """Returns the entry of each picture by its path, and the entries without a picture."""
    folder, label = content.path.parent, content.path.stem.removeprefix(_PREFIX)
    match = _SPLIT.search(label.lower())
    names = dict.fromkeys([label, match[1]] if match else [label])
    bases = [folder]
    bases += [base / name for name in names for base in (root, root / "images", folder)]
    bases += [root / "images", root, folder / "images"]
    images: dict[Path, dict[str, Any]] = {}
    ids, skipped = set(), []
    for number, image in enumerate(content.images):
        key, name = (
            _get_id(image, "id"),
            image.get("file_name") if isinstance(image, dict) else None,
        )
        if key is None or not isinstance(name, str) or not name:
            skipped.append(
                (f"{content.path.name}: images[{number}]", "it has no id or no file_name")
            )
            continue
        candidates = (Path(os.path.normpath(base / name)) for base in bases)
        path = next((path for path in candidates if os.path.isfile(path)), None)
        if path is None:
            skipped.append((f"{content.path.name}: {name}", "there is no such picture"))
        elif key in ids or path in images:
            skipped.append((f"{content.path.name}: {name}", "its id or its file is there twice"))
        else:
            images[path] = image
        ids.add(key)
    return images, skipped


def _group_annotations(
    content: Content,
) -> tuple[dict[int | str, list[tuple[str, dict[str, Any]]]], Skipped]:
    """Returns name and content of the annotations by the id of their picture, and those of no picture."""
    groups: dict[int | str, list[tuple[str, dict[str, Any]]]] = {
        key: [] for image in content.images if (key := _get_id(image, "id")) is not None
    }
    lost = []
    for number, annotation in enumerate(content.annotations):
        own = _get_id(annotation, "id")
        name = f"annotations[{number}]" if own is None else f"annotation {own}"
        key = _get_id(annotation, "image_id")
        if key in groups:
            groups[key].append((name, annotation))
        else:
            lost.append(name)
    reason = (
        f"{count_noun(len(lost), 'annotation')} of no picture, such as {lost[0]}" if lost else ""
    )
    return groups, [(content.path.name, reason)] if lost else []


def _get_id(entry: Any, name: str) -> int | str | None:
    """Returns the id in a field of an entry of the file; None without one."""
    value = entry.get(name) if isinstance(entry, dict) else None
    return value if isinstance(value, int | str) else None


def _check_annotations(
    annotations: Sequence[tuple[str, dict[str, Any]]],
    numbers: Mapping[int, int],
    height: int,
    width: int,
) -> tuple[list[Annotation], list[str]]:
    """Returns the annotations of a picture that can be used, and name and reason of the others.

    The box of one without a usable mask is a crowd, which is void: else its place would be background.
    """
    good, bad = [], []
    for name, annotation in annotations:
        try:
            good.append(check_annotation(annotation, numbers, height, width))
        except ValueError as error:
            bad.append(f"{name} ({error})")
            with contextlib.suppress(ValueError):
                box = outline_box(annotation.get("bbox"), height, width)
                void = {**annotation, "segmentation": box, "iscrowd": 1}
                good.append(check_annotation(void, numbers, height, width))
    return good, bad


def _describe_bad(bad: Sequence[str], number: int) -> str:
    more = f" and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
    total = count_noun(number, "annotation")
    return f"{len(bad)} of {total} left out: {'; '.join(bad[:_SHOWN])}{more}"


def _compute_digest(annotations: Sequence[Annotation]) -> int:
    """Returns a digest of what annotations say."""
    return digests.compute_digest(repr([sorted(one.items()) for one in annotations]).encode())
