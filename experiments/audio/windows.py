"""Cuts a stream of samples into windows of equal length, with positions in whole samples."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from experiments.core.errors import UserError

PADS = ("zero", "repeat", "drop")


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """A window of a recording.

    Attributes:
        start, end: in seconds; the end is never beyond the recording's.
        samples: float32 `[L]`, padded if the recording ends before the window.
        silent: whether all samples of the recording in it are equal.
    """

    start: float
    end: float
    samples: np.ndarray
    silent: bool


def cut_grid(
    blocks: Iterable[np.ndarray], rate: int, seconds: float, hop: float, pad: str = "zero"
) -> Iterator[Window]:
    """Yields a window every `hop` seconds; one more window, padded, covers the rest at the end.

    Args:
        blocks: consecutive samples, float32 `[n]` each; at most a window and a block are held in memory.
        rate: samples per second.
        seconds: length of a window.
        hop: distance of the starts in seconds.
        pad: padding of a window that reaches beyond the end: 'zero', 'repeat' for its sound again from its
            start, or 'drop' to leave the window out.

    Example:
        >>> sound = np.arange(10, dtype=np.float32)
        >>> [(w.start, w.end) for w in cut_grid([sound], rate=2, seconds=2.0, hop=1.5)]
        [(0.0, 2.0), (1.5, 3.5), (3.0, 5.0)]
    """
    step = _count_samples(hop, rate, "hop")
    return _cut_windows(blocks, rate, seconds, itertools.count(0, step), pad, every=False)


def cut_at(
    blocks: Iterable[np.ndarray],
    rate: int,
    seconds: float,
    starts: Iterable[float],
    pad: str = "zero",
) -> Iterator[Window]:
    """Yields windows at chosen positions, in the order of time.

    Args:
        blocks, rate, seconds, pad: as in `cut_grid`.
        starts: in seconds; a negative start becomes 0, and one after the end gets no window.
    """
    samples = sorted(max(0, round(start * rate)) for start in starts)
    return _cut_windows(blocks, rate, seconds, iter(samples), pad, every=True)


def _cut_windows(
    blocks: Iterable[np.ndarray],
    rate: int,
    seconds: float,
    starts: Iterator[int],
    pad: str,
    every: bool,
) -> Iterator[Window]:
    """Yields windows at ascending starts in samples; without `every`, only one may reach beyond the end."""
    if pad not in PADS:
        raise UserError(f"--config.audio.pad={pad}: choose one of {', '.join(PADS)}.")
    length = _count_samples(seconds, rate, "seconds")
    held: list[np.ndarray] = []
    first = count = 0  # Position of the first held sample, and number of held samples.
    covered = 0  # End of the last window.
    start = next(starts, None)
    for block in blocks:
        held, count = [*held, block], count + len(block)
        while start is not None and start + length <= first + count:
            held = [np.concatenate(held)]  # Once per window, not per block.
            samples = held[0][start - first : start - first + length].copy()
            yield Window(start / rate, (start + length) / rate, samples, _is_silent(samples))
            covered = start + length
            start = next(starts, None)
        if start is None:
            return
        while held and first < start:  # Forget the samples before the next window.
            dropped = min(start - first, len(held[0]))
            first, count = first + dropped, count - dropped
            held = [held[0][dropped:], *held[1:]] if dropped < len(held[0]) else held[1:]
    total = first + count
    if pad == "drop":
        return
    while start is not None and start < total and (every or covered < total):
        held = [np.concatenate(held)]
        samples = held[0][start - first :]
        padded = np.resize(samples, length) if pad == "repeat" else np.zeros(length, np.float32)
        padded[: len(samples)] = samples
        yield Window(start / rate, total / rate, padded, _is_silent(samples))
        covered = start + length
        start = next(starts, None)


def _is_silent(samples: np.ndarray) -> bool:
    # Rounding would make the standard deviation slightly more than 0.
    return bool((samples == samples[0]).all())


def _count_samples(seconds: float, rate: int, setting: str) -> int:
    samples = round(seconds * rate)
    if samples < 1:
        raise UserError(
            f"--config.audio.{setting}={seconds}: choose at least one sample, 1 / {rate} s."
        )
    return samples
