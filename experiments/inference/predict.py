"""Predicts classes for files: tables of probabilities, masks, objects, or detections in recordings."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.core import files, own_files
from experiments.core.console import Progress, print_result
from experiments.core.errors import UserError
from experiments.core.words import count_noun
from experiments.data import Example
from experiments.data.reading import File
from experiments.figures.style import make_voc_palette
from experiments.inference import object_files
from experiments.inference.files import (
    Item,
    check_inputs,
    expand_paths,
    list_position_columns,
    read_items,
    track_progress,
)
from experiments.inference.recordings import predict_recordings
from experiments.inference.trained import Trained

Rows = Iterator[Sequence[object]]


def predict(
    trained: Trained, paths: Sequence[str], out: str | Path | None = None, **flags: Any
) -> tuple[int, int]:
    """Writes the predictions of a finished run's network for files.

    Any number of files takes the same memory: rows are written as they are made. The options are the flags of
    `experiments.predict`, for pictures and series or for recordings; None stands for the default.

    Returns:
        The number of examples (for recordings, of files) that were predicted, and of those that could not be
        used.

    Raises:
        UserError: if a path does not exist, if `out` does, if nothing could be predicted, or for an option
            that is for other runs.
    """
    run = trained.source
    if trained.config.task == "reconstruction":
        raise UserError(
            f"{run} predicts no classes; python -m experiments.embed {run} writes its codes."
        )
    options = {name: flag for name, flag in {"out": out, **flags}.items() if flag is not None}
    if trained.is_audio:
        if "top" in options:
            raise UserError(f"--top is not for runs on recordings such as {run}: give --threshold.")
        return predict_recordings(trained, paths, **options)
    for name in ("threshold", "without", "all_scores", "merge", "hop", "format"):
        if name in options:
            raise UserError(f"--{name} is for runs on recordings, and {run} is not one.")
    if "top" in options and trained.config.task in ("segmentation", "instance_segmentation"):
        raise UserError(f"--top is for classifiers, and {run} is a run of {trained.config.task}.")
    return predict_files(trained, paths, **options)


def predict_files(
    trained: Trained,
    paths: Sequence[str],
    out: str | Path = "predictions.csv",
    *,
    top: int = 5,
    batch_size: int = 0,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Writes the predictions for pictures or series; see `predict`."""
    out = Path(out).expanduser()
    check_inputs(paths, batch_size)
    skipped_file = out.with_suffix(".skipped.csv")
    outputs = (out, skipped_file, *_name_others(trained, out).values())
    form = choose_form(trained, out, top, expand_paths(paths, outputs))
    _check_arguments(out, form, top, overwrite)
    skipped_header = ["file", *list_position_columns(trained), "reason"]
    total = sum(1 for _ in expand_paths(paths, outputs))
    if not total:
        raise UserError(f"There is no file in {', '.join(map(str, paths))}.")
    own_files.check_replaceable(skipped_file, skipped_header)
    skipped_file.unlink(missing_ok=True)
    predicted = skipped = 0
    with (
        files.append_csv(out, form.header, overwrite) as append,
        files.append_csv(skipped_file, skipped_header, True) as append_skipped,
        Progress(total, unit="file") as progress,
        form.open() as make_rows,
    ):

        def usable_examples() -> Iterator[tuple[Item, Example]]:
            nonlocal skipped
            inputs = track_progress(expand_paths(paths, outputs), progress)
            for item in read_items(trained, inputs):
                if item.example is None:
                    skipped += 1
                    append_skipped([(item.file.path, *item.position, item.reason)])
                else:
                    yield item, item.example

        for item, prediction in trained.predict(usable_examples(), batch_size):
            append(make_rows(item, prediction))
            predicted += 1
        progress.update(total)
    if not predicted:
        raise UserError(
            f"None of {count_noun(total, 'file')} can be used; {skipped_file} has the reasons."
        )
    rows = [("predicted", f"{predicted:,}"), ("predictions", str(out))]
    rows += [(name, str(path)) for name, path in form.others.items()]
    if skipped:
        rows.append(("skipped", f"{skipped:,}, listed in {skipped_file}"))
    print_result("finished", rows)
    return predicted, skipped


@dataclasses.dataclass(frozen=True)
class Form:
    """The form in which predictions are written.

    Attributes:
        header: of the table.
        open: a context that returns the function of an item and its prediction that makes rows of the table.
        others: what is written beside the table, by what it is.
    """

    header: Sequence[str]
    open: Callable[[], contextlib.AbstractContextManager[Callable[[Item, Any], Rows]]]
    others: Mapping[str, Path] = dataclasses.field(default_factory=dict)


def choose_form(trained: Trained, out: Path, top: int, inputs: Iterable[File]) -> Form:
    """Returns what is written of the predictions of a run for some files, with the table `out`."""
    others = _name_others(trained, out)
    if trained.config.task == "instance_segmentation":
        coco_file, folder = others.values()
        numbered = object_files.have_own_numbers(inputs)
        write = partial(object_files.open_writer, trained, folder, coco_file, numbered)
        return Form(object_files.HEADER, write, others)
    if trained.config.task == "segmentation":
        write = partial(_write_mask, trained.classes, *others.values())
        header = ("file", "mask", "label", "pixels", "share")
        return Form(header, partial(contextlib.nullcontext, write), others)
    rank = partial(_rank_classes, trained.classes, top)
    header = ("file", *list_position_columns(trained), "rank", "label", "probability")
    return Form(header, partial(contextlib.nullcontext, rank))


def _name_others(trained: Trained, out: Path) -> dict[str, Path]:
    """Returns what is written beside the table of predictions, by what it is."""
    folder = out.with_suffix("")
    match trained.config.task:
        case "instance_segmentation":
            return {
                "results for COCO": out.with_suffix(object_files.COCO_SUFFIX),
                "pictures": folder,
            }
        case "segmentation":
            return {"masks": folder}
    return {}


def _check_arguments(out: Path, form: Form, top: int, overwrite: bool) -> None:
    """Raises a UserError for the first invalid argument."""
    otherwise = "choose another --out, or give --overwrite."
    if out.suffix != ".csv":
        raise UserError(f"--out={out}: give a file that ends in .csv.")
    if out.is_dir() or (out.exists() and not overwrite):
        raise UserError(f"{out} exists: {otherwise}")
    folder = out.with_suffix("")
    if folder in form.others.values() and folder.is_file():
        raise UserError(f"{folder} is a file: choose another --out.")
    for name, path in form.others.items():
        if path.exists() and not overwrite:
            raise UserError(f"{path}, which has the {name}, exists: {otherwise}")
    if top < 1:
        raise UserError(f"--top={top}: choose 1 or more.")


def _rank_classes(classes: Sequence[str], top: int, item: Item, probabilities: np.ndarray) -> Rows:
    """Yields an example's rows: one per class, the most probable first.

    A row per rank, rather than columns for all ranks, can be filtered, joined and plotted as it is.
    """
    # Stable, so that the first of equal classes wins, as in argmax.
    for rank, number in enumerate(np.argsort(-probabilities, kind="stable")[:top], 1):
        share = f"{probabilities[number]:.6f}"
        yield item.file.path, *item.position, rank, classes[number], share


def _write_mask(classes: Sequence[str], folder: Path, item: Item, mask: np.ndarray) -> Rows:
    """Writes a mask as a palette PNG, and yields its rows, one per class."""
    # Keeps the suffix: a.jpg and a.png may lie side by side.
    path = folder / f"{item.file.name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    image.putpalette(make_voc_palette().ravel().tolist())
    image.save(path)
    pixels = np.bincount(mask.ravel(), minlength=len(classes))
    for number in np.argsort(-pixels, kind="stable"):
        if pixels[number]:
            share = f"{pixels[number] / mask.size:.6f}"
            yield item.file.path, path, classes[number], pixels[number], share
