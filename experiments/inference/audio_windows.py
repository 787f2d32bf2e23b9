"""Windows of sounds and recordings, prepared for a trained network."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from ml_collections import ConfigDict

from experiments.audio import recordings, spectrograms, windows
from experiments.audio.detections import Interval
from experiments.audio.require import require_library
from experiments.data import Example
from experiments.data.reading import THREADS, File, prefetch_map

Prepare = Callable[[np.ndarray], Example]
"""Makes an example of a spectrogram, as the network sees it."""

SOUND_SUFFIXES = (*recordings.SUFFIXES, *recordings.FOREIGN_SUFFIXES)
"""Suffixes of the files in folders that are used, or listed with the reason why not."""


@dataclasses.dataclass(eq=False)
class OpenRecording:
    """A recording that is being read.

    Attributes:
        file: the recording.
        note: its flaws; complete once all of it is read.
        seconds: its length.
    """

    file: File
    note: str = ""
    seconds: float = 0.0

    def add_note(self, text: str) -> None:
        """Adds a flaw to the others."""
        self.note = f"{self.note}; {text}" if self.note else text


def make_audio_settings(audio: ConfigDict, hop: float = 0.0) -> ConfigDict:
    """Returns a run's settings of sound for recordings of any length, whose ends are kept.

    `hop` is the seconds from one window to the next; 0 for the run's.
    """
    audio = audio.copy_and_resolve_references()
    audio.hop = hop or audio.hop
    audio.pad = "zero" if audio.pad == "drop" else audio.pad
    return audio


def cut_samples(
    samples: np.ndarray, rate: int, audio: ConfigDict, prepare: Prepare
) -> Iterator[tuple[Interval, Example]]:
    """Yields the windows of samples `[n]` and their examples; `audio` is of `make_audio_settings`.

    Raises:
        ValueError: if the samples are invalid.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or not samples.size or not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(
            f"samples must be floats of shape [n], n > 0; got {samples.dtype} {samples.shape}"
        )
    if not np.isfinite(samples).all():
        raise ValueError("samples must be finite; got NaN or infinity")
    samples = samples.astype(np.float32)
    if rate != audio.sample_rate:
        first = samples[0]  # The resampler would ring at the ends of a constant offset.
        samples = require_library("soxr").resample(samples - first, rate, audio.sample_rate) + first
    for window in windows.cut_grid(
        [samples], audio.sample_rate, audio.seconds, audio.hop, audio.pad
    ):
        place = Interval(window.start, window.end, window.silent)
        yield place, prepare(spectrograms.compute_spectrogram(window.samples, audio))


def prepare_windows(
    files: Iterable[File],
    audio: ConfigDict,
    prepare: Prepare,
    skip: Callable[[File, str], None],
    say: Callable[[str], None],
) -> Iterator[tuple[tuple[OpenRecording, Interval], Example]]:
    """Yields the windows of recordings and their examples; threads prepare a few ahead.

    See `read_windows` for the arguments.
    """

    def prepare_one(
        item: tuple[OpenRecording, windows.Window],
    ) -> tuple[tuple[OpenRecording, Interval], Example]:
        recording, window = item
        place = Interval(window.start, window.end, window.silent)
        example = prepare(spectrograms.compute_spectrogram(window.samples, audio))
        return (recording, place), example

    return prefetch_map(prepare_one, read_windows(files, audio, skip, say), THREADS)


def read_windows(
    files: Iterable[File],
    audio: ConfigDict,
    skip: Callable[[File, str], None],
    say: Callable[[str], None],
) -> Iterator[tuple[OpenRecording, windows.Window]]:
    """Yields the windows of recordings with their samples; of one that breaks off, those before the break.

    Args:
        files: the recordings.
        audio: made by `make_audio_settings`.
        skip: called with each file that has no window, and the reason.
        say: called once if recordings can be used but lack high frequencies.
    """
    warned = False
    for file in files:
        opened, window = OpenRecording(file), None
        try:
            recording = recordings.probe_recording(file.path, file.name)
            if recording.rate < audio.sample_rate and not warned:
                warned = True
                say(
                    f"{file.path} has {recording.rate:,} samples per second, fewer than the run's "
                    f"{audio.sample_rate:,}: it has no sound above {recording.rate // 2:,} Hz"
                )
            opened.note, opened.seconds = recording.note, recording.seconds

            def note(text: str, opened: OpenRecording = opened) -> None:
                opened.add_note(text)

            blocks = recordings.stream_samples(recording, audio.sample_rate, audio.channel, note)
            for window in windows.cut_grid(
                blocks, audio.sample_rate, audio.seconds, audio.hop, audio.pad
            ):
                yield opened, window
        except ValueError as error:
            if window is None:
                skip(file, str(error))
                continue
            opened.add_note(f"truncated after {window.end:.3f} s: {error}")
        if window is None:
            skip(file, "no samples")
