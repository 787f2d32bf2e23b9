"""Writes the objects that a detector finds in files: COCO's JSON, a table, and pictures with the objects."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.core.files import to_json
from experiments.data import pictures
from experiments.data.reading import File
from experiments.figures.objects import Drawn, make_overlay
from experiments.inference.files import Item
from experiments.inference.trained import Trained
from experiments.tasks.instance_metrics import Annotation, describe_objects
from experiments.tasks.objects import Objects, keep_confident

HEADER = ("file", "image_id", "label", "score", "x", "y", "width", "height")
COCO_SUFFIX = ".coco.json"
Append = Callable[[Any], None]


@contextlib.contextmanager
def append_json(path: Path) -> Iterator[Append]:
    """Yields a function that appends values to a list in a JSON file.

    Values are written as they come, whatever their number. If the block ends early, the list ends there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        separator = "[\n"

        def append(value: Any) -> None:
            nonlocal separator
            file.write(separator + json.dumps(to_json(value), allow_nan=False))
            separator = ",\n"

        try:
            yield append
        finally:
            file.write(f"{'[' if separator[0] == '[' else ''}\n]\n")


def have_own_numbers(files: Iterable[File]) -> bool:
    """Returns whether the names of all pictures are different numbers, as those of COCO's are."""
    numbers: set[int] = set()
    for file in files:
        stem = file.path.stem
        if not (stem.isascii() and stem.isdecimal()) or int(stem) in numbers:
            return False
        numbers.add(int(stem))
    return True


@contextlib.contextmanager
def open_writer(
    trained: Trained, folder: Path, coco_file: Path, numbered: bool
) -> Iterator[Callable[[Item, Objects], Iterator[Sequence[object]]]]:
    """Yields a function that writes the objects of a picture and returns their rows, with columns `HEADER`.

    Args:
        trained: the network.
        folder: for the pictures with the objects above the run's `detector.threshold`.
        coco_file: for all objects, as results in COCO's format.
        numbered: whether the names of the files are the numbers of the pictures; else they are counted.
    """
    count = 0
    with append_json(coco_file) as append:

        def write(item: Item, objects: Objects) -> Iterator[Sequence[object]]:
            nonlocal count
            count += 1
            number = int(item.file.path.stem) if numbered else count
            draw_objects(trained, folder, item, objects)
            for one in describe_objects(objects):
                name = trained.classes[one["category_id"]]
                # Beside COCO's fields, as the numbers of pictures and classes are those of this run.
                append({**make_result(one, number), "category": name, "file_name": item.file.name})
                box = (f"{value:.2f}" for value in one["bbox"])
                yield item.file.path, number, name, f"{one['score']:.6f}", *box

        yield write


def make_result(one: Annotation, image_id: int) -> dict[str, Any]:
    """Returns an object of `describe_objects` as a result in COCO's format."""
    result = {
        "image_id": image_id,
        "category_id": one["category_id"],
        "bbox": [round(value, 2) for value in one["bbox"]],
        "score": round(one["score"], 6),
    }
    if "segmentation" in one:
        code = one["segmentation"]
        size = [int(side) for side in code["size"]]
        result["segmentation"] = {"size": size, "counts": code["counts"].decode("ascii")}
    return result


def draw_objects(trained: Trained, folder: Path, item: Item, objects: Objects) -> None:
    """Writes a picture with its objects, as a PNG in `folder`."""
    shown = keep_confident(objects, trained.config.detector.threshold)
    drawn = Drawn(shown.boxes, shown.labels, shown.scores, shown.masks)
    # Keeps the suffix: a.jpg and a.png may lie side by side.
    path = folder / f"{item.file.name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = pictures.decode_picture(item.file.path, trained.shape[-1])
    make_overlay(picture, drawn, trained.classes).save(path)
