"""Windows of equal length out of a stream of samples, kept count of in whole samples."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from experiments.core.errors import UserError

PADS = ("zero", "repeat", "drop")


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """A piece of a recording.

    Attributes:
        start, end: where it lies, in seconds; the end is never beyond the recording's.
        samples: float32 `[L]`, padded where the recording ends before the window.
        silent: whether all samples of the recording in it are the same.
    """

    start: float
    end: float
    samples: np.ndarray
    silent: bool


def cut_grid(
    blocks: Iterable[np.ndarray], rate: int, seconds: float, hop: float, pad: str = "zero"
) -> Iterator[Window]:
    """Windows at every `hop` seconds; what is left at the end gets one more, which is padded.

    Args:
        blocks: float32 `[n]` each, one after another; no more than a window and a block is held.
        rate: samples per second.
        seconds: length of a window.
        hop: from one start to the next.
        pad: what a window beyond the end is filled up with: 'zero', 'repeat' for its sound again from
            its start, or 'drop' for no such window.

    Example:
        >>> sound = np.arange(10, dtype=np.float32)
        >>> [(w.start, w.end) for w in cut_grid([sound], rate=2, seconds=2.0, hop=1.5)]
        [(0.0, 2.0), (1.5, 3.5), (3.0, 5.0)]
    """
    step = _whole(hop, rate, "hop")
    return _cut(blocks, rate, seconds, itertools.count(0, step), pad, every=False)


def cut_at(
    blocks: Iterable[np.ndarray],
    rate: int,
    seconds: float,
    starts: Iterable[float],
    pad: str = "zero",
) -> Iterator[Window]:
    """Windows at given places, in the order of time.

    Args:
        blocks, rate, seconds, pad: as in `cut_grid`.
        starts: in seconds; what is before the recording becomes 0, what is after it gets no window.
    """
    samples = sorted(max(0, round(start * rate)) for start in starts)
    return _cut(blocks, rate, seconds, iter(samples), pad, every=True)


def _cut(
    blocks: Iterable[np.ndarray],
    rate: int,
    seconds: float,
    starts: Iterator[int],
    pad: str,
    every: bool,
) -> Iterator[Window]:
    """Windows at rising starts, in samples; without `every`, one at most reaches beyond the end."""
    if pad not in PADS:
        raise UserError(f"--config.audio.pad={pad}: choose one of {', '.join(PADS)}.")
    length = _whole(seconds, rate, "seconds")
    held, first, count, seen = (
        [],
        0,
        0,
        0,
    )  # `first` is the place of what is held, `count` its length.
    start = next(starts, None)
    for block in blocks:
        held, count = [*held, block], count + len(block)
        while start is not None and start + length <= first + count:
            held = [np.concatenate(held)]  # Not with every block: a window may have many.
            samples = held[0][start - first : start - first + length].copy()
            yield Window(start / rate, (start + length) / rate, samples, _silent(samples))
            seen = start + length
            start = next(starts, None)
        if start is None:
            return
        while held and first < start:
            gone = min(start - first, len(held[0]))
            first, count = first + gone, count - gone
            held = [held[0][gone:], *held[1:]] if gone < len(held[0]) else held[1:]
    total = first + count
    if pad == "drop":
        return
    while start is not None and start < total and (every or seen < total):
        held = [np.concatenate(held)]
        samples = held[0][start - first :]
        padded = np.resize(samples, length) if pad == "repeat" else np.zeros(length, np.float32)
        padded[: len(samples)] = samples
        yield Window(start / rate, total / rate, padded, _silent(samples))
        seen = start + length
        start = next(starts, None)


def _silent(samples: np.ndarray) -> bool:
    # A standard deviation would come out as a little more than 0.
    return bool((samples == samples[0]).all())


def _whole(seconds: float, rate: int, setting: str) -> int:
    samples = round(seconds * rate)
    if samples < 1:
        raise UserError(
            f"--config.audio.{setting}={seconds}: choose at least one sample, 1 / {rate} s."
        )
    return samples
