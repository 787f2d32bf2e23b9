"""Writes what a finished run's network makes of files: a vector for each window of sound, or picture.

    python -m experiments.embed RUN FILES_OR_FOLDERS... [--out=embeddings] [--compare]

    RUN                  the --workdir of a finished run: of an autoencoder, whose codes are written, or of a
                         classifier, of which it is what comes into its last layer
    FILES_OR_FOLDERS     recordings, or pictures where the run was trained on pictures
    --out=FOLDER         where everything goes
    --labels=WHICH       what clusters are compared with: folder (of the file), period (of the day, by the
                         file's name) or a CSV with the columns file and label
    --clusters=N         how many; without it as many as there are labels, or 8
    --compare            of recordings: also acoustic indices and cepstra, and which of them finds the labels
    --batch_size=N       examples at once; without it the run's
    --overwrite          replaces what an earlier command wrote

FOLDER gets embeddings.npz (codes, file, start_s, end_s, silent) and embeddings.csv; clusters.csv; tsne.png;
day.png, where names say when files were made (YYYYMMDD_HHMMSS); reconstructions.png of an autoencoder; and
skipped.csv. With --compare also indices.csv, indices_per_file.csv, indices.npz, definitions.csv, timing.csv,
compare.csv and compare.png.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments.audio import clusters as clustering
from experiments.audio import times
from experiments.core import cli, files
from experiments.core.console import Progress, print_result
from experiments.core.errors import UserError
from experiments.data.reading import File
from experiments.figures.embeddings import draw_hours, draw_tsne
from experiments.figures.reconstruction import draw_reconstructions
from experiments.inference import embed_files
from experiments.inference.embed_files import Clock, Piece, timed
from experiments.inference.embed_labels import labels_of
from experiments.inference.indices import Comparison
from experiments.inference.trained import Trained
from experiments.load import load

TASKS = ("reconstruction", "classification", "tagging")
CLUSTERS = 8  # where nothing says how many
SHOWN = 6  # reconstructions


@dataclasses.dataclass(frozen=True)
class Embedded:
    """What was made of N pieces.

    Attributes:
        codes: float32 `[N, D]`.
        files: of each piece.
        starts, ends: in seconds, float64 `[N]`; NaN of pictures.
        silent: bool `[N]`.
    """

    codes: np.ndarray
    files: Sequence[str]
    starts: np.ndarray
    ends: np.ndarray
    silent: np.ndarray


def embed(
    run: str,
    paths: Sequence[str],
    out: str | Path = "embeddings",
    *,
    compare: bool = False,
    labels: str = "",
    clusters: int = 0,
    batch_size: int = 0,
    overwrite: bool = False,
    quiet: bool = False,
) -> tuple[int, int]:
    """Writes the codes of files, clusters of them, and their pictures.

    Args:
        run: the run's workdir.
        paths: files and folders.
        out: the folder that everything goes into.
        compare: whether acoustic indices and cepstra are made too.
        labels: 'folder', 'period' or a CSV; '' for folders, where there are several, or else periods.
        clusters: how many; 0 for as many as there are labels, or 8.
        batch_size: 0 for the run's.
        overwrite: whether what an earlier call wrote to `out` may be replaced.
        quiet: whether nothing is printed.

    Returns:
        How many pieces there are codes of, and how many files could not be used.

    Raises:
        UserError: if the run or a path is not there, `out` is, or most of the files cannot be used.
    """
    out = Path(out).expanduser()
    _check(paths, out, clusters, batch_size, overwrite)
    trained = load(run)
    task = trained.config.task
    if task not in TASKS:
        raise UserError(
            f"{run} is a run of {task}: codes come from an autoencoder or a classifier."
        )
    if compare and not trained.hears:
        raise UserError(f"--compare is for recordings, and {run} was trained on pictures.")
    found = embed_files.usable(trained, paths, out)
    comparison = Comparison(trained.config.audio.sample_rate) if compare else None
    clock: Clock = Clock()
    skipped: list[tuple[str, str]] = []
    with Progress(len(found), quiet=quiet, unit="file") as shown:

        def counted() -> Iterator[File]:
            for number, file in enumerate(found):
                shown.update(number)
                yield file

        def skip(name: str, reason: str) -> None:
            skipped.append((name, reason))

        pieces = embed_files.pieces(trained, counted(), skip, shown.say, clock)
        drawn = Drawn(SHOWN if task == "reconstruction" else 0)
        embedded = _embedded(trained, pieces, batch_size, clock, comparison, drawn)
        shown.update(len(found))
    files.write_skipped(out, skipped)
    _check_usable(len(found), skipped, embedded)

    names = labels_of(labels, embedded.files)
    heard = np.flatnonzero(~embedded.silent)
    there = sorted({names[index] for index in heard} - {""})
    number = clusters or (len(there) if len(there) > 1 else CLUSTERS)
    found_clusters = np.full(len(embedded.files), -1)
    if len(heard):
        found_clusters[heard] = clustering.cluster_codes(embedded.codes[heard], number)
    _write(out, embedded, names, found_clusters)
    _draw(out, embedded, names, found_clusters, trained, drawn.kept)
    table = [
        ("embedded", f"{len(embedded.files):,}"),
        ("numbers each", f"{embedded.codes.shape[1]:,}"),
    ]
    if embedded.silent.any():
        table.append(("silent", f"{int(embedded.silent.sum()):,}, in no cluster"))
    if comparison:
        table += comparison.write(out, embedded, names, clock)
    if skipped:
        table.append(("skipped", f"{len(skipped):,}, listed in {out / 'skipped.csv'}"))
    print_result("finished", [*table, ("folder", str(out))], quiet=quiet)
    return len(embedded.files), len(skipped)


def _check(
    paths: Sequence[str], out: Path, clusters: int, batch_size: int, overwrite: bool
) -> None:
    """Returns if what was asked for makes sense, as far as can be said without the run."""
    if not paths:
        raise UserError("What is to be embedded? Give files or folders behind the run.")
    if out.is_file():
        raise UserError(f"--out={out} is a file: give a folder.")
    if (out / "embeddings.npz").exists() and not overwrite:
        raise UserError(
            f"{out / 'embeddings.npz'} is there already: choose another --out, or give --overwrite."
        )
    if clusters < 0 or clusters == 1:
        raise UserError(f"--clusters={clusters}: choose 2 or more.")
    if batch_size < 0:
        raise UserError(f"--batch_size={batch_size}: choose 1 or more, or 0 for the run's.")


def _check_usable(number: int, skipped: Sequence[tuple[str, str]], embedded: Embedded) -> None:
    """Raises a UserError where most of the files could not be used."""
    if len(embedded.files) and len(skipped) <= number / 2:
        return
    first = "; ".join(f"{name}: {reason}" for name, reason in skipped[:5])
    raise UserError(
        f"{len(skipped):,} of {number:,} files could not be used ({first}); "
        "skipped.csv in --out lists them all. Leave them out."
    )


class Drawn:
    """A few of a stream of pieces, each with the same chance, whatever the stream's length."""

    def __init__(self, number: int):
        self.kept: list[Piece] = []
        self._number, self._seen = number, 0
        self._rng = np.random.default_rng(0)

    def see(self, piece: Piece) -> None:
        """Takes notice of the next piece."""
        self._seen += 1
        if len(self.kept) < self._number:
            self.kept.append(piece)
        elif (place := int(self._rng.integers(self._seen))) < self._number:
            self.kept[place] = piece


def _embedded(
    trained: Trained,
    pieces: Iterator[Piece],
    batch_size: int,
    clock: Clock,
    comparison: Comparison | None,
    drawn: Drawn,
) -> Embedded:
    """The codes of all pieces; of the pieces no more than a batch is held."""
    size = batch_size or trained.config.batch_size
    batch: list[Piece] = []
    places: list[tuple[str, float, float, bool]] = []
    codes: list[np.ndarray] = []

    def ask() -> None:
        examples = [piece.example for piece in batch]
        try:
            if not codes:  # compilation is no part of what it takes
                trained.features(examples, size)
            with timed(clock, "network"):
                codes.append(trained.features(examples, size))
        except ValueError as error:
            raise UserError(f"There are no codes of this run: {error}.") from error
        places.extend((piece.file, piece.start, piece.end, piece.silent) for piece in batch)
        batch.clear()

    for piece in pieces:
        if comparison:
            comparison.add(piece, clock)
        if not piece.silent:
            drawn.see(piece)
        batch.append(piece)
        if len(batch) == size:
            ask()
    if batch:
        ask()
    names, starts, ends, silent = zip(*places, strict=True) if places else ((), (), (), ())
    every = np.concatenate(codes) if codes else np.zeros((0, 0), np.float32)
    return Embedded(every, names, np.array(starts), np.array(ends), np.array(silent, bool))


def _write(out: Path, embedded: Embedded, names: Sequence[str], clusters: np.ndarray) -> None:
    """The tables, and the codes as arrays."""
    out.mkdir(parents=True, exist_ok=True)
    arrays = {
        "codes": embedded.codes,
        "file": np.array(embedded.files),
        "start_s": embedded.starts,
        "end_s": embedded.ends,
        "silent": embedded.silent,
    }
    files.write_arrays(out / "embeddings.npz", arrays)
    timed_too = not np.isnan(embedded.starts).all()
    place = ["file", "start_s", "end_s", "silent"] if timed_too else ["file"]

    def places() -> Iterator[list[object]]:
        for name, start, end, silent in zip(
            embedded.files, embedded.starts, embedded.ends, embedded.silent, strict=True
        ):
            yield [name, f"{start:.3f}", f"{end:.3f}", int(silent)] if timed_too else [name]

    width = embedded.codes.shape[1]
    files.write_csv(
        out / "embeddings.csv",
        [*place, *(f"code_{number}" for number in range(width))],
        (
            [*at, *(f"{v:.6g}" for v in code)]
            for at, code in zip(places(), embedded.codes, strict=True)
        ),
    )
    files.write_csv(
        out / "clusters.csv",
        [*place, "label", "cluster"],
        (
            [*at, name, None if cluster < 0 else cluster]
            for at, name, cluster in zip(places(), names, clusters, strict=True)
        ),
    )


def _draw(
    out: Path,
    embedded: Embedded,
    names: Sequence[str],
    clusters: np.ndarray,
    trained: Trained,
    shown: Sequence[Piece],
) -> None:
    """The figures; one that there is nothing to draw of goes."""
    for name in ("tsne.png", "day.png", "reconstructions.png"):
        (out / name).unlink(missing_ok=True)
    heard = np.flatnonzero(clusters >= 0)
    labels = [names[index] for index in heard]
    draw_tsne(embedded.codes[heard], clusters[heard], labels, out / "tsne.png")
    stamps = [times.parse_time(embedded.files[index]) for index in heard]
    known = [number for number, stamp in enumerate(stamps) if stamp is not None]
    if known:
        offsets = np.nan_to_num(embedded.starts[heard])
        hours = [
            (stamps[n].hour + (stamps[n].minute * 60 + stamps[n].second + offsets[n]) / 3600) % 24
            for n in known
        ]
        draw_hours(np.array(hours), clusters[heard][known], out / "day.png")
    if shown:
        inputs = np.stack([piece.example["inputs"] for piece in shown])
        network = jax.jit(partial(trained.model.apply, train=False))
        outputs = np.asarray(network(dict(trained.variables), inputs), np.float32)
        error = float(np.mean((outputs - inputs) ** 2))
        draw_reconstructions(
            inputs,
            outputs,
            [_place(piece) for piece in shown],
            "What went in, and what came back",
            f"Drawn from all that was embedded; mean squared error of these {error:.4f}.",
            out / "reconstructions.png",
        )


def _place(piece: Piece) -> str:
    name = Path(piece.file).stem[-15:]
    return name if np.isnan(piece.start) else f"{name}\n{piece.start:.1f} s"


if __name__ == "__main__":
    OUT = flags.DEFINE_string("out", "embeddings", "The folder that everything goes into.")
    COMPARE = flags.DEFINE_bool("compare", False, "Whether indices and cepstra are made too.")
    LABELS = flags.DEFINE_string("labels", "", "folder, period, or a CSV of files and labels.")
    NUMBER = flags.DEFINE_integer("clusters", 0, "How many; 0 for as many as there are labels.")
    BATCH_SIZE = flags.DEFINE_integer("batch_size", 0, "Examples at once; 0 for the run's.")
    OVERWRITE = flags.DEFINE_bool("overwrite", False, "Whether what is there may be replaced.")

    def main() -> None:
        """Embeds what the words say."""
        if not given:
            raise UserError("Which run? Give the workdir of one, and the files behind it.")
        run, *paths = given
        cli.keep_compiled()
        try:
            embed(
                run,
                paths,
                OUT.value,
                compare=COMPARE.value,
                labels=LABELS.value,
                clusters=NUMBER.value,
                batch_size=BATCH_SIZE.value,
                overwrite=OVERWRITE.value,
            )
        except OSError as error:
            raise UserError(f"The embeddings cannot be written: {error}.") from error

    command, given = cli.without_words(sys.argv)
    cli.leave(cli.run(main, command, str(__doc__)))
