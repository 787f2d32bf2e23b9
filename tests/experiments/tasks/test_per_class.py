import csv
import warnings

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from experiments.tasks.per_class import HEADER, write_per_class


def read_table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers(row, *names):
    return [float(row[name]) for name in names]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_one_label_per_example_is_measured_as_by_scikit_learn(tmp_path, rng):
    scores = rng.dirichlet(np.ones(4), 80).astype(np.float32)
    labels = rng.integers(0, 3, 80)  # none of the last class
    labels[:40] = scores[:40, :3].argmax(axis=1)
    write_per_class(tmp_path, "abcd", labels, scores)
    rows = read_table(tmp_path / "per_class.csv")
    assert list(rows[0]) == list(HEADER) and [row["label"] for row in rows] == list("abcd")
    predictions = scores.argmax(axis=1)
    for number, row in enumerate(rows[:3]):
        truth, score = labels == number, scores[:, number]
        assert int(row["n"]) == truth.sum()
        predicted = predictions == number
        measured = [f(truth, predicted) for f in (precision_score, recall_score, f1_score)]
        expected = [*measured, average_precision_score(truth, score)]
        found = numbers(row, "precision", "recall", "f1", "average_precision")
        np.testing.assert_allclose(found, expected, atol=1e-6)
        every = [f1_score(truth, score >= t) for t in score]
        threshold, best = numbers(row, "best_threshold", "f1_at_best")
        assert best == pytest.approx(max(every), abs=1e-6)
        assert threshold == pytest.approx(max(score[np.isclose(every, max(every))]), abs=1e-6)
    assert list(rows[3].values()) == ["d", "0", *[""] * 6]
    Image.open(tmp_path / "figures" / "pr_curves.png").verify()


def test_unknown_labels_are_not_counted(tmp_path, rng):
    scores = rng.random((60, 3))
    labels = (rng.random((60, 3)) < scores).astype(np.float32)
    labels[rng.random((60, 3)) < 0.4] = np.nan
    labels[:, 2] = np.nan
    write_per_class(tmp_path, "abc", labels, scores, threshold=0.7)
    rows = read_table(tmp_path / "per_class.csv")
    for number, row in enumerate(rows[:2]):
        known = ~np.isnan(labels[:, number])
        truth, score = labels[known, number] > 0, scores[known, number].astype(np.float32)
        expected = [f(truth, score >= 0.7) for f in (precision_score, recall_score, f1_score)]
        expected.append(average_precision_score(truth, score))
        found = numbers(row, "precision", "recall", "f1", "average_precision")
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert int(row["n"]) == truth.sum()
    assert list(rows[2].values()) == ["c", "0", *[""] * 6]


def test_scores_that_are_not_numbers_are_drawn(tmp_path):
    write_per_class(tmp_path, "ab", np.array([0, 1, 0]), np.full((3, 2), np.nan))
    assert len(read_table(tmp_path / "per_class.csv")) == 2
    Image.open(tmp_path / "figures" / "pr_curves.png").verify()


def test_the_best_threshold_finds_the_examples_that_it_was_chosen_by(tmp_path, rng):
    logits = np.where(np.arange(60)[:, None] < 30, rng.uniform(14.8, 16.5, (60, 2)), -10)
    scores = 1 / (1 + np.exp(-logits.astype(np.float32)))
    labels = (logits > 0).astype(np.float32)
    write_per_class(tmp_path, "ab", labels, scores)
    rows = read_table(tmp_path / "per_class.csv")
    thresholds = [float(row["best_threshold"]) for row in rows]
    assert [row["f1_at_best"] for row in rows] == ["1.000000"] * 2
    assert ((scores >= thresholds) == labels).all()
