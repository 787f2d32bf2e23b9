"""Frames: joined over windows, smoothed, and turned into events, each against a plain loop."""

import numpy as np
import pytest

from experiments.audio.annotations import Annotation
from experiments.audio.detections import Interval, join_intervals, select_classes
from experiments.audio.frames import Event, find_events, join_windows, smooth_scores
from experiments.audio.spectrograms import compute_times
from experiments.audio.targets import mark_moments
from experiments.configs import common

PERIOD = 0.064
TIMES = 0.02 + PERIOD * np.arange(15)  # of windows of a second


def make_windows(rng, starts, end=np.inf, classes=2):
    places = [Interval(s, min(s + 1, end), s == starts[0]) for s in starts]
    return places, [rng.uniform(size=(15, classes)).astype(np.float32) for _ in starts]


def test_overlapping_windows_are_averaged(rng):
    places, scores = make_windows(rng, [0.0, 0.5, 1.0, 1.5], end=2.3)
    (stretch,) = join_windows(places, scores, TIMES)
    assert (stretch.start, stretch.end, stretch.period) == (0, 2.3, pytest.approx(PERIOD))
    frames = list(stretch.list_frames())
    assert (
        len(frames) == 36 and frames[-1][0].end == 2.3
    )  # the middle of the next one is after the end
    for place, found in frames:
        middle = (round(place.start / PERIOD) + 0.5) * PERIOD
        inside = [n for n, window in enumerate(places) if window.start <= middle < window.end]
        expected = [
            [np.interp(middle - places[n].start, TIMES, scores[n][:, c]) for n in inside]
            for c in range(2)
        ]
        np.testing.assert_allclose(found, np.mean(expected, axis=1), atol=1e-5)
        assert place.silent == (inside == [0])
    ends, starts = ([getattr(p, n) for p, _ in frames] for n in ("end", "start"))
    assert ends[:-1] == starts[1:]


def test_a_gap_ends_a_stretch_and_the_grid_stays(rng):
    places, scores = make_windows(rng, [0.0, 3.0, 4.0])
    first, second = join_windows(places, scores, TIMES)
    assert first.end == 1.0 and second.end == 5.0
    assert second.start == pytest.approx(np.ceil(3.0 / PERIOD - 0.5) * PERIOD)
    assert len(first.scores) + len(second.scores) == 16 + 31


def test_a_sound_shorter_than_a_frame_has_one():
    (stretch,) = join_windows([Interval(0.0, 0.01, False)], [np.ones((15, 1))], TIMES)
    assert find_events(stretch, 0.5) == [Event(0, 0.0, 0.01)]


def test_events_are_the_runs_of_smoothed_scores(rng):
    places, scores = make_windows(rng, [0.0, 1.0, 2.0, 3.0])
    (stretch,) = join_windows(places, scores, TIMES)
    smooth = smooth_scores(stretch, 5.9 * PERIOD)  # five frames
    padded = np.pad(stretch.scores, [(2, 2), (0, 0)], mode="edge")
    medians = [np.median(padded[n : n + 5], axis=0) for n in range(len(stretch.scores))]
    np.testing.assert_allclose(smooth.scores, medians)
    assert smooth_scores(stretch, 0.0) is stretch

    thresholds = np.array([0.5, 0.55])
    # The tables of `experiments.predict` join frames one by one.
    labelled = ((p, select_classes(s, thresholds, several=True)) for p, s in smooth.list_frames())
    joined = join_intervals(labelled, max_windows=10**9)
    expected = sorted((d.number, d.start, d.end) for d in joined)
    found = find_events(smooth, thresholds)
    assert [(e.number, e.onset, e.offset) for e in found] == expected and len(found) > 4


def test_moments_of_annotations():
    rows = [
        Annotation("", 0.5, 1.2, "a"),
        Annotation("", 2.4, 2.45, "a"),  # between two moments
        Annotation("", 0.0, 9.0, "b", positive=False),
        Annotation("", 1.0, 2.0, "b", is_clip=True),
        Annotation("", 1.0, 2.0, "c"),
    ]
    times = np.arange(0.0, 3.0, 0.25)
    found = mark_moments(times, rows, ["a", "b"])
    a = np.isin(times, [0.5, 0.75, 1.0, 2.5])
    b = (times >= 1) & (times < 2)
    np.testing.assert_array_equal(found[:, 0], np.where(a, 1, np.nan))
    np.testing.assert_array_equal(found[:, 1], np.where(b, np.nan, 0))
    np.testing.assert_array_equal(mark_moments(times, rows, ["a"], True)[:, 0], a)
    # A confirmed detection leaves the annotation in it as it is.
    clip = Annotation("", 0.0, 2.0, "a", is_clip=True)
    expected = np.where(a, 1, np.where(times < 2, np.nan, 0))
    for both in ([clip, *rows], [*rows, clip]):
        np.testing.assert_array_equal(mark_moments(times, both, ["a"], True)[:, 0], expected)


def test_the_times_of_columns_are_those_of_a_click():
    audio = common.get_config("audio").audio
    audio.update({"sample_rate": 16_000, "seconds": 1.0, "n_fft": 512, "step": 100, "bands": 32})
    pytest.importorskip("librosa")
    from experiments.audio.spectrograms import compute_spectrogram

    for changes in ({}, {"width": 40}, {"picture": "wavelet", "bands": 8}):
        audio.update(changes)
        times = compute_times(audio)
        for second in (0.2, 0.7):
            samples = np.zeros(16_000, np.float32)
            samples[round(second * 16_000)] = 1
            loudness = compute_spectrogram(samples, audio).astype(float).mean(axis=0) ** 8
            centre = (loudness * times).sum() / loudness.sum()
            assert abs(centre - second) < 0.6 * (times[1] - times[0])
