"""Spectrograms of recordings, computed once: one file per recording, in one folder per choice of settings."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from experiments.audio import recordings, spectrograms, windows
from experiments.audio.recordings import Unreadable
from experiments.core import digests
from experiments.core.console import Progress
from experiments.core.errors import UserError
from experiments.core.files import replace_file, write_json

_SETTINGS = ("hop", "channel", "pad", *spectrograms.SETTINGS)
_LIBRARIES = ("PyWavelets", "librosa", "numpy", "pillow", "soundfile", "soxr")
_FORMAT = 1  # Count it up where the same settings shall give other pictures than before.
_THREADS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Spectrograms:
    """The windows of one recording.

    Attributes:
        path, name, seconds, rate, channels, note: as in `recordings.Recording`, after reading it whole.
        starts, ends: of the windows in seconds, float64 `[n]`, n > 0; no end is beyond the recording's.
        silent: bool `[n]`.
        file: where the pictures are.
        shape: height and width of a picture.
        digest: a number for all that was heard; that of its name where it was drawn without one.
    """

    path: pathlib.Path
    name: str
    seconds: float
    rate: int
    channels: int
    note: str
    starts: np.ndarray
    ends: np.ndarray
    silent: np.ndarray
    file: pathlib.Path
    shape: tuple[int, int]
    digest: int

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def levels(self) -> np.ndarray:
        """uint8 `[n, H, W]`, left on the disk until they are looked at.

        Raises:
            UserError: if they are there no more.
        """
        shape = (len(self), *self.shape)
        try:
            # Not by np.load, which has Python's compiler read the head of the file: in Python 3.11 that
            # fails now and then where other threads compile something too (gh-106905).
            head = os.path.getsize(self.file) - math.prod(shape)
            return np.memmap(self.file, np.uint8, "r", head, shape)
        except (OSError, OverflowError, ValueError) as error:
            raise UserError(
                f"The spectrograms of {self.name} cannot be read any more ({error}). The same command draws "
                f"them again and continues the run; if it does not, delete {self.file.parent}."
            ) from error


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """What `prepare_spectrograms` found.

    Attributes:
        usable: the recordings that have windows, in the order given.
        skipped: name and reason of the others.
        notes: sentences about all of them, for the table at the start of a run.
    """

    usable: list[Spectrograms]
    skipped: list[tuple[str, str]]
    notes: list[str]


def prepare_spectrograms(
    paths: Sequence[str | os.PathLike],
    names: Sequence[str],
    audio,
    folder: str | os.PathLike,
    starts: Sequence[Sequence[float]] | None = None,
    max_skipped: float = 0.5,
    quiet: bool = False,
) -> Prepared:
    """Draws the windows of recordings, or finds them drawn.

    Each recording is read once, from its beginning to its end. A file that has changed, other settings
    and other versions of the libraries make pictures of their own.

    Args:
        paths: the recordings.
        names: what to call them.
        audio: the part of the configuration about sound.
        folder: where pictures are kept, for all settings.
        starts: where the windows of each recording begin, in seconds; without, every `audio.hop`.
        max_skipped: the share of them that may be unusable.
        quiet: show no progress.

    Raises:
        UserError: if none of them can be used, or fewer than asked for; a setting makes no sense; a library
            is not installed.
    """
    spectrograms.check_settings(audio)
    place = pathlib.Path(folder) / _settings_key(audio)
    paths = [pathlib.Path(path) for path in paths]
    chosen = [None] * len(paths) if starts is None else [sorted(map(float, s)) for s in starts]
    if not paths:
        raise UserError(
            "There are no recordings (files that end in .wav, .flac, .ogg, .mp3 or .aiff)."
        )
    places = [_facts_file(path, one, place) for path, one in zip(paths, chosen, strict=True)]
    # One that is named twice is drawn once: two threads would write the same file.
    work = dict(zip(places, zip(paths, chosen, strict=True), strict=True))
    known = {facts: _read(facts) for facts in work}
    missing = {facts: work[facts] for facts in work if known[facts] is None}
    known |= _draw_all(missing, audio, quiet)
    found = [
        _pictures(path, name, facts, known[facts], spectrograms.compute_shape(audio))
        for path, name, facts in zip(paths, names, places, strict=True)
    ]
    usable = [record for record in found if isinstance(record, Spectrograms)]
    skipped = [record for record in found if not isinstance(record, Spectrograms)]
    if len(skipped) > max_skipped * len(found) or not usable:
        more = ", or allow more with --config.data.max_skipped=SHARE" if usable else ""
        raise UserError(
            f"{len(skipped):,} of {len(found):,} recordings cannot be used, such as "
            f"{'; '.join(f'{name} ({reason})' for name, reason in skipped[:5])}. Mend or remove them{more}."
        )
    return Prepared(usable, skipped, _notes(usable, audio))


def _facts_file(
    path: pathlib.Path, starts: list[float] | None, place: pathlib.Path
) -> pathlib.Path:
    """Where is written what is known of a recording; its pictures are beside it."""
    try:
        status = os.stat(path)
        version = [status.st_size, status.st_mtime_ns]
    except OSError:  # Drawing it will say why.
        version = []
    return place / f"{_key(os.path.abspath(path), version, starts)}.json"


def _read(facts: pathlib.Path) -> dict | None:
    """What is known of a recording, or None where it or its pictures are missing or damaged."""
    try:
        known = json.loads(facts.read_text(encoding="utf-8"))
        usable = not known["reason"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known if not usable or facts.with_suffix(".npy").is_file() else None


def _pictures(
    path: pathlib.Path, name: str, facts: pathlib.Path, known: dict, shape: tuple[int, int]
) -> Spectrograms | tuple[str, str]:
    if known["reason"]:
        return name, known["reason"]
    starts, ends = (np.array(known[name], np.float64) for name in ("starts", "ends"))
    rest = {name: known[name] for name in ("seconds", "rate", "channels", "note")}
    silent = np.array(known["silent"], bool)
    file = facts.with_suffix(".npy")
    digest = known.get("digest") or digests.compute_digest(os.fsencode(path))
    windowed = {"starts": starts, "ends": ends, "silent": silent}
    return Spectrograms(path, name, **rest, **windowed, file=file, shape=shape, digest=digest)


def _draw_all(work: dict[pathlib.Path, tuple], audio, quiet: bool) -> dict[pathlib.Path, dict]:
    """Draws recordings with a few threads, and returns what is known of them."""
    if not work:
        return {}
    pool = concurrent.futures.ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
    try:
        futures = {facts: pool.submit(_drawn, *work[facts], audio, facts) for facts in work}
        with Progress(len(futures), quiet=quiet, unit="file") as progress:
            for done, future in enumerate(concurrent.futures.as_completed(futures.values()), 1):
                future.result()
                progress.update(done)
        return {facts: future.result() for facts, future in futures.items()}
    finally:
        pool.shutdown(cancel_futures=True)


def _drawn(path: pathlib.Path, starts: list[float] | None, audio, facts: pathlib.Path) -> dict:
    """Writes the pictures of a recording, or why there are none, and returns what is known of it."""
    try:
        known = {"reason": "", **_draw(path, starts, audio, facts.with_suffix(".npy"))}
    except Unreadable as error:
        known = {"reason": str(error)}
        if isinstance(error.__cause__, OSError):  # May be gone tomorrow, with no trace in the file.
            return known
    write_json(
        facts, {"path": str(path), **known}
    )  # After the pictures: they are whole where this is.
    return known


def _draw(path: pathlib.Path, starts: list[float] | None, audio, file: pathlib.Path) -> dict:
    """Writes the pictures of one recording, and returns what is known of it and its windows."""
    recording = recordings.probe_recording(path)
    rate, notes = audio.sample_rate, [recording.note] if recording.note else []
    read = _Counted(recordings.stream_samples(recording, rate, audio.channel, notes.append))
    if starts is None:
        cut = windows.cut_grid(read, rate, audio.seconds, audio.hop, audio.pad)
    else:
        cut = windows.cut_at(read, rate, audio.seconds, starts, audio.pad)
    rows = []
    with (
        replace_file(file) as temporary,
        _growing(temporary, spectrograms.compute_shape(audio)) as add,
    ):
        for window in cut:
            add(spectrograms.compute_spectrogram(window.samples, audio))
            rows.append((window.start, window.end, window.silent))
        # What is behind the last window still belongs to the length, and may be damaged.
        for _ in read:
            pass
        seconds = read.samples / rate
        if not rows:
            raise Unreadable(f"no window of {audio.seconds:g} s in its {seconds:g} s")
    begins, ends, silent = zip(*rows, strict=True)
    facts = {"seconds": seconds, "rate": recording.rate, "channels": recording.channels}
    windowed = {"starts": begins, "ends": ends, "silent": silent}
    return {**facts, "note": "; ".join(notes), **windowed, "digest": read.digest}


class _Counted:
    """Blocks, and the number of samples and a digest of those that have been taken."""

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
def _growing(
    path: pathlib.Path, shape: tuple[int, ...]
) -> Iterator[Callable[[np.ndarray], object]]:
    """Writes a .npy file of pictures one by one: a recording of a day has more than memory holds."""
    count = 0

    def head() -> None:
        # Numpy leaves room in it for the first number to grow.
        layout = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
        np.lib.format.write_array_header_1_0(file, layout)

    def add(picture: np.ndarray) -> None:
        nonlocal count
        file.write(np.ascontiguousarray(picture))
        count += 1

    with open(path, "wb") as file:
        head()
        begin = file.tell()
        yield add
        file.seek(0)
        head()
        assert file.tell() == begin


def _settings_key(audio) -> str:
    values = {name: getattr(audio, name) for name in _SETTINGS}
    return _key(_FORMAT, values, {name: _version(name) for name in _LIBRARIES})


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""  # whoever needs it says that it is missing


def _key(*values: object) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def _notes(usable: list[Spectrograms], audio) -> list[str]:
    """What a person should know of recordings that are used all the same."""
    notes = []
    low = [record for record in usable if record.rate < audio.sample_rate]
    if low:
        notes.append(
            f"{_count(low)} fewer than {audio.sample_rate:,} samples a second (down to "
            f"{min(record.rate for record in low):,}): the upper bands of their pictures are empty."
        )
    if many := [record for record in usable if record.channels > 1]:
        used = "their mean is" if audio.channel == "mean" else f"channel {audio.channel} is"
        notes.append(f"{_count(many)} more than one channel; {used} used.")
    if short := [record for record in usable if record.seconds < audio.seconds]:
        filled = "zeros" if audio.pad == "zero" else "their own beginning"
        notes.append(f"{_count(short)} less than {audio.seconds:g} s, filled up with {filled}.")
    if noted := [record for record in usable if record.note]:
        notes.append(
            f"{_count(noted)} an end missing: {noted[0].name} ({noted[0].note})"
            f"{', ...' if len(noted) > 1 else '.'}"
        )
    return notes


def _count(some: list[Spectrograms]) -> str:
    return "1 recording has" if len(some) == 1 else f"{len(some):,} recordings have"
