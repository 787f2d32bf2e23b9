"""Ranking metrics against scikit-learn's own means, and thresholds and calibration against plain loops."""

import csv

import numpy as np
import pytest
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, roc_auc_score

from experiments.inference.thresholds import make_thresholds
from experiments.tasks.ranking import choose_threshold, compute_ranking, measure_calibration
from experiments.tasks.sound_evaluation import write_calibration, write_thresholds
from experiments.tasks.tagging_metrics import compute_scores


def read_table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_means_are_those_of_scikit_learn(rng):
    labels = rng.integers(0, 2, (60, 4)).astype(np.float64)
    scores = np.round(rng.random((60, 4)) + 0.3 * labels, 2)
    found = compute_ranking(labels, scores, "abcd")
    assert found["map"] == pytest.approx(average_precision_score(labels, scores, average="macro"))
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, scores, average="macro"))
    one = scores.argmax(axis=1)
    found = compute_ranking(one, scores, "abcd")
    hot = np.eye(4)[one]
    assert found["auroc"] == pytest.approx(roc_auc_score(hot, scores, average="macro"))
    # Classes with one kind of example have no curve, and unknown labels count nowhere.
    labels[:, 3], labels[:30, 0] = 1.0, np.nan
    found = compute_ranking(labels, scores, "abcd")
    assert found["class_auroc"]["d"] is None and found["ap"]["d"] == 1
    expected = roc_auc_score(labels[30:, 0], scores[30:, 0])
    assert found["class_auroc"]["a"] == pytest.approx(expected)
    tagged = compute_scores(labels, scores, "abcd", 0.5)
    assert tagged["auroc"] == pytest.approx(found["auroc"])
    assert tagged["map"] == pytest.approx(found["map"])


def test_thresholds_for_a_precision_are_the_lowest(rng):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        truth, target = rng.random(30) < 0.4, rng.uniform(0.3, 1.0)
        scores = np.round(rng.random(30) + 0.4 * truth, 1)
        reached = [
            t
            for t in np.unique(scores)
            if truth[scores >= t].mean() >= target and truth[scores >= t].any()
        ]
        found = choose_threshold(truth, scores, target)
        if reached:
            chosen = scores >= min(reached)
            assert found.threshold == min(reached) and found.predicted == chosen.sum()
            assert found.precision == pytest.approx(truth[chosen].mean())
            assert found.recall == pytest.approx((truth & chosen).sum() / truth.sum())
        else:
            assert found is None


def test_a_run_keeps_thresholds_for_predicting(tmp_path):
    labels = np.array([[1, 0], [1, 0], [0, 0], [1, 0], [0, 1.0]])
    scores = np.array([[0.9, 0.9], [0.8, 0.8], [0.7, 0.1], [0.6, 0.2], [0.1, 0.3]])
    write_thresholds(tmp_path, ["a", "b"], labels, scores, 0.75)
    first, second = read_table(tmp_path / "thresholds.csv")
    assert (first["threshold"], first["precision"], first["predicted"]) == (
        "0.600000",
        "0.750000",
        "4",
    )
    assert (second["threshold"], second["precision"], second["positives"]) == ("1.000000", "", "1")
    np.testing.assert_allclose(make_thresholds(["a", "b"], tmp_path, "precision"), [0.6, 1.0])
    # If each window has one class, only the highest score counts.
    write_thresholds(
        tmp_path,
        ["a", "b"],
        np.array([0, 1, 1]),
        np.array([[0.6, 0.4], [0.7, 0.3], [0.2, 0.8]]),
        0.9,
    )
    rows = read_table(tmp_path / "thresholds.csv")
    assert [row["threshold"] for row in rows] == ["1.000000", "0.800000"]


def test_calibration_is_that_of_scikit_learn(tmp_path, rng):
    probabilities = rng.random((400, 3))
    labels = (rng.random((400, 3)) < probabilities**2).astype(np.float64)
    labels[:50, 1] = np.nan
    known = ~np.isnan(labels)
    observed, predicted = calibration_curve(labels[known], probabilities[known], n_bins=10)
    found = measure_calibration(labels, probabilities)
    np.testing.assert_allclose(found.observed, observed)
    np.testing.assert_allclose(found.predicted, predicted)
    expected = (found.counts * np.abs(observed - predicted)).sum() / known.sum()
    assert found.error == pytest.approx(expected) and found.error > 0.1
    write_calibration(tmp_path, labels, probabilities)
    assert (
        sum(int(row["predictions"]) for row in read_table(tmp_path / "calibration.csv"))
        == known.sum()
    )
    Image.open(tmp_path / "figures" / "calibration.png").verify()
    # Bins without predictions, and one class per example.
    write_calibration(tmp_path, np.array([0, 1]), np.array([[0.9, 0.1], [0.8, 0.2]]))
    assert (
        measure_calibration(np.array([0, 1]), np.array([[0.9, 0.1], [0.8, 0.2]])).counts.sum() == 2
    )
