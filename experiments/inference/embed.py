"""Embeds files: writes their codes, clusters of these, figures and, for recordings, a comparison."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np

from experiments.audio import clusters as clustering
from experiments.audio import times
from experiments.audio.recordings import SUFFIXES
from experiments.core import files
from experiments.core.console import Progress, print_result
from experiments.core.errors import UserError
from experiments.figures.embeddings import draw_hours, draw_tsne
from experiments.figures.reconstruction import draw_reconstructions
from experiments.inference.embeddings import (
    Clock,
    Embedded,
    Piece,
    embed_pieces,
    label_files,
    read_pieces,
)
from experiments.inference.files import expand_paths, track_progress
from experiments.inference.indices import IndexComparison
from experiments.inference.trained import Trained

OUT = "embeddings"
CLUSTERS = 8  # without labels
RECONSTRUCTIONS = 6  # in the figure
_TASKS = ("reconstruction", "classification", "tagging")


def embed(
    trained: Trained,
    paths: Sequence[str],
    out: str | Path = OUT,
    *,
    compare: bool = False,
    labels: str = "",
    clusters: int = 0,
    batch_size: int = 0,
    overwrite: bool = False,
    quiet: bool = False,
) -> tuple[int, int]:
    """Writes the codes of files, clusters of these, and figures.

    Args:
        trained: the network.
        paths: files and folders.
        out: the folder for everything.
        compare: whether to compute acoustic indices and cepstra too.
        labels: 'folder', 'period' or a CSV; '' for folders if there are several, or else periods.
        clusters: the number of clusters; 0 for the number of labels, or 8.
        batch_size: examples at once; 0 for the run's.
        overwrite: whether to replace what an earlier call wrote to `out`.
        quiet: whether to print nothing.

    Returns:
        The number of pieces that got codes, and of files that could not be used.

    Raises:
        UserError: if a path does not exist, `out` does, or most of the files cannot be used.
    """
    out = Path(out).expanduser()
    _check(trained, paths, out, compare, clusters, batch_size, overwrite)
    inputs = list(expand_paths(paths, (out,), SUFFIXES if trained.is_audio else ()))
    if not inputs:
        kind = "recording" if trained.is_audio else "file"
        raise UserError(f"There is no {kind} in {', '.join(map(str, paths))}.")
    clock, skipped = Clock(), []
    comparison = IndexComparison(trained.config.audio.sample_rate) if compare else None
    sample = ReservoirSample(RECONSTRUCTIONS)

    def observe(pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if comparison:
                comparison.add(piece, clock)
            if not piece.silent:
                sample.add(piece)
            yield piece

    def skip(name: str, reason: str) -> None:
        skipped.append((name, reason))

    with Progress(len(inputs), quiet=quiet, unit="file") as progress:
        pieces = read_pieces(trained, track_progress(inputs, progress), skip, progress.say, clock)
        embedded = embed_pieces(trained, observe(pieces), batch_size, clock)
        progress.update(len(inputs))
    files.write_skipped(out, skipped)
    _check_usable(len(inputs), skipped, embedded)

    names = label_files(labels, embedded.files)
    numbers = _find_clusters(embedded, names, clusters)
    _write_tables(out, embedded, names, numbers)
    _draw_clusters(out, embedded, names, numbers)
    (out / "reconstructions.png").unlink(missing_ok=True)
    if trained.config.task == "reconstruction" and sample.kept:
        _draw_sample(out, trained, sample.kept)
    rows = [
        ("embedded", f"{len(embedded.files):,}"),
        ("numbers per code", f"{embedded.codes.shape[1]:,}"),
    ]
    if embedded.silent.any():
        rows.append(("silent", f"{int(embedded.silent.sum()):,}, in no cluster"))
    if comparison:
        rows += comparison.write(out, embedded, names, clock)
    if skipped:
        rows.append(("skipped", f"{len(skipped):,}, listed in {out / 'skipped.csv'}"))
    print_result("finished", [*rows, ("folder", str(out))], quiet=quiet)
    return len(embedded.files), len(skipped)


def _check(
    trained: Trained,
    paths: Sequence[str],
    out: Path,
    compare: bool,
    clusters: int,
    batch_size: int,
    overwrite: bool,
) -> None:
    """Raises a UserError for the first invalid argument."""
    task = trained.config.task
    if task not in _TASKS:
        raise UserError(
            f"{trained.source} is a run of {task}, which has no codes: give one of {', '.join(_TASKS)}."
        )
    if compare and not trained.is_audio:
        raise UserError(f"--compare is for recordings, and {trained.source} saw pictures.")
    if not paths:
        raise UserError("Nothing to embed: give files or folders after the run.")
    if out.is_file():
        raise UserError(f"--out={out} is a file: give a folder.")
    if (out / "embeddings.npz").exists() and not overwrite:
        raise UserError(
            f"{out / 'embeddings.npz'} exists: choose another --out, or give --overwrite."
        )
    if clusters < 0 or clusters == 1:
        raise UserError(f"--clusters={clusters}: choose 2 or more.")
    if batch_size < 0:
        raise UserError(f"--batch_size={batch_size}: choose 1 or more, or 0 for the run's.")


def _check_usable(total: int, skipped: Sequence[tuple[str, str]], embedded: Embedded) -> None:
    """Raises a UserError if most of the files could not be used."""
    if len(embedded.files) and len(skipped) <= total / 2:
        return
    first = "; ".join(f"{name}: {reason}" for name, reason in skipped[:5])
    raise UserError(
        f"{len(skipped):,} of {total:,} files cannot be used ({first}); skipped.csv in --out lists them "
        "all. Leave them out."
    )


class ReservoirSample:
    """A uniform random sample of a stream of unknown length."""

    def __init__(self, size: int, seed: int = 0):
        self.kept: list[Piece] = []
        self._size, self._seen = size, 0
        self._rng = np.random.default_rng(seed)

    def add(self, piece: Piece) -> None:
        """Takes the next piece of the stream into account."""
        self._seen += 1
        if len(self.kept) < self._size:
            self.kept.append(piece)
        elif (place := int(self._rng.integers(self._seen))) < self._size:
            self.kept[place] = piece


def _find_clusters(embedded: Embedded, labels: Sequence[str], number: int) -> np.ndarray:
    """Returns the cluster of each piece; -1 for silent ones."""
    heard = np.flatnonzero(~embedded.silent)
    known = {labels[index] for index in heard} - {""}
    clusters = np.full(len(embedded.files), -1)
    if len(heard):
        number = number or (len(known) if len(known) > 1 else CLUSTERS)
        clusters[heard] = clustering.cluster_codes(embedded.codes[heard], number)
    return clusters


def _write_tables(
    out: Path, embedded: Embedded, labels: Sequence[str], clusters: np.ndarray
) -> None:
    """Writes the codes as arrays and as a table, and the clusters."""
    arrays = {
        "codes": embedded.codes,
        "file": np.array(embedded.files),
        "start_s": embedded.starts,
        "end_s": embedded.ends,
        "silent": embedded.silent,
    }
    files.write_arrays(out / "embeddings.npz", arrays)
    columns, places = ["file"], [[name] for name in embedded.files]
    if not np.isnan(embedded.starts).all():
        columns = ["file", "start_s", "end_s", "silent"]
        places = [
            [name, f"{start:.3f}", f"{end:.3f}", int(silent)]
            for name, start, end, silent in zip(
                embedded.files, embedded.starts, embedded.ends, embedded.silent, strict=True
            )
        ]
    files.write_csv(
        out / "embeddings.csv",
        [*columns, *(f"code_{number}" for number in range(embedded.codes.shape[1]))],
        (
            [*place, *(f"{value:.6g}" for value in code)]
            for place, code in zip(places, embedded.codes, strict=True)
        ),
    )
    files.write_csv(
        out / "clusters.csv",
        [*columns, "label", "cluster"],
        (
            [*place, label, None if cluster < 0 else cluster]
            for place, label, cluster in zip(places, labels, clusters, strict=True)
        ),
    )


def _draw_clusters(
    out: Path, embedded: Embedded, labels: Sequence[str], clusters: np.ndarray
) -> None:
    """Draws the codes of all that is not silent and, if names have a time, the clusters over the day."""
    for name in ("tsne.png", "day.png"):
        (out / name).unlink(missing_ok=True)
    heard = np.flatnonzero(clusters >= 0)
    names = [labels[index] for index in heard]
    draw_tsne(embedded.codes[heard], clusters[heard], names, out / "tsne.png")
    hours, timed = [], []
    for index in heard:
        stamp = times.parse_time(embedded.files[index])
        if stamp is not None:
            seconds = stamp.minute * 60 + stamp.second + np.nan_to_num(embedded.starts[index])
            hours.append((stamp.hour + seconds / 3600) % 24)
            timed.append(index)
    if timed:
        draw_hours(np.array(hours), clusters[timed], out / "day.png")


def _draw_sample(out: Path, trained: Trained, pieces: Sequence[Piece]) -> None:
    """Draws a few pieces and their reconstructions."""
    inputs = np.stack([piece.example["inputs"] for piece in pieces])
    network = jax.jit(partial(trained.model.apply, train=False))
    outputs = np.asarray(network(dict(trained.variables), inputs), np.float32)
    error = float(np.mean((outputs - inputs) ** 2))
    draw_reconstructions(
        inputs,
        outputs,
        [_make_caption(piece) for piece in pieces],
        "Inputs and reconstructions",
        f"A random sample of all that was embedded; mean squared error {error:.4f}.",
        out / "reconstructions.png",
    )


def _make_caption(piece: Piece) -> str:
    name = Path(piece.file).stem[-15:]
    return name if np.isnan(piece.start) else f"{name}\n{piece.start:.1f} s"
