"""Metrics of detected events: matches with collars, and the polyphonic sound detection score (PSDS)."""

import importlib
import types
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from experiments.audio.frames import Event, Stretch, find_events
from experiments.audio.require import require_library
from experiments.tasks.metrics import compute_precision_recall_f1

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
    of_classes = {
        name: float(value) if there else None
        for name, value, there in zip(classes, measured["f1"], present, strict=True)
    }
    return {**means, "f1": of_classes}


def compute_psds(
    stretches: Sequence[Stretch], events: Sequence[Sequence[Event]], classes: Sequence[str]
) -> dict[str, float]:
    """Returns the polyphonic sound detection scores of two scenarios, by psds_eval.

    The score is the area, from 0 to 1, under a curve of true positive rates over false positives per hour;
    it needs no threshold, but is computed from 50. Classes without true events count nowhere.

    Args:
        stretches: smoothed scores.
        events: the true events of each stretch, of which those of a class do not touch.
        classes: name of each class.

    Returns:
        `psds1`, which wants exact times, and `psds2`, which wants the right classes; nothing without true
        events.

    Raises:
        UserError: if psds_eval is not installed.

    Source:
        Bilen, Ferroni, Tuveri, Azcarreta, Krstulovic: A Framework for the Robust Evaluation of Sound Event
        Detection. ICASSP 2020. https://arxiv.org/abs/1910.08440
    """
    if not any(events):
        return {}
    pandas = importlib.import_module("pandas")  # psds_eval brings it
    truth = _make_table(pandas, events, classes)
    lengths = [stretch.end - stretch.start for stretch in stretches]
    durations = pandas.DataFrame({"filename": _name_stretches(lengths), "duration": lengths})
    present = sorted(set(truth["event_label"]))
    tables = [
        _make_table(pandas, [find_events(one, limit) for one in stretches], classes, present)
        for limit in THRESHOLDS
    ]
    scores = {}
    for name, scenario in SCENARIOS.items():
        evaluation = _make_evaluation(scenario, truth, durations)
        with warnings.catch_warnings():
            # Equal tables of neighbouring thresholds, means of nothing, and pandas's future.
            warnings.simplefilter("ignore")
            for table in tables:
                evaluation.add_operating_point(table)
            weights = {"alpha_ct": scenario["cross_weight"], "alpha_st": INSTABILITY}
            scores[name] = float(evaluation.psds(max_efpr=MOST_FALSE, **weights).value)
    return scores


def _name_stretches(stretches: Sequence[Any]) -> list[str]:
    return [f"{number}" for number in range(len(stretches))]


def _make_table(
    pandas: types.ModuleType,
    events: Sequence[Sequence[Event]],
    classes: Sequence[str],
    chosen: Sequence[str] | None = None,
) -> Any:
    """Returns the table of events that psds_eval reads, with those of the chosen classes."""
    rows = [
        (name, event.onset, event.offset, classes[event.number])
        for name, of_stretch in zip(_name_stretches(events), events, strict=True)
        for event in of_stretch
        if chosen is None or classes[event.number] in chosen
    ]
    return pandas.DataFrame(rows, columns=["filename", "onset", "offset", "event_label"])


def _make_evaluation(scenario: Mapping[str, float], truth: Any, durations: Any) -> Any:
    """Returns psds_eval's evaluation, repaired for pandas 3.

    The latest release, 0.5.3, calls `fillna(method="ffill")`, which pandas 3 does not have any more.
    """
    library = require_library("psds_eval")

    class Evaluation(library.PSDSEval):
        @staticmethod
        def step_curve(x: np.ndarray, xp: np.ndarray, yp: np.ndarray) -> np.ndarray:
            """Returns the highest value of the points up to each x, 0 before the first one."""
            order = np.argsort(xp, kind="stable")
            highest = np.concatenate([[0.0], np.maximum.accumulate(yp[order])])
            return highest[np.searchsorted(xp[order], x, side="right")]

    return Evaluation(
        dtc_threshold=scenario["detected"],
        gtc_threshold=scenario["covered"],
        cttc_threshold=scenario["crossed"],
        ground_truth=truth,
        metadata=durations,
    )
