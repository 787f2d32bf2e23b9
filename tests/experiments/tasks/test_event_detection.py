"""Event detection: metrics against plain oracles and the numbers of psds_eval, and a run on made-up songs."""

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.ndimage
from small_runs import change

from experiments import data
from experiments.audio import songs
from experiments.audio.frames import Event, Stretch
from experiments.configs import fdy_crnn
from experiments.core.errors import UserError
from experiments.data.views import flatten
from experiments.tasks.event_detection import average_columns
from experiments.tasks.event_metrics import (
    compute_event_scores,
    compute_psds,
    count_matches,
    merge_events,
)
from experiments.train.validate import resolve_config

pytestmark = pytest.mark.usefixtures("standard_promotion")


def draw_events(rng, count, jitter=0.3):
    onsets = np.cumsum(rng.uniform(0.3, 1.5, count))
    true = [Event(int(rng.integers(2)), t, t + rng.uniform(0.2, 2.5)) for t in onsets]
    found = [
        Event(e.number, e.onset + rng.normal(0, jitter), e.offset + rng.normal(0, jitter))
        for e in true
    ]
    return true, found


def fits(true, found):
    collar = max(0.2, 0.2 * (true.offset - true.onset))
    return (
        true.number == found.number
        and abs(true.onset - found.onset) <= 0.2
        and abs(true.offset - found.offset) <= collar
    )


def test_matches_are_as_many_as_possible(rng):
    for _ in range(20):
        true, found = draw_events(rng, 5)
        most = [
            max(
                sum(fits(t, f) for t, f in zip(ones, order, strict=False))
                for order in itertools.permutations(others)
            )
            for ones, others in (
                sorted(([e for e in events if e.number == c] for events in (true, found)), key=len)
                for c in range(2)
            )
        ]
        counts = count_matches(true, found, 2)
        assert counts[0].tolist() == most and counts[1:].sum() == 10


def test_scores_leave_out_classes_without_events():
    scores = compute_event_scores(np.array([[1, 0, 0], [2, 1, 0], [4, 0, 0]]), "abc")
    assert scores["f1"] == {"a": pytest.approx(1 / 3), "b": None, "c": None}
    assert scores["event_f1"] == pytest.approx(1 / 3)
    assert (scores["event_precision"], scores["event_recall"]) == (0.5, 0.25)


def test_touching_events_become_one():
    rows = [(0, 2.0, 3.0), (0, 0.0, 1.0), (0, 0.5, 2.0), (1, 0.0, 1.0), (0, 4.0, 5.0)]
    merged = merge_events([Event(*row) for row in rows])
    assert merged == [Event(0, 0.0, 3.0), Event(0, 4.0, 5.0), Event(1, 0.0, 1.0)]


def make_scores(rng, seconds=60.0, period=0.05):
    """True events of three recordings and noisy scores for them, of three classes."""
    stretches, events = [], []
    for _ in range(3):
        true = [
            Event(c, round(t, 2), round(t + rng.uniform(0.5, 1.5), 2))
            for c in range(3)
            for t in np.arange(2, 50, 16) + rng.uniform(0, 6)
        ]
        noise = rng.beta(2, 5, size=(round(seconds / period), 3))
        scores = scipy.ndimage.uniform_filter1d(noise, 7, axis=0)
        for event in true:
            begin, end = (round(t / period) for t in (event.onset, event.offset))
            heard = slice(begin + rng.integers(-1, 2), end + rng.integers(-1, 2))
            scores[heard, event.number] += rng.uniform(0.1, 0.6)
            if rng.uniform() < 0.4:  # heard as another class as well
                scores[begin:end, (event.number + 1) % 3] += rng.uniform(0.1, 0.4)
        scores = np.clip(np.round(scores, 2), 0, 1).astype(np.float32)
        stretches.append(Stretch(0.0, seconds, period, scores, np.zeros(len(scores), bool)))
        events.append(merge_events(true))
    return stretches, events


# psds_eval 0.5.3 with NumPy 2.2.6 and pandas 2.2.3 on the events of `make_scores`.
PSDS = {"psds1": 0.2807735750880997, "psds2": 0.29020688877892675}


def test_psds_is_that_of_psds_eval():
    stretches, events = make_scores(np.random.default_rng(3))
    found = compute_psds(stretches, events, 3)
    assert found == pytest.approx(PSDS, abs=1e-9)
    perfect = [
        Stretch(s.start, s.end, s.period, draw_exactly(s, true), s.silent)
        for s, true in zip(stretches, events, strict=True)
    ]
    assert compute_psds(perfect, events, 3) == {"psds1": 1.0, "psds2": 1.0}
    assert compute_psds(stretches, [[], [], []], 3) == {}
    one = [[e for e in true if e.number == 0] for true in events]
    alone = compute_psds(stretches, one, 3)
    assert all(0 < value <= 1 for value in alone.values())


def draw_exactly(stretch, events):
    scores = np.zeros_like(stretch.scores)
    for event in events:
        begin, end = (round(t / stretch.period) for t in (event.onset, event.offset))
        scores[begin:end, event.number] = 1
    return scores


def test_a_target_is_the_share_of_its_columns():
    labels = np.array([1, 1, 0, 1, 0, 0, np.nan, 0, 1], np.float32).reshape(1, 9, 1)
    np.testing.assert_array_equal(average_columns(labels, 4, 2)[0, :, 0], [1, 0.5, 0, np.nan])
    # Columns after the last whole frame are no part of it.
    np.testing.assert_array_equal(average_columns(labels, 1, 4)[0, :, 0], [0.75])


def test_columns_have_the_labels_of_annotations(tmp_path):
    folder = songs.write_mixed_songs(tmp_path, classes=2, recordings=6, seconds=3.0, rate=16_000)
    config = fdy_crnn.get_config("audio")
    config.data.update({"source": str(folder), "dir": str(tmp_path / "data")})
    config.audio.update({"seconds": 2.0, "hop": 1.5, "n_fft": 256, "step": 160, "bands": 16})
    dataset = data.load(config.data, 0, config.audio)
    (windows,), _, _ = flatten(dataset.splits["train"])
    moved = dataclasses.replace(
        windows,
        annotations=[
            [dataclasses.replace(row, end=row.end + 0.1) for row in rows]
            for rows in windows.annotations
        ],
    )
    assert (moved.contents != windows.contents).any()
    for index in range(len(windows)):
        label = windows[index]["label"]
        assert label.shape == (201, 2) and label.dtype == np.float32
        recording = windows.recordings[windows.owners[index]]
        times = recording.starts[windows.rows[index]] + 0.01 * np.arange(201)
        for number, name in enumerate(dataset.classes):
            rows = [r for r in windows.annotations[windows.owners[index]] if r.label == name]
            inside = np.any([(r.start <= times) & (times < r.end) for r in rows] or [[False]], 0)
            # Times of tables are rounded to a millisecond, and NaN is after the end.
            assert np.nanmean(label[:, number] != inside) < 0.02 + (times >= 3.0).mean()
        assert np.isnan(label[times >= 3.0]).all() and not np.isnan(label[times < 2.99]).any()
        np.testing.assert_array_equal(windows.labels[index], np.nanmax(label, axis=0))


def test_mistakes_are_explained(tmp_path):
    with pytest.raises(UserError, match="recordings"):
        fdy_crnn.get_config("digits")
    for settings, says in (
        ({"audio.labels": "multi"}, "takes frames"),
        ({"events.time_pools": 9}, "time_pools"),
    ):
        with pytest.raises(UserError, match=says):
            resolve_config(change(fdy_crnn.get_config("audio"), settings))
    birds = songs.write_songs(tmp_path, classes=2, recordings=3, seconds=1.0, rate=16_000)
    config = change(fdy_crnn.get_config("audio"), {"data.source": str(birds)})
    config.data.dir = str(tmp_path / "data")
    config.audio.update({"seconds": 0.5, "hop": 0.5, "n_fft": 256, "bands": 16})
    with pytest.raises(UserError, match="without times"):
        data.load(config.data, 0, config.audio)
