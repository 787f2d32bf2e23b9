"""Samples of recordings at one rate, decoded once: a file per recording, of which excerpts are read."""

import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.audio import cache, facts, recordings
from experiments.audio.facts import Damaged
from experiments.audio.recordings import Unreadable
from experiments.core.errors import UserError
from experiments.core.files import replace_file

_FORMAT = 1  # Increase it when the same settings give other samples than before.
_LIBRARIES = ("numpy", "soundfile", "soxr")
_DTYPE = np.dtype("<f4")


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """The samples of a recording, one channel, float32.

    Attributes:
        name: of the recording, for messages.
        file: the file that holds them.
        count: the number of samples.
        silent: whether all are equal.
    """

    name: str
    file: Path
    count: int
    silent: bool

    def read(self, start: int, length: int, pad: str = "zero") -> np.ndarray:
        """Returns a window, float32 `[length]`.

        Beyond the end it is padded with zeros, or, with `pad='repeat'`, with itself; see `windows.cut_grid`.
        """
        try:
            if os.path.getsize(self.file) != self.count * _DTYPE.itemsize:
                raise ValueError("the size of their file has changed")
            # The copy lets the memory-mapped file be closed at once.
            there = np.array(np.memmap(self.file, _DTYPE, "r")[start : start + length], np.float32)
        except (OSError, ValueError) as error:
            raise UserError(
                f"The samples of {self.name} cannot be read any more ({error}). Start the same command again "
                f"to decode them and continue the run; if that fails, delete {self.file.parent}."
            ) from error
        if pad == "repeat" and len(there):
            return np.resize(there, length)
        return np.pad(there, (0, length - len(there)))

    def draw(self, length: int, rng: np.random.Generator) -> np.ndarray:
        """Returns a random excerpt, float32 `[length]`; a shorter recording begins again at its end."""
        if self.count >= length:
            return self.read(int(rng.integers(self.count - length + 1)), length)
        return np.resize(np.roll(self.read(0, self.count), -rng.integers(self.count)), length)


def prepare_samples(
    paths: Sequence[str | os.PathLike],
    names: Sequence[str],
    audio: ConfigDict,
    folder: str | os.PathLike,
    quiet: bool = False,
) -> tuple[list[Samples | None], list[tuple[str, str]]]:
    """Decodes and resamples recordings, or finds their samples in the cache.

    Args:
        paths, names: the recordings, and their names for messages.
        audio: the audio section of the configuration: `sample_rate` and `channel`.
        folder: the folder of the cache, for all settings.
        quiet: whether to show no progress.

    Returns:
        The samples of each recording, None for one that cannot be used; and the names and reasons of these.
    """
    key = cache.make_key(
        _FORMAT,
        audio.sample_rate,
        audio.channel,
        {name: cache.get_version(name) for name in _LIBRARIES},
    )
    files = [cache.get_metadata_file(Path(path), None, Path(folder) / key) for path in paths]
    # A recording that is listed twice is decoded once: two threads would write the same file.
    work = dict(zip(files, map(Path, paths), strict=True))
    find = {file: partial(_find_or_write, path, audio, file) for file, path in work.items()}
    metadata = cache.compute_all(find, quiet)
    found: list[Samples | None] = []
    skipped = []
    for name, file in zip(names, files, strict=True):
        if reason := metadata[file]["reason"]:
            skipped.append((name, reason))
            found.append(None)
        else:
            count, silent = metadata[file]["count"], metadata[file]["silent"]
            found.append(Samples(name, file.with_suffix(".f4"), count, silent))
    return found, skipped


def _find_or_write(path: Path, audio: ConfigDict, file: Path) -> dict[str, Any]:
    """Returns the metadata of a recording; decodes it if the cache does not have it, or has it damaged."""
    samples_file = file.with_suffix(".f4")
    try:
        if known := facts.read_facts(file, samples_file, path):
            return known
    except Damaged:
        pass  # It is decoded again.
    write = partial(_write_samples, path, audio, samples_file)
    return cache.write_entry(path, file, samples_file, write)


def _write_samples(path: Path, audio: ConfigDict, file: Path) -> dict[str, Any]:
    """Writes the samples of one recording, and returns what is known of them."""
    recording = recordings.probe_recording(path)
    count, low, high = 0, np.inf, -np.inf
    with replace_file(file) as temporary, open(temporary, "wb") as opened:
        for block in recordings.stream_samples(recording, audio.sample_rate, audio.channel):
            opened.write(np.ascontiguousarray(block, _DTYPE))
            count, low, high = count + len(block), min(low, block.min()), max(high, block.max())
        opened.flush()
        os.fsync(opened.fileno())
        if not count:
            raise Unreadable("nothing can be read")
    return {"count": count, "silent": bool(low == high)}
