"""Spectrograms of recordings, computed once: one file per recording, in one folder per choice of settings."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.audio import facts, recordings, spectrograms, windows
from experiments.audio.facts import Damaged
from experiments.audio.recordings import Unreadable
from experiments.core import digests
from experiments.core.console import Progress
from experiments.core.errors import UserError
from experiments.core.files import replace_file
from experiments.core.words import count_noun

_SETTINGS = ("hop", "channel", "pad")
_LIBRARIES = ("PyWavelets", "librosa", "numpy", "pillow", "soundfile", "soxr")
_FORMAT = 2  # Increase it when the same settings give other spectrograms than before.
_THREADS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Spectrograms:
    """The spectrograms of the windows of one recording.

    Attributes:
        path, name, seconds, rate, channels, note: as in `recordings.Recording`, after reading all of it.
        starts, ends: of the windows in seconds, float64 `[n]`, n > 0; no end is beyond the recording's.
        silent: whether all samples of a window are equal, bool `[n]`.
        file: the file that holds the spectrograms.
        size: its number of bytes.
        shape: height and width of a spectrogram.
        digest: digest of the samples; of the name in caches that were written without one.
    """

    path: Path
    name: str
    seconds: float
    rate: int
    channels: int
    note: str
    starts: np.ndarray
    ends: np.ndarray
    silent: np.ndarray
    file: Path
    size: int
    shape: tuple[int, int]
    digest: int

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def levels(self) -> np.ndarray:
        """The spectrograms, uint8 `[n, H, W]`, memory-mapped."""
        shape = (len(self), *self.shape)
        try:
            # np.load parses the header with Python's compiler, which in Python 3.11 fails at times while
            # other threads compile something (gh-106905).
            if os.path.getsize(self.file) != self.size:
                raise ValueError("the size of their file has changed")
            header_size = self.size - math.prod(shape)
            return np.memmap(self.file, np.uint8, "r", header_size, shape)
        except (OSError, OverflowError, ValueError) as error:
            raise UserError(
                f"The spectrograms of {self.name} cannot be read any more ({error}). Start the same command "
                f"again to compute them and continue the run; if that fails, delete {self.file.parent}."
            ) from error


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """The result of `prepare_spectrograms`.

    Attributes:
        usable: the recordings that have windows, in the order of the arguments.
        skipped: name and reason of the others.
        notes: sentences about them for the start of a run.
    """

    usable: list[Spectrograms]
    skipped: list[tuple[str, str]]
    notes: list[str]


def prepare_spectrograms(
    paths: Sequence[str | os.PathLike],
    names: Sequence[str],
    audio: ConfigDict,
    folder: str | os.PathLike,
    starts: Sequence[Sequence[float]] | None = None,
    max_skipped: float = 0.5,
    quiet: bool = False,
) -> Prepared:
    """Computes the spectrograms of recordings, or finds them in the cache.

    Each recording is read once from beginning to end. A changed file, other settings and other versions of
    the libraries get new spectrograms.

    Args:
        paths, names: the recordings, and their names for messages.
        audio: the audio section of the configuration.
        folder: the folder of the cache, for all settings.
        starts: start of each window of each recording in seconds; None for one every `audio.hop`.
        max_skipped: the share of the recordings that may be unusable.
        quiet: whether to show no progress.
    """
    spectrograms.check_settings(audio)
    settings_folder = Path(folder) / _make_settings_key(audio)
    paths = [Path(path) for path in paths]
    all_starts = [None] * len(paths) if starts is None else [sorted(map(float, s)) for s in starts]
    if not paths:
        raise UserError(
            f"There are no recordings (files that end in {', '.join(recordings.SUFFIXES)})."
        )
    files = [
        get_metadata_file(path, path_starts, settings_folder)
        for path, path_starts in zip(paths, all_starts, strict=True)
    ]
    # A recording that is listed twice is computed once: two threads would write the same file.
    work = dict(zip(files, zip(paths, all_starts, strict=True), strict=True))
    metadata, damaged = _read_all(work)
    missing = {
        file: functools.partial(_write_recording, *work[file], audio, file)
        for file in work
        if file not in metadata
    }
    metadata |= compute_all(missing, quiet)
    usable, skipped = [], []
    for path, name, file in zip(paths, names, files, strict=True):
        if reason := metadata[file]["reason"]:
            skipped.append((name, reason))
        else:
            shape = spectrograms.compute_shape(audio)
            usable.append(_make_spectrograms(path, name, file, metadata[file], shape))
    if len(skipped) > max_skipped * len(paths) or not usable:
        more = ", or allow more with --config.data.max_skipped=SHARE" if usable else ""
        raise UserError(
            f"{len(skipped):,} of {len(paths):,} recordings cannot be used, such as "
            f"{'; '.join(f'{name} ({reason})' for name, reason in skipped[:5])}. Repair or remove them{more}."
        )
    notes = _describe(usable, audio)
    if damaged:
        entries = count_noun(len(damaged), "entry", "entries")
        notes.append(
            f"{entries} of the cache of spectrograms {'was' if len(damaged) == 1 else 'were'} damaged and "
            f"computed again: {damaged[0]}{', ...' if len(damaged) > 1 else '.'}"
        )
    return Prepared(usable, skipped, notes)


def get_metadata_file(path: Path, starts: list[float] | None, folder: Path) -> Path:
    """Returns the path of a recording's metadata; what was made from the recording lies next to it."""
    try:
        status = os.stat(path)
        version = [status.st_size, status.st_mtime_ns]
    except OSError:  # Reading the recording will give the reason.
        version = []
    return folder / f"{make_key(os.path.abspath(path), version, starts)}.json"


def _read_all(
    work: dict[Path, tuple[Path, list[float] | None]],
) -> tuple[dict[Path, dict[str, Any]], list[str]]:
    """Returns the metadata of recordings in the cache, and what is wrong with the damaged ones."""

    def read(file: Path) -> dict[str, Any] | Damaged | None:
        try:
            return facts.read_facts(file, file.with_suffix(".npy"), work[file][0])
        except Damaged as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        results = dict(zip(work, pool.map(read, work), strict=True))
    return (
        {file: found for file, found in results.items() if isinstance(found, dict)},
        [str(found) for found in results.values() if isinstance(found, Damaged)],
    )


def _make_spectrograms(
    path: Path, name: str, file: Path, metadata: dict, shape: tuple[int, int]
) -> Spectrograms:
    return Spectrograms(
        path,
        name,
        **{field: metadata[field] for field in ("seconds", "rate", "channels", "note")},
        starts=np.array(metadata["starts"], np.float64),
        ends=np.array(metadata["ends"], np.float64),
        silent=np.array(metadata["silent"], bool),
        file=file.with_suffix(".npy"),
        size=metadata["spectrograms_bytes"],
        shape=shape,
        digest=metadata.get("digest") or digests.compute_digest(os.fsencode(path)),
    )


def compute_all(work: Mapping[Path, Callable[[], dict]], quiet: bool) -> dict[Path, dict]:
    """Calls what makes each entry of a cache in a few threads, and returns the metadata of all."""
    if not work:
        return {}
    pool = concurrent.futures.ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
    try:
        futures = {file: pool.submit(make) for file, make in work.items()}
        with Progress(len(futures), quiet=quiet, unit="file") as progress:
            for done, future in enumerate(concurrent.futures.as_completed(futures.values()), 1):
                future.result()
                progress.update(done)
        return {file: future.result() for file, future in futures.items()}
    finally:
        pool.shutdown(cancel_futures=True)


def _write_recording(path: Path, starts: list[float] | None, audio: ConfigDict, file: Path) -> dict:
    """Writes the spectrograms of a recording, or why there are none, and returns the metadata."""
    made = file.with_suffix(".npy")
    write = functools.partial(_write_spectrograms, path, starts, audio, made)
    return write_entry(path, file, made, write)


def write_entry(path: Path, file: Path, made: Path, write: Callable[[], dict]) -> dict[str, Any]:
    """Makes something of a recording, and writes its metadata, or why nothing can be made of it.

    Args:
        path: the recording.
        file: for the metadata.
        made: the file that `write` writes.
        write: returns further metadata, or raises Unreadable.

    Returns:
        The metadata.
    """
    try:
        metadata = {"path": str(path), "reason": "", **facts.describe_recording(path)}
    except OSError as error:
        return {"reason": f"cannot be opened: {error.strerror or error}"}
    try:
        metadata |= write()
    except Unreadable as error:
        metadata["reason"] = str(error)
        if isinstance(error.__cause__, OSError):  # May be temporary, without a change of the file.
            return metadata
        return facts.write_facts(file, metadata, None)
    # After what was made, so that it is complete if the metadata exists.
    return facts.write_facts(file, metadata, made)


def _write_spectrograms(
    path: Path, starts: list[float] | None, audio: ConfigDict, file: Path
) -> dict:
    """Writes the spectrograms of one recording, and returns what is known of it and its windows."""
    recording = recordings.probe_recording(path)
    rate, notes = audio.sample_rate, [recording.note] if recording.note else []
    stream = _CountedStream(recordings.stream_samples(recording, rate, audio.channel, notes.append))
    if starts is None:
        cut = windows.cut_grid(stream, rate, audio.seconds, audio.hop, audio.pad)
    else:
        cut = windows.cut_at(stream, rate, audio.seconds, starts, audio.pad)
    rows = []
    with (
        replace_file(file) as temporary,
        _append_pictures(temporary, spectrograms.compute_shape(audio)) as append,
    ):
        for window in cut:
            append(spectrograms.compute_spectrogram(window.samples, audio))
            rows.append((window.start, window.end, window.silent))
        # The rest after the last window counts for the length, and may be damaged.
        for _ in stream:
            pass
        seconds = stream.samples / rate
        if not rows:
            raise Unreadable(f"no window of {audio.seconds:g} s in its {seconds:g} s")
    begins, ends, silent = zip(*rows, strict=True)
    return {
        "seconds": seconds,
        "rate": recording.rate,
        "channels": recording.channels,
        "note": "; ".join(notes),
        "starts": begins,
        "ends": ends,
        "silent": silent,
        "digest": stream.digest,
    }


class _CountedStream:
    """Blocks of samples, with the number and the digest of the samples that have been read."""

    def __init__(self, blocks: Iterator[np.ndarray]):
        self._blocks = blocks
        self.samples = 0
        self._hash = hashlib.blake2b(digest_size=8)

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self._blocks:
            self.samples += len(block)
            self._hash.update(np.ascontiguousarray(block))
            yield block

    @property
    def digest(self) -> int:
        return int.from_bytes(self._hash.digest(), "big")


@contextlib.contextmanager
def _append_pictures(
    path: Path, shape: tuple[int, ...]
) -> Iterator[Callable[[np.ndarray], object]]:
    """Writes a .npy file picture by picture, because those of a whole day do not fit into memory."""
    count = 0

    def write_header() -> None:
        # NumPy pads the header, so that its length stays the same when `count` grows.
        layout = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
        np.lib.format.write_array_header_1_0(file, layout)

    def append(picture: np.ndarray) -> None:
        nonlocal count
        file.write(np.ascontiguousarray(picture))
        count += 1

    with open(path, "wb") as file:
        write_header()
        header_size = file.tell()
        yield append
        file.seek(0)
        write_header()
        assert file.tell() == header_size
        file.flush()
        os.fsync(file.fileno())


def _make_settings_key(audio: ConfigDict) -> str:
    values = {name: getattr(audio, name) for name in _SETTINGS}
    values |= spectrograms.list_settings(audio)
    # Caches are older than the other value.
    if values["frontend"] == spectrograms.FRONTENDS[0]:
        del values["frontend"]
    return make_key(_FORMAT, values, {name: get_version(name) for name in _LIBRARIES})


def get_version(name: str) -> str:
    """Returns the version of an installed distribution; '' without one."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""  # Its import raises a clear error later.


def make_key(*values: object) -> str:
    """Returns a name for a file or folder that depends on values, 20 characters long."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def _describe(usable: list[Spectrograms], audio: ConfigDict) -> list[str]:
    """Returns notes on usable recordings with peculiarities."""
    notes = []
    low = [record for record in usable if record.rate < audio.sample_rate]
    if low:
        note = (
            f"{_count_recordings(low)} fewer than {audio.sample_rate:,} samples per second (down to "
            f"{min(record.rate for record in low):,}): the upper bands of their spectrograms are empty"
        )
        # Not if some recordings have a higher rate: their upper bands would be lost.
        rate = max(record.rate for record in usable)
        advice = (
            f"; --config.audio.sample_rate={rate} would fill them"
            if len(low) == len(usable)
            else ""
        )
        notes.append(f"{note}{advice}.")
    if many := [record for record in usable if record.channels > 1]:
        used = "their mean is" if audio.channel == "mean" else f"channel {audio.channel} is"
        notes.append(f"{_count_recordings(many)} more than one channel; {used} used.")
    if short := [record for record in usable if record.seconds < audio.seconds]:
        padding = "zeros" if audio.pad == "zero" else "their own beginning"
        notes.append(
            f"{_count_recordings(short)} less than {audio.seconds:g} s, padded with {padding}."
        )
    if noted := [record for record in usable if record.note]:
        notes.append(
            f"{_count_recordings(noted)} a flaw: {noted[0].name} ({noted[0].note})"
            f"{', ...' if len(noted) > 1 else '.'}"
        )
    return notes


def _count_recordings(items: list[Spectrograms]) -> str:
    return "1 recording has" if len(items) == 1 else f"{len(items):,} recordings have"
