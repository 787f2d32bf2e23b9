"""Embeds files: writes their codes, clusters of these, figures and, for recordings, a comparison."""

import heapq
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np

from experiments.audio import clusters as clustering
from experiments.audio import times
from experiments.core import files, own_files
from experiments.core.console import Progress, print_result
from experiments.core.errors import UserError
from experiments.core.words import count_noun
from experiments.data.reading import File
from experiments.figures.embeddings import draw_hours, draw_tsne
from experiments.figures.reconstruction import draw_reconstructions
from experiments.inference.audio_windows import SOUND_SUFFIXES
from experiments.inference.embeddings import (
    Clock,
    Embedded,
    Piece,
    embed_pieces,
    label_files,
    read_pieces,
)
from experiments.inference.files import check_inputs, expand_paths, track_progress
from experiments.inference.hoplite import check_database, write_database
from experiments.inference.indices import COMPARISONS, IndexComparison
from experiments.inference.trained import Trained

OUT = "embeddings"
OUTPUTS = (
    *("embeddings.npz", "embeddings.csv", "clusters.csv", "tsne.png", "day.png"),
    *("reconstructions.png", *COMPARISONS),
)
"""Files in the folder; others there are left alone."""
CLUSTERS = 8  # without labels
RECONSTRUCTIONS = 6  # in the figure
_TASKS = ("reconstruction", "classification", "tagging", "event_detection")


def embed(
    trained: Trained,
    paths: Sequence[str],
    out: str | Path = OUT,
    *,
    compare: bool = False,
    labels: str = "",
    clusters: int = 0,
    batch_size: int = 0,
    hoplite: str | Path = "",
    overwrite: bool = False,
) -> tuple[int, int]:
    """Writes the codes of files, clusters of these, and figures.

    The options are the flags of `experiments.embed`.

    Returns:
        The number of pieces that got codes, and of files that could not be used.

    Raises:
        UserError: if a path does not exist, `out` does, or most of the files cannot be used.
    """
    out = Path(out).expanduser()
    check_inputs(paths, batch_size)
    _check_arguments(trained, out, compare, clusters, overwrite)
    database = Path(hoplite).expanduser() if hoplite else None
    if database:
        if not trained.is_audio:
            raise UserError(f"--hoplite is for recordings, and {trained.source} saw pictures.")
        check_database(database, overwrite)
    inputs = _list_inputs(trained, paths, out, labels)
    clock, skipped = Clock(), []
    comparison = IndexComparison(trained.config.audio.sample_rate) if compare else None
    rng, sample = np.random.default_rng(0), []

    def observe(pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if comparison:
                comparison.add(piece, clock)
            if not piece.silent:
                # Those with the largest random numbers are a uniform sample of the stream.
                sample.append((rng.random(), piece))
                sample[:] = heapq.nlargest(RECONSTRUCTIONS, sample, key=lambda drawn: drawn[0])
            yield piece

    def skip(name: str, reason: str) -> None:
        skipped.append((name, reason))

    with Progress(len(inputs), unit="file") as progress:
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
    if trained.config.task == "reconstruction" and sample:
        _draw_sample(out, trained, [piece for _, piece in sample])
    rows = [
        ("embedded", f"{len(embedded.files):,}"),
        ("numbers per code", f"{embedded.codes.shape[1]:,}"),
    ]
    if embedded.silent.any():
        rows.append(("silent", f"{int(embedded.silent.sum()):,}, in no cluster"))
    if database:
        # Those that nobody has asked for are for the figures.
        known = names if labels else [""] * len(names)
        number = write_database(database, trained, embedded, known)
        rows.append(("hoplite", f"{number:,} codes in {database}"))
    if comparison:
        rows += comparison.write(out, embedded, names, clock)
    if skipped:
        rows.append(("skipped", f"{len(skipped):,}, listed in {out / 'skipped.csv'}"))
    print_result("finished", [*rows, ("folder", str(out))])
    return len(embedded.files), len(skipped)


def _check_arguments(
    trained: Trained, out: Path, compare: bool, clusters: int, overwrite: bool
) -> None:
    """Raises a UserError for the first invalid argument."""
    task = trained.config.task
    if task not in _TASKS:
        raise UserError(
            f"{trained.source} is a run of {task}, which has no codes: give one of {', '.join(_TASKS)}."
        )
    if compare and not trained.is_audio:
        raise UserError(f"--compare is for recordings, and {trained.source} saw pictures.")
    if out.is_file():
        raise UserError(f"--out={out} is a file: give a folder.")
    for path in (out / name for name in OUTPUTS):
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists: choose another --out, or give --overwrite.")
    own_files.check_replaceable(out / "skipped.csv", ("file", "reason"))
    if clusters < 0 or clusters == 1:
        raise UserError(f"--clusters={clusters}: choose 2 or more.")


def _list_inputs(trained: Trained, paths: Sequence[str], out: Path, labels: str) -> list[File]:
    """Returns the files to embed; raises a UserError without files, or if `labels` cannot be used."""
    own = [out / name for name in (*OUTPUTS, "skipped.csv")]
    inputs = list(expand_paths(paths, own, SOUND_SUFFIXES if trained.is_audio else ()))
    if not inputs:
        kind = "recording" if trained.is_audio else "file"
        raise UserError(f"There is no {kind} in {', '.join(map(str, paths))}.")
    if labels:  # a mistake in them is better known before the work
        label_files(labels, [file.name for file in inputs])
    return inputs


def _check_usable(total: int, skipped: Sequence[tuple[str, str]], embedded: Embedded) -> None:
    """Raises a UserError if most of the files could not be used."""
    if len(embedded.files) and len(skipped) <= total / 2:
        return
    first = "; ".join(f"{name}: {reason}" for name, reason in skipped[:5])
    raise UserError(
        f"{len(skipped):,} of {count_noun(total, 'file')} cannot be used ({first}); skipped.csv in "
        "--out lists them "
        "all. Leave them out."
    )


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
    columns, places = embedded.locate()
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
