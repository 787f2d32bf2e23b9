"""Asks the network of a finished run about files.

    python -m experiments.predict RUN FILES_OR_FOLDERS... [--out=predictions.csv] [--top=5]
    python -m experiments.predict RUN RECORDINGS... [--out=predictions/] [--threshold=0.5] [--merge=N]

    RUN                  the --workdir of a finished run
    FILES_OR_FOLDERS     pictures; of a run on series, files of the UCR archive's formats (.tsv, .txt, .ts),
                         whose labels are not looked at; of a run on recordings, recordings of any length
    --out=FILE.csv       where the predictions go; of recordings a folder
    --top=K              so many classes of each example, the most probable first
    --batch_size=N       examples at once; without it the run's
    --overwrite          replaces the predictions of an earlier command

of recordings alone
    --threshold=SHARE    the least score that is written, 0.5
    --all_scores         all scores of all windows instead, a column for each class
    --merge=N            so many consecutive windows with one label become one row at most
    --hop=SECONDS        from one window to the next; without it the run's

FILE.csv has a row for each example and rank: file, rank, label, probability (and the line, in a file of
series). Of a segmentation run it has a row for each picture and class that was seen in it: file, mask, label,
pixels, share; the masks are palette PNGs in the folder FILE. What could not be used is in FILE.skipped.csv.

Of recordings the folder has predictions.csv (file, start_s, end_s, label, score, silent), per_file.csv with
the highest scores of each recording, tables for Raven beside them, and skipped.csv; `predict_recordings.py`
says more of them.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from experiments.core import cli, files
from experiments.core.console import Progress, print_result
from experiments.core.errors import UserError
from experiments.figures.style import make_voc_palette
from experiments.inference import files as predict_files
from experiments.inference.files import Item
from experiments.inference.trained import Trained
from experiments.load import load

Rows = Iterator[Sequence[object]]


def predict(
    run: str,
    paths: Sequence[str],
    out: str | Path | None = None,
    *,
    top: int | None = None,
    threshold: float | None = None,
    all_scores: bool | None = None,
    merge: int | None = None,
    hop: float | None = None,
    batch_size: int = 0,
    overwrite: bool = False,
    quiet: bool = False,
) -> tuple[int, int]:
    """Writes what a finished run's network says of some files.

    Any number of them takes the same memory: rows are written as they are made. None is for what a run on
    other data has no use for, and for what is usual.

    Args:
        run: the run's workdir.
        paths: files and folders.
        out: where the predictions go: predictions.csv, of recordings the folder predictions.
        top: how many classes of each example; 5.
        threshold, all_scores, merge, hop: of recordings, see `predict_recordings.predict`.
        batch_size: 0 for the run's.
        overwrite: whether what an earlier call wrote to `out` may be replaced.
        quiet: whether nothing is printed.

    Returns:
        How many examples (of recordings, files) were predicted, and how many could not be used.

    Raises:
        UserError: if the run or a path is not there, if `out` is, if nothing could be predicted, or for an
            option that is for other runs.
    """
    trained = load(run)
    if trained.config.task == "reconstruction":
        raise UserError(
            f"{run} predicts nothing; python -m experiments.embed {run} writes its codes."
        )
    of_sounds = {"threshold": threshold, "all_scores": all_scores, "merge": merge, "hop": hop}
    of_sounds = {name: value for name, value in of_sounds.items() if value is not None}
    common: dict[str, Any] = {"batch_size": batch_size, "overwrite": overwrite, "quiet": quiet}
    if trained.hears:
        if top is not None:
            raise UserError(
                f"--top is not for runs on recordings, and {run} is one: --threshold says what is written."
            )
        from experiments.inference import (
            recordings as predict_recordings,  # nothing else needs its libraries
        )

        out = predict_recordings.OUT if out is None else out
        return predict_recordings.predict(trained, paths, out, **of_sounds, **common)
    if of_sounds:
        raise UserError(f"--{next(iter(of_sounds))} is for runs on recordings, and {run} is none.")
    return _predict(trained, paths, out or "predictions.csv", 5 if top is None else top, **common)


def _predict(
    trained: Trained,
    paths: Sequence[str],
    out: str | Path,
    top: int,
    *,
    batch_size: int,
    overwrite: bool,
    quiet: bool,
) -> tuple[int, int]:
    """`predict` for pictures and series."""
    out = Path(out).expanduser()
    masks, skipped_file = out.with_suffix(""), out.with_suffix(".skipped.csv")
    _check(paths, out, masks, top, batch_size, overwrite)
    segments = trained.config.task == "segmentation"
    if segments and masks.exists() and not overwrite:
        raise UserError(f"{masks} is there, where the masks would go: {_OTHERWISE}")
    kind = predict_files.kind_of(trained)
    if segments:
        header = ["file", "mask", "label", "pixels", "share"]
        rows_of = _painter(trained, masks)
    else:
        header = ["file", *kind.columns, "rank", "label", "probability"]
        rows_of = _ranker(trained, top)

    mine = (out, skipped_file, masks)
    total = sum(1 for _ in predict_files.given(paths, mine))
    if not total:
        raise UserError(f"There is no file in {', '.join(map(str, paths))}.")
    skipped_file.unlink(missing_ok=True)
    predicted = skipped = 0
    with (
        files.append_csv(out, header, overwrite) as append,
        files.append_csv(skipped_file, ["file", *kind.columns, "reason"], True) as skip,
        Progress(total, quiet=quiet, unit="file") as shown,
    ):

        def usable(items: Iterator[Item]) -> Iterator[tuple[Item, Any]]:
            nonlocal skipped
            for item in items:
                if item.example is None:
                    skipped += 1
                    skip([(item.file.path, *item.place, item.reason)])
                else:
                    yield item, item.example

        def counted() -> Iterator[predict_files.File]:
            for number, file in enumerate(predict_files.given(paths, mine)):
                shown.update(number)
                yield file

        examples = usable(predict_files.items(trained, counted()))
        for item, answer in trained.answers(examples, batch_size):
            append(rows_of(item, answer))
            predicted += 1
        shown.update(total)
    if not predicted:
        raise UserError(f"None of {total:,} files could be used; {skipped_file} says why of each.")
    table = [("predicted", f"{predicted:,}"), ("predictions", str(out))]
    if segments:
        table.append(("masks", str(masks)))
    if skipped:
        table.append(("skipped", f"{skipped:,}, listed in {skipped_file}"))
    print_result("finished", table, quiet=quiet)
    return predicted, skipped


_OTHERWISE = "choose another --out, or give --overwrite."


def _check(
    paths: Sequence[str], out: Path, masks: Path, top: int, batch_size: int, overwrite: bool
) -> None:
    """Returns if what was asked for makes sense, as far as can be said without the run."""
    if not paths:
        raise UserError("What is to be predicted? Give files or folders behind the run.")
    if out.suffix != ".csv":
        raise UserError(f"--out={out}: give a file that ends in .csv.")
    if out.is_dir() or (out.exists() and not overwrite):
        raise UserError(f"{out} is there already: {_OTHERWISE}")
    if masks.is_file():
        raise UserError(f"{masks} is a file: choose another --out.")
    if top < 1:
        raise UserError(f"--top={top}: choose 1 or more.")
    if batch_size < 0:
        raise UserError(f"--batch_size={batch_size}: choose 1 or more, or 0 for the run's.")


def _ranker(trained: Trained, top: int) -> Callable[[Item, np.ndarray], Rows]:
    """Gives an example's rows: a class each, the most probable first.

    One row for each rank, not one with columns for all: tables of that kind are filtered, joined and
    plotted as they are, whatever K.
    """

    def rows(item: Item, probabilities: np.ndarray) -> Rows:
        # Of equals the first, as argmax has it.
        order = np.argsort(-probabilities, kind="stable")[:top]
        for rank, number in enumerate(order, 1):
            label, share = trained.classes[number], f"{probabilities[number]:.6f}"
            yield item.file.path, *item.place, rank, label, share

    return rows


def _painter(trained: Trained, folder: Path) -> Callable[[Item, np.ndarray], Rows]:
    """Saves an example's mask as a palette PNG, and gives its rows: a class each, the largest first."""
    palette = make_voc_palette().ravel().tolist()

    def rows(item: Item, mask: np.ndarray) -> Rows:
        # The whole name: a.jpg and a.png may lie side by side.
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

    return rows


if __name__ == "__main__":
    OUT = flags.DEFINE_string("out", None, "Where the predictions go.")
    TOP = flags.DEFINE_integer("top", None, "How many classes of each example; 5.")
    THRESHOLD = flags.DEFINE_float("threshold", None, "The least score that is written; 0.5.")
    ALL_SCORES = flags.DEFINE_bool("all_scores", None, "Whether all scores are written.")
    MERGE = flags.DEFINE_integer("merge", None, "How many windows become one row at most.")
    HOP = flags.DEFINE_float("hop", None, "Seconds from one window to the next.")
    BATCH_SIZE = flags.DEFINE_integer("batch_size", 0, "Examples at once; 0 for the run's.")
    OVERWRITE = flags.DEFINE_bool("overwrite", False, "Whether predictions may be replaced.")

    def main() -> None:
        """Predicts what the words say."""
        if not given:
            raise UserError("Which run? Give the workdir of one, and the files behind it.")
        run, *paths = given
        chosen = (TOP, THRESHOLD, ALL_SCORES, MERGE, HOP, BATCH_SIZE, OVERWRITE)
        cli.keep_compiled()
        try:
            predict(run, paths, OUT.value, **{flag.name: flag.value for flag in chosen})
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt("stopped; what was predicted so far is written") from stop
        except OSError as error:
            raise UserError(f"The predictions cannot be written: {error}.") from error

    command, given = cli.without_words(sys.argv)
    cli.leave(cli.run(main, command, str(__doc__)))
