"""Detections of songs in windows: labels that reach a threshold, neighbours joined, tables for Raven."""

import csv
from pathlib import Path

import numpy as np
import pytest

from experiments.audio import detections
from experiments.audio.detections import Interval, join_intervals, select_classes


def test_select_classes():
    scores = np.array([0.5, 0.9, np.nan, 0.2, 0.9])
    assert select_classes(scores, 0.5, several=True) == {1: 0.9, 4: 0.9, 0: 0.5}
    assert select_classes(scores, 0.5, several=False) == {1: 0.9}
    assert select_classes(scores, 0.95, several=False) == {}


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1, [(0, 0, 2, 0.5), (0, 1, 3, 1.0), (1, 1, 3, 0.25), (0, 2, 4, 0.6), (0, 5, 7, 0.5)]),
        (2, [(0, 0, 3, 0.75), (1, 1, 3, 0.25), (0, 2, 4, 0.6), (0, 5, 7, 0.5)]),
        (9, [(1, 1, 3, 0.25), (0, 0, 4, 0.7), (0, 5, 7, 0.5)]),
    ],
)
def test_join_intervals(most, expected):
    starts = {0: {0: 0.5}, 1: {0: 1.0, 1: 0.25}, 2: {0: 0.6}, 5: {0: 0.5}}
    windows = [(Interval(start, start + 2, start < 2), scores) for start, scores in starts.items()]
    found = list(join_intervals(iter(windows), most))
    assert [(d.number, d.start, d.end, pytest.approx(d.score)) for d in found] == expected
    assert found[0].silent and not found[-1].silent


def test_raven_cells_are_cleaned(tmp_path):
    found = detections.Detection(0, 0.5, 1.25, 0.5, False)
    place = tmp_path / "x.txt"
    with detections.open_raven_table(place, Path("/a\tb/ 'c\"\n.wav"), 0, 4000) as select:
        select('big\towl, "Bubo"', found)
    with open(place, encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    assert row["Label"] == 'big owl, "Bubo"' and row["Begin Path"] == "/a b/ 'c\" .wav"
    assert (row["Begin Time (s)"], row["End Time (s)"], row["Score"]) == (
        "0.5",
        "1.25",
        "0.500000",
    )
