"""Mean scores of classes by the hour of the day and by station, summed up window by window."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from experiments.audio import times


@dataclasses.dataclass
class Activity:
    """Sums of scores by group; any number of windows takes the same memory.

    Attributes:
        classes: number of classes.
        hours: by hour of the day, 0 to 23: sums of the scores `[C]`, and number of windows.
        stations: by station.
    """

    classes: int
    hours: dict[int, tuple[np.ndarray, int]] = dataclasses.field(default_factory=dict)
    stations: dict[str, tuple[np.ndarray, int]] = dataclasses.field(default_factory=dict)

    def add(self, name: str, start: float, scores: np.ndarray) -> None:
        """Adds a window that begins `start` seconds into the recording `name`, and its scores `[C]`.

        Example:
            >>> activity = Activity(1)
            >>> activity.add("wood/20190522_055900.wav", 90.0, np.array([0.5]))
            >>> list(activity.hours), list(activity.stations)
            ([6], ['wood'])
        """
        if (time := times.parse_time(name)) is not None:
            seconds = 3600 * time.hour + 60 * time.minute + time.second + start
            _add(self.hours, int(seconds // 3600) % 24, scores)
        if station := times.parse_station(name):
            _add(self.stations, station, scores)


def average_scores(sums: dict, keys: Iterable, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean scores `[keys, C]` of groups, NaN for one without windows, and numbers of windows."""
    means, counts = [], []
    for key in keys:
        total, count = sums.get(key, (np.zeros(classes), 0))
        means.append(total / count if count else np.full(classes, np.nan))
        counts.append(count)
    return np.array(means).reshape(-1, classes), np.array(counts, int)


def _add(sums: dict, key: object, scores: np.ndarray) -> None:
    total, count = sums.get(key, (np.zeros(len(scores)), 0))
    sums[key] = total + scores, count + 1
