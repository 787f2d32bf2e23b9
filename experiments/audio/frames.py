"""Scores of short frames in recordings: joined over overlapping windows, smoothed, and turned into events."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.ndimage

from experiments.audio.detections import Interval


@dataclasses.dataclass(frozen=True, eq=False)
class Stretch:
    """Frames of a recording that follow each other, frame n from `start + n * period` seconds on.

    Attributes:
        start: of the first frame in seconds.
        end: of the last window in seconds.
        period: length of a frame in seconds.
        scores: of each frame and class, float32 `[n, C]`.
        silent: whether all windows that cover a frame are silent, bool `[n]`.
    """

    start: float
    end: float
    period: float
    scores: np.ndarray
    silent: np.ndarray

    def find_time(self, frame: int) -> float:
        """Returns the start of a frame, or the end of the stretch for the number after the last."""
        return self.end if frame >= len(self.scores) else self.start + frame * self.period

    def list_frames(self) -> Iterator[tuple[Interval, np.ndarray]]:
        """Yields the place and the scores of each frame."""
        for frame, (scores, silent) in enumerate(zip(self.scores, self.silent, strict=True)):
            start, end = self.find_time(frame), self.find_time(frame + 1)
            yield Interval(start, end, bool(silent)), scores


@dataclasses.dataclass(frozen=True)
class Event:
    """A sound of a class, from its onset to its offset in seconds."""

    number: int
    onset: float
    offset: float


def join_windows(
    places: Sequence[Interval], scores: Sequence[np.ndarray], times: np.ndarray
) -> list[Stretch]:
    """Joins the frames of a recording's windows; where windows overlap, scores are averaged.

    All stretches have frames on one grid, which begins with the recording. A window's scores are interpolated
    between the middles of its frames.

    Args:
        places: n windows in the order of time.
        scores: of the frames of each window, `[T, C]`.
        times: middles of the frames in seconds after the start of a window, `[T]`, in equal steps; a single
            frame is as long as the window.

    Returns:
        The stretches; a gap between windows ends one.

    Example:
        >>> places = [Interval(0.0, 4.0, False), Interval(2.0, 6.0, False)]
        >>> scores = [np.array([[0.0], [0.0], [1.0], [1.0]]), np.zeros((4, 1))]
        >>> (stretch,) = join_windows(places, scores, np.array([0.5, 1.5, 2.5, 3.5]))
        >>> stretch.scores.ravel().tolist()
        [0.0, 0.0, 0.5, 0.5, 0.0, 0.0]
    """
    times = np.asarray(times, np.float64)
    stretches: list[Stretch] = []
    begin = 0
    for number in range(1, len(places) + 1):
        reach = max((place.end for place in places[begin:number]), default=0.0)
        if number == len(places) or places[number].start > reach:
            part = slice(begin, number)
            stretches.append(_join_overlapping(places[part], scores[part], times))
            begin = number
    return stretches


def _join_overlapping(
    places: Sequence[Interval], scores: Sequence[np.ndarray], times: np.ndarray
) -> Stretch:
    end = max(place.end for place in places)
    period = times[1] - times[0] if len(times) > 1 else places[0].end - places[0].start
    # The frames whose middles lie in a window, and at least one.
    spans = []
    for place in places:
        first, last = (int(np.ceil(t / period - 0.5 - 1e-9)) for t in (place.start, place.end))
        spans.append((first, max(last, first + 1)))
    offset, count = spans[0][0], max(last for _, last in spans) - spans[0][0]
    sums = np.zeros((count, scores[0].shape[1]), np.float32)
    weights, loud = np.zeros((2, count), np.int32)
    for place, (first, last), own in zip(places, spans, scores, strict=True):
        middles = (np.arange(first, last) + 0.5) * period
        positions = np.clip((middles - place.start - times[0]) / period, 0, len(own) - 1)
        below = np.floor(positions).astype(int)
        above = np.minimum(below + 1, len(own) - 1)
        share = (positions - below).astype(np.float32)[:, None]
        part = slice(first - offset, last - offset)
        sums[part] += (1 - share) * own[below] + share * own[above]
        weights[part] += 1
        loud[part] += not place.silent
    # Rounding may leave a frame between two windows to neither.
    means = sums / np.maximum(weights, 1)[:, None]
    return Stretch(offset * period, end, period, means, loud == 0)


def smooth_scores(stretch: Stretch, seconds: float) -> Stretch:
    """Replaces the scores of each class by their medians over an odd number of frames, `seconds` at most.

    Ends are continued with their last value. Any threshold of medians is the median of the decisions.
    """
    width = 2 * int(seconds / stretch.period / 2 + 1e-9) + 1
    if width == 1:
        return stretch
    smooth = scipy.ndimage.median_filter(stretch.scores, size=(width, 1), mode="nearest")
    return dataclasses.replace(stretch, scores=smooth)


def find_events(stretch: Stretch, thresholds: float | np.ndarray) -> list[Event]:
    """Returns an event for each run of frames whose score reaches the threshold of its class.

    Args:
        stretch: the frames.
        thresholds: one for all classes, or one for each, `[C]`.

    Example:
        >>> scores = np.array([[0.1], [0.9], [0.8], [0.2]])
        >>> find_events(Stretch(2.0, 4.0, 0.5, scores, np.zeros(4, bool)), 0.5)
        [Event(number=0, onset=2.5, offset=3.5)]
    """
    reached = np.pad(stretch.scores >= thresholds, [(1, 1), (0, 0)]).astype(np.int8)
    steps = np.diff(reached, axis=0)
    events = []
    for number in range(stretch.scores.shape[1]):
        onsets, offsets = (np.flatnonzero(steps[:, number] == sign) for sign in (1, -1))
        events += [
            Event(number, float(stretch.find_time(onset)), float(stretch.find_time(offset)))
            for onset, offset in zip(onsets, offsets, strict=True)
        ]
    return events
