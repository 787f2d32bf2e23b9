"""Embeddings of files: a code for each picture or window of a recording, and what is known about each."""

import collections
import contextlib
import csv
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from experiments.audio import spectrograms, times
from experiments.core.errors import UserError
from experiments.core.files import read_csv_records
from experiments.data import Example
from experiments.data.reading import File
from experiments.inference.audio_windows import OpenRecording, make_audio_settings, read_windows
from experiments.inference.files import read_items
from experiments.inference.trained import Trained


class Clock(collections.Counter):
    """Seconds by activity."""

    @contextlib.contextmanager
    def measure(self, activity: str) -> Iterator[None]:
        """Adds the seconds of a `with` block to an activity."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self[activity] += time.perf_counter() - started


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """A picture, or a window of a recording: it gets one code.

    Attributes:
        file: its path below the folder that the user wrote.
        start, end: its place in a recording, in seconds; NaN for a picture.
        silent: whether all samples of a window are the same.
        example: as the network sees it.
        samples: of a window, float32 `[n]`.
    """

    file: str
    start: float
    end: float
    silent: bool
    example: Example
    samples: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Embedded:
    """The codes of N pieces, float32 `[N, D]`, and what is known about each, as in `Piece`."""

    codes: np.ndarray
    files: Sequence[str]
    starts: np.ndarray
    ends: np.ndarray
    silent: np.ndarray

    def locate(self) -> tuple[list[str], list[list[object]]]:
        """Returns the columns that locate a piece in a table, and their cells; a picture has only a file."""
        if np.isnan(self.starts).all():
            return ["file"], [[name] for name in self.files]
        rows = zip(self.files, self.starts, self.ends, self.silent, strict=True)
        return ["file", "start_s", "end_s", "silent"], [
            [name, f"{start:.3f}", f"{end:.3f}", int(silent)] for name, start, end, silent in rows
        ]


def read_pieces(
    trained: Trained,
    files: Iterable[File],
    skip: Callable[[str, str], None],
    say: Callable[[str], None],
    clock: Clock,
) -> Iterator[Piece]:
    """Yields the pieces of all files, in order.

    Calls `skip` with the name of each file that cannot be used and the reason, and `say` with remarks about
    the others. The clock gets the seconds that `spectrograms` take.
    """
    if not trained.is_audio:
        for item in read_items(trained, files):
            if item.example is None:
                skip(item.file.name, item.reason)
            else:
                yield Piece(item.file.name, np.nan, np.nan, False, item.example)
        return

    audio = make_audio_settings(trained.config.audio)

    def say_note(recording: OpenRecording | None) -> None:
        if recording is not None and recording.note:
            say(f"{recording.file.name}: {recording.note}")

    windows = read_windows(files, audio, lambda file, reason: skip(file.name, reason), say)
    previous = None
    for recording, window in windows:
        if recording is not previous:  # Only now all of the previous one has been read.
            say_note(previous)
            previous = recording
        with clock.measure("spectrograms"):
            example = trained.prepare(spectrograms.compute_spectrogram(window.samples, audio))
        name = recording.file.name
        yield Piece(name, window.start, window.end, window.silent, example, window.samples)
    say_note(previous)


def embed_pieces(
    trained: Trained, pieces: Iterable[Piece], batch_size: int, clock: Clock
) -> Embedded:
    """Returns the codes of all pieces; holds no more than a batch of the pieces.

    The clock gets the seconds that the `network` takes, without compilation.
    """
    places: list[tuple[str, float, float, bool]] = []
    codes: list[np.ndarray] = []
    examples = ((piece, piece.example) for piece in pieces)
    for batch in trained.predict_batches(examples, batch_size, with_features=True):
        clock["network"] += batch.seconds
        codes.append(batch.features)
        places += [(piece.file, piece.start, piece.end, piece.silent) for piece in batch.keys]
    names, starts, ends, silent = zip(*places, strict=True) if places else ((), (), (), ())
    every = np.concatenate(codes) if codes else np.zeros((0, 0), np.float32)
    return Embedded(every, names, np.array(starts), np.array(ends), np.array(silent, bool))


def label_files(source: str, names: Sequence[str]) -> list[str]:
    """Returns a label for each file name; '' where there is none.

    The source is 'folder', the file's folder; 'period', the period of the day by the time in the file's name;
    a CSV with the columns `file` and `label`, whose files are paths like `names`, or bare names; or '' for
    folders if there are several, and else periods.

    Raises:
        UserError: if the table cannot be read, or has a label for none of the files.
    """
    folders = [PurePosixPath(name).parent.name for name in names]
    if source == "folder" or (not source and len(set(folders)) > 1):
        return folders
    if source in ("", "period"):
        stamps = [times.parse_time(name) for name in names]
        if source and not any(stamps):
            raise UserError(
                "--labels=period: no file has a time such as 20190522_060000 in its name."
            )
        return ["" if stamp is None else times.get_period(stamp) for stamp in stamps]
    known = _read_labels(Path(source).expanduser())
    labels = [known.get(name, known.get(PurePosixPath(name).name, "")) for name in names]
    if not any(labels):
        raise UserError(f"--labels={source} has no label for any file, such as {names[0]}.")
    return labels


def _read_labels(path: Path) -> dict[str, str]:
    if path.suffix.lower() != ".csv":
        raise UserError(f"--labels={path}: choose folder, period, or a file that ends in .csv.")
    try:
        rows = read_csv_records(path)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"--labels={path} cannot be read: {error}.") from error
    if not rows or not {"file", "label"} <= set(rows[0]):
        raise UserError(f"--labels={path} needs the columns file and label, and a row per file.")
    return {row["file"]: row["label"] for row in rows if row["file"]}
