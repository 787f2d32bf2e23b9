"""Cuts clips out of recordings, and encodes them for listening."""

import io
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from experiments.audio.recordings import MAX_FRAMES
from experiments.audio.require import require_library

# The rates that MP3 has.
_MP3_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)


def cut_clips(
    blocks: Iterable[np.ndarray], rate: int, intervals: Sequence[tuple[float, float]]
) -> Iterator[tuple[int, float, np.ndarray]]:
    """Cuts intervals, which may overlap, out of a sound that is read once from its start.

    Args:
        blocks: consecutive samples, float32 `[n]` each; what no interval needs is not kept.
        rate: samples per second.
        intervals: start and end in seconds; a part before or after the sound is left out.

    Yields:
        The number of each interval, the start in seconds and the samples, in the order of their ends. An
        interval outside of the sound is left out.

    Example:
        >>> sound = np.arange(10, dtype=np.float32)
        >>> [(n, start, clip.tolist()) for n, start, clip in cut_clips([sound], 2, [(3, 9), (-1, 1)])]
        [(1, 0.0, [0.0, 1.0]), (0, 3.0, [6.0, 7.0, 8.0, 9.0])]
    """
    spans = sorted(
        (*(round(min(max(0, time * rate), MAX_FRAMES)) for time in interval), number)
        for number, interval in enumerate(intervals)
    )
    active: dict[int, tuple[int, int, list[np.ndarray]]] = {}
    position = 0
    for block in blocks:
        after = position + len(block)
        while spans and spans[0][0] < after:
            start, end, number = spans.pop(0)
            active[number] = start, end, []
        for number, (start, end, parts) in list(active.items()):
            parts.append(block[max(0, start - position) : max(0, end - position)])
            if end <= after:
                del active[number]
                yield number, start / rate, np.concatenate(parts)
        position = after
        if not spans and not active:
            return
    for number, (start, _, parts) in active.items():
        yield number, start / rate, np.concatenate(parts)


def encode_mp3(samples: np.ndarray, rate: int) -> bytes:
    """Returns samples `[n]` as MP3, which browsers play, at 48 kHz at most.

    Raises:
        UserError: if a library is missing.
    """
    if rate not in _MP3_RATES:
        target = next((one for one in _MP3_RATES if one >= rate), _MP3_RATES[-1])
        samples, rate = require_library("soxr").resample(samples, rate, target), target
    file = io.BytesIO()
    require_library("soundfile").write(file, np.clip(samples, -1, 1), rate, format="MP3")
    return file.getvalue()
