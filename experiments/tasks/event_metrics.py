"""Metrics of detected events: matches with collars, and the polyphonic sound detection score (PSDS)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from experiments.audio.frames import Event, Stretch, find_events
from experiments.tasks.metrics import compute_precision_recall_f1, name_values

ONSET_COLLAR = 0.2  # seconds
OFFSET_SHARE = 0.2  # of the true event's length, where that is more
# Scenarios of DCASE's task of sound events in domestic environments. The first wants exact times, the second
# right classes.
SCENARIOS: dict[str, dict[str, float]] = {
    "psds1": {"detected": 0.7, "covered": 0.7, "crossed": 0.3, "cross_weight": 0.0},
    "psds2": {"detected": 0.1, "covered": 0.1, "crossed": 0.3, "cross_weight": 0.5},
}
INSTABILITY = 1.0  # weight of the standard deviation over the classes
MOST_FALSE = 100.0  # false events per hour where the score's curve ends
THRESHOLDS = np.linspace(0.01, 0.99, 50)


def merge_events(events: Sequence[Event]) -> list[Event]:
    """Joins events of the same class that touch, in the order of class and time."""
    merged: list[Event] = []
    for event in sorted(events, key=lambda one: (one.number, one.onset)):
        last = merged[-1] if merged else None
        if last is None or last.number != event.number or event.onset > last.offset:
            merged.append(event)
        else:
            offset = max(last.offset, event.offset)
            merged[-1] = Event(event.number, last.onset, offset)
    return merged


def count_matches(true: Sequence[Event], found: Sequence[Event], num_classes: int) -> np.ndarray:
    """Counts the events of a stretch that match.

    A true and a found event of the same class match if their onsets differ by at most 200 ms, and their
    offsets by at most 200 ms or 20 % of the length of the true one. Each event has one partner at most, and
    the number of pairs is as large as possible.

    Returns:
        The numbers of pairs, of found and of true events of each class, int `[3, C]`.

    Source:
        Mesaros, Heittola, Virtanen: Metrics for Polyphonic Sound Event Detection. Applied Sciences 6, 2016.

    Example:
        >>> true = [Event(0, 1.0, 3.0), Event(0, 5.0, 6.0)]
        >>> found = [Event(0, 1.1, 3.4), Event(0, 5.0, 6.3)]
        >>> count_matches(true, found, 1).ravel().tolist()
        [1, 2, 2]
    """
    counts = np.zeros((3, num_classes), int)
    for number in range(num_classes):
        ours, theirs = (
            np.array([(e.onset, e.offset) for e in events if e.number == number]).reshape(-1, 2)
            for events in (found, true)
        )
        counts[1:, number] = len(ours), len(theirs)
        if len(ours) and len(theirs):
            distances = np.abs(theirs[:, None] - ours)
            lengths = theirs[:, 1] - theirs[:, 0]
            collars = np.maximum(ONSET_COLLAR, OFFSET_SHARE * lengths)[:, None]
            # Times are decimal numbers, of which 0.3 - 0.1 is slightly more than 0.2.
            fits = (distances[..., 0] <= ONSET_COLLAR + 1e-9) & (
                distances[..., 1] <= collars + 1e-9
            )
            counts[0, number] = (maximum_bipartite_matching(csr_array(fits)) >= 0).sum()
    return counts


def compute_event_scores(counts: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Returns precision, recall and F1 of events, means over the classes that have any.

    Args:
        counts: of `count_matches`, summed over all stretches, `[3, C]`.
        classes: name of each class.

    Returns:
        `event_precision`, `event_recall`, `event_f1` and `f1`, of each class, None for one without events.
    """
    measured = compute_precision_recall_f1(*counts)
    present = ~np.isnan(measured["f1"])
    means = {
        f"event_{name}": float(values[present].mean()) if present.any() else 0.0
        for name, values in measured.items()
    }
    return {**means, "f1": name_values(classes, measured["f1"])}


def compute_psds(
    stretches: Sequence[Stretch], events: Sequence[Sequence[Event]], classes: int
) -> dict[str, float]:
    """Returns the polyphonic sound detection scores (PSDS) of two scenarios, from 50 thresholds.

    A score is the area, from 0 to 1, under the effective true positive rate

        e(x) = max(0, mean_c r_c(x) - INSTABILITY std_c r_c(x)),    0 <= x <= MOST_FALSE

    r_c(x) is the largest share of a class's true events that are detected with at most x false events an
    hour. A detection is right if true events of its class cover `detected` of it, and false otherwise; a true
    event is detected if right detections cover `covered` of it. A false detection of which events of another
    class cover `crossed` counts again, for an hour of that class, with `cross_weight` in the mean over the
    classes.

    psds_eval, the authors' library, last released in 2022, calls what pandas 3 and NumPy 2.4 do not have any
    more. Its numbers with older ones are the same as these.

    Args:
        stretches: smoothed scores.
        events: the true events of each stretch, of which those of a class do not touch.
        classes: number of classes; those without true events count nowhere.

    Returns:
        `psds1`, which wants exact times, and `psds2`, which wants the right classes; nothing without true
        events.

    Source:
        Bilen, Ferroni, Tuveri, Azcarreta, Krstulovic: A Framework for the Robust Evaluation of Sound Event
        Detection. ICASSP 2020. https://arxiv.org/abs/1910.08440
    """
    if not any(events):
        return {}
    tables = [
        _measure_overlaps([find_events(one, limit) for one in stretches], events)
        for limit in THRESHOLDS
    ]
    hours = sum(stretch.end - stretch.start for stretch in stretches) / 3600
    true = [event for of_stretch in events for event in of_stretch]
    numbers = np.array([event.number for event in true])
    counts = np.bincount(numbers, minlength=classes)
    lengths = np.bincount(
        numbers, [event.offset - event.onset for event in true], minlength=classes
    )
    present = np.flatnonzero(counts)
    scores = {}
    for name, scenario in SCENARIOS.items():
        points = [_count_detected(table, numbers, classes, scenario) for table in tables]
        hits, false, crossed = (np.stack(values) for values in zip(*points, strict=True))
        rates = hits[:, present] / counts[present]
        per_hour = false[:, present] / hours
        if len(present) > 1 and scenario["cross_weight"]:
            crossed = crossed[:, present][:, :, present] / (lengths[present] / 3600)
            means = crossed.sum(axis=2) / (len(present) - 1)  # none with the class itself
            per_hour = per_hour + scenario["cross_weight"] * means
        scores[name] = _measure_area(rates, per_hour)
    return scores


class _Overlaps(NamedTuple):
    """Overlaps of detections with true events, of any classes.

    Attributes:
        numbers: the class of each detection.
        rows, events: the detection and the true event of each overlap.
        of_detection, of_event: the share of these that it is.
    """

    numbers: np.ndarray
    rows: np.ndarray
    events: np.ndarray
    of_detection: np.ndarray
    of_event: np.ndarray


def _measure_overlaps(
    found: Sequence[Sequence[Event]], true: Sequence[Sequence[Event]]
) -> _Overlaps:
    """Measures how the detections of all stretches overlap the true events."""
    numbers, parts, detections, events = [], [], 0, 0
    for ours, theirs in zip(found, true, strict=True):
        numbers += [event.number for event in ours]
        if ours and theirs:
            (begin, end), (onset, offset) = (
                np.array([(e.onset, e.offset) for e in side]).T for side in (ours, theirs)
            )
            shared = np.minimum(end[:, None], offset) - np.maximum(begin[:, None], onset)
            row, column = np.nonzero(shared > 0)
            length = shared[row, column]
            shares = length / (end - begin)[row], length / (offset - onset)[column]
            parts.append((row + detections, column + events, *shares))
        detections, events = detections + len(ours), events + len(theirs)
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)] or [np.empty(0)] * 4
    rows, columns = (column.astype(int) for column in joined[:2])
    return _Overlaps(np.array(numbers, int), rows, columns, *joined[2:])


def _count_detected(
    found: _Overlaps, events: np.ndarray, classes: int, scenario: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns detected events and false detections of each class, and these by the class that they cross.

    Args:
        found: all overlaps.
        events: the class of each true event.
        classes: C.
        scenario: one of `SCENARIOS`.

    Returns:
        `[C]`, `[C]` and `[C, C]`.
    """
    ours, theirs = found.numbers[found.rows], events[found.events]
    shares = np.zeros((len(found.numbers), classes))
    np.add.at(shares, (found.rows, theirs), found.of_detection)
    # Sums of shares that make one are slightly less at times.
    right = shares[np.arange(len(shares)), found.numbers] >= scenario["detected"] - 1e-9
    covering = (ours == theirs) & right[found.rows]
    covered = np.bincount(found.events[covering], found.of_event[covering], minlength=len(events))
    hits = np.bincount(events[covered >= scenario["covered"] - 1e-9], minlength=classes)
    false = np.bincount(found.numbers[~right], minlength=classes)
    crosses = shares >= scenario["crossed"] - 1e-9
    crossed = np.zeros((classes, classes), int)
    np.add.at(crossed, found.numbers[~right], crosses[~right])
    np.fill_diagonal(crossed, 0)
    return hits, false, crossed


def _measure_area(rates: np.ndarray, per_hour: np.ndarray) -> float:
    """Returns the area under the effective true positive rate, over all points' numbers of false events.

    Args:
        rates: the true positive rate at each threshold of each class, `[n, C]`.
        per_hour: effective false positives an hour, `[n, C]`.
    """
    steps = np.unique(np.append(per_hour[per_hour < MOST_FALSE], 0.0))
    highest = [
        np.where(points[:, None] <= steps, values[:, None], 0).max(axis=0)
        for values, points in zip(rates.T, per_hour.T, strict=True)
    ]
    effective = np.mean(highest, axis=0) - INSTABILITY * np.std(highest, axis=0)
    widths = np.diff(np.append(steps, MOST_FALSE))
    return float((np.maximum(effective, 0) * widths).sum() / MOST_FALSE)
