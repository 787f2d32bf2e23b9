"""Predicts classes for files: tables of probabilities, masks, or detections in recordings."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.core import files
from experiments.core.console import Progress, print_result
from experiments.core.errors import UserError
from experiments.data import Example
from experiments.figures.style import make_voc_palette
from experiments.inference.files import (
    Item,
    expand_paths,
    list_position_columns,
    read_items,
    track_progress,
)
from experiments.inference.recordings import predict_recordings
from experiments.inference.trained import Trained

Rows = Iterator[Sequence[object]]
OUT = "predictions.csv"
TOP = 5


def predict(
    trained: Trained, paths: Sequence[str], out: str | Path | None = None, **options: Any
) -> tuple[int, int]:
    """Writes the predictions of a finished run's network for files.

    Any number of files takes the same memory: rows are written as they are made.

    Args:
        trained: the network.
        paths: files and folders.
        out: the table; for recordings a folder. None for `predictions.csv` or `predictions`.
        options: of `predict_files` or, for a run on recordings, of `predict_recordings`. None stands for the
            default.

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
    options = {name: value for name, value in options.items() if value is not None}
    if out is not None:
        options["out"] = out
    if trained.is_audio:
        if "top" in options:
            raise UserError(f"--top is not for runs on recordings such as {run}: give --threshold.")
        return predict_recordings(trained, paths, **options)
    for name in ("threshold", "all_scores", "merge", "hop"):
        if name in options:
            raise UserError(f"--{name} is for runs on recordings, and {run} is not one.")
    return predict_files(trained, paths, **options)


def predict_files(
    trained: Trained,
    paths: Sequence[str],
    out: str | Path = OUT,
    *,
    top: int = TOP,
    batch_size: int = 0,
    overwrite: bool = False,
    quiet: bool = False,
) -> tuple[int, int]:
    """Writes the predictions for pictures or series; see `predict`.

    Args:
        trained: the network.
        paths: files and folders.
        out: the table.
        top: the number of classes per example, the most probable first.
        batch_size: examples at once; 0 for the run's.
        overwrite: whether to replace what an earlier call wrote to `out`.
        quiet: whether to print nothing.
    """
    out = Path(out).expanduser()
    masks, skipped_file = out.with_suffix(""), out.with_suffix(".skipped.csv")
    segments = trained.config.task == "segmentation"
    _check(paths, out, masks, segments, top, batch_size, overwrite)
    positions = list_position_columns(trained)
    if segments:
        header = ["file", "mask", "label", "pixels", "share"]
        make_rows = _make_mask_writer(trained, masks)
    else:
        header = ["file", *positions, "rank", "label", "probability"]
        make_rows = _make_ranker(trained, top)

    outputs = (out, skipped_file, masks)
    total = sum(1 for _ in expand_paths(paths, outputs))
    if not total:
        raise UserError(f"There is no file in {', '.join(map(str, paths))}.")
    skipped_file.unlink(missing_ok=True)
    predicted = skipped = 0
    with (
        files.append_csv(out, header, overwrite) as append,
        files.append_csv(skipped_file, ["file", *positions, "reason"], True) as append_skipped,
        Progress(total, quiet=quiet, unit="file") as progress,
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
        raise UserError(f"None of {total:,} files can be used; {skipped_file} has the reasons.")
    rows = [("predicted", f"{predicted:,}"), ("predictions", str(out))]
    if segments:
        rows.append(("masks", str(masks)))
    if skipped:
        rows.append(("skipped", f"{skipped:,}, listed in {skipped_file}"))
    print_result("finished", rows, quiet=quiet)
    return predicted, skipped


def _check(
    paths: Sequence[str],
    out: Path,
    masks: Path,
    segments: bool,
    top: int,
    batch_size: int,
    overwrite: bool,
) -> None:
    """Raises a UserError for the first invalid argument."""
    otherwise = "choose another --out, or give --overwrite."
    if not paths:
        raise UserError("Nothing to predict: give files or folders after the run.")
    if out.suffix != ".csv":
        raise UserError(f"--out={out}: give a file that ends in .csv.")
    if out.is_dir() or (out.exists() and not overwrite):
        raise UserError(f"{out} exists: {otherwise}")
    if masks.is_file():
        raise UserError(f"{masks} is a file: choose another --out.")
    if segments and masks.exists() and not overwrite:
        raise UserError(f"{masks}, the folder for the masks, exists: {otherwise}")
    if top < 1:
        raise UserError(f"--top={top}: choose 1 or more.")
    if batch_size < 0:
        raise UserError(f"--batch_size={batch_size}: choose 1 or more, or 0 for the run's.")


def _make_ranker(trained: Trained, top: int) -> Callable[[Item, np.ndarray], Rows]:
    """Returns a function that makes an example's rows: one per class, the most probable first.

    A row per rank, rather than columns for all ranks, can be filtered, joined and plotted as it is.
    """

    def make_rows(item: Item, probabilities: np.ndarray) -> Rows:
        # Stable, so that the first of equal classes wins, as in argmax.
        order = np.argsort(-probabilities, kind="stable")[:top]
        for rank, number in enumerate(order, 1):
            label, share = trained.classes[number], f"{probabilities[number]:.6f}"
            yield item.file.path, *item.position, rank, label, share

    return make_rows


def _make_mask_writer(trained: Trained, folder: Path) -> Callable[[Item, np.ndarray], Rows]:
    """Returns a function that writes a mask as a palette PNG and makes its rows, one per class."""
    palette = make_voc_palette().ravel().tolist()

    def make_rows(item: Item, mask: np.ndarray) -> Rows:
        # Keeps the suffix: a.jpg and a.png may lie side by side.
        path = folder / f"{item.file.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(mask)
        image.putpalette(palette)
        image.save(path)
        pixels = np.bincount(mask.ravel(), minlength=len(trained.classes))
        for number in np.argsort(-pixels, kind="stable"):
            if pixels[number]:
                share = f"{pixels[number] / mask.size:.6f}"
                yield item.file.path, path, trained.classes[number], pixels[number], share

    return make_rows
