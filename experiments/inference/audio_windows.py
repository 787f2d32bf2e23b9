"""From recordings to windows, and from windows to what a network sees of them."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from ml_collections import ConfigDict

from experiments.audio import recordings, spectrograms, windows
from experiments.audio.detections import Interval
from experiments.audio.require import require_library
from experiments.data import Example
from experiments.data.reading import THREADS, File, prefetch_map
from experiments.inference.trained import Trained


@dataclasses.dataclass(eq=False)
class Listened:
    """A recording that is being heard.

    Attributes:
        file: where it is.
        note: what is wrong with it though it can be used, known at its end; else ''.
    """

    file: File
    note: str = ""


def settings(trained: Trained, hop: float = 0.0) -> ConfigDict:
    """The run's settings of sound, for sounds that nobody has cut: no end is left out.

    Args:
        trained: of a run on recordings.
        hop: seconds from one window to the next; 0 for the run's.
    """
    audio = trained.config.audio.copy_and_resolve_references()
    audio.hop = hop or audio.hop
    audio.pad = "zero" if audio.pad == "drop" else audio.pad
    return audio


def windows_of(
    trained: Trained, samples: np.ndarray, rate: int
) -> Iterator[tuple[Interval, Example]]:
    """Windows of a sound, and what the network sees of each.

    Args:
        trained: of a run on recordings.
        samples: `[n]`.
        rate: samples per second.

    Raises:
        ValueError: if the run was on something else, or the samples are none that could be heard.
    """
    samples = np.asarray(samples)
    if not trained.hears:
        raise ValueError(f"the run was on {trained.config.data.name}, not on recordings")
    if samples.ndim != 1 or not samples.size or not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"{samples.dtype} {samples.shape}; a sound is floating, [n] and not empty")
    if not np.isfinite(samples).all():
        raise ValueError("some samples are NaN or infinite")
    audio, samples = settings(trained), samples.astype(np.float32)
    if rate != audio.sample_rate:
        # A constant would ring at both ends.
        first = samples[0]
        samples = require_library("soxr").resample(samples - first, rate, audio.sample_rate) + first
    cut = windows.cut_grid([samples], audio.sample_rate, audio.seconds, audio.hop, audio.pad)
    for window in cut:
        yield Interval(window.start, window.end, window.silent), see(trained, window, audio)


def see(trained: Trained, window: windows.Window, audio: ConfigDict) -> Example:
    """What the network sees of a window."""
    return trained.prepare(spectrograms.compute_spectrogram(window.samples, audio))


def examples(
    trained: Trained,
    files: Iterable[File],
    audio: ConfigDict,
    unusable: Callable[[File, str], None],
    say: Callable[[str], None],
) -> Iterator[tuple[tuple[Listened, Interval], Example]]:
    """The windows of recordings and what the network sees of them; a few are prepared ahead by threads.

    Args:
        trained: of a run on recordings.
        files: the recordings.
        audio: of `settings`.
        unusable: is told of each file of which there is no window, and why.
        say: is told, once, what is odd about recordings that can be used.
    """

    def prepared(
        found: tuple[Listened, windows.Window],
    ) -> tuple[tuple[Listened, Interval], Example]:
        of, window = found
        place = Interval(window.start, window.end, window.silent)
        return (of, place), see(trained, window, audio)

    return prefetch_map(prepared, recorded(files, audio, unusable, say), THREADS)


def recorded(
    files: Iterable[File],
    audio: ConfigDict,
    unusable: Callable[[File, str], None],
    say: Callable[[str], None],
) -> Iterator[tuple[Listened, windows.Window]]:
    """The windows of recordings with their samples; see `examples`."""
    said = False
    for file in files:
        of, window = Listened(file), None
        try:
            recording = recordings.probe_recording(file.path, file.name)
            if recording.rate < audio.sample_rate and not said:
                said = True
                say(
                    f"{file.path} has {recording.rate:,} samples a second, fewer than the run's "
                    f"{audio.sample_rate:,}: above {recording.rate // 2:,} Hz nothing can be heard in it"
                )
            of.note = recording.note

            def noted(note: str, of: Listened = of) -> None:
                of.note = note

            blocks = recordings.stream_samples(recording, audio.sample_rate, audio.channel, noted)
            for window in windows.cut_grid(
                blocks, audio.sample_rate, audio.seconds, audio.hop, audio.pad
            ):
                yield of, window
        except ValueError as error:
            if window is None:
                unusable(file, str(error))
                continue
            of.note = f"truncated behind {window.end:.3f} s: {error}"
        if window is None:
            unusable(file, "no samples")
