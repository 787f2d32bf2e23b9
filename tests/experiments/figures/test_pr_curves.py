"""What is written of each class, against scikit-learn, and which mistakes are shown."""

import csv
import warnings

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from experiments.data.views import Arrays, Chain, Subset
from experiments.figures import examples as mistakes
from experiments.figures import pr_curves as per_class


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers(row, *names):
    return [float(row[name]) for name in names]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_one_class_each_is_measured_as_scikit_learn_does(tmp_path, rng):
    scores = rng.dirichlet(np.ones(4), 80).astype(np.float32)
    labels = rng.integers(0, 3, 80)  # none of the last class
    labels[:40] = scores[:40, :3].argmax(axis=1)
    per_class.write(tmp_path, "abcd", labels, scores)
    rows = table(tmp_path / "per_class.csv")
    assert list(rows[0]) == list(per_class.HEADER) and [row["label"] for row in rows] == list(
        "abcd"
    )
    said = scores.argmax(axis=1)
    for number, row in enumerate(rows[:3]):
        truth, score = labels == number, scores[:, number]
        assert int(row["n"]) == truth.sum()
        measured = [f(truth, said == number) for f in (precision_score, recall_score, f1_score)]
        expected = [*measured, average_precision_score(truth, score)]
        found = numbers(row, "precision", "recall", "f1", "average_precision")
        np.testing.assert_allclose(found, expected, atol=1e-6)
        every = [f1_score(truth, score >= t) for t in score]
        threshold, best = numbers(row, "best_threshold", "f1_at_best")
        assert best == pytest.approx(max(every), abs=1e-6)
        assert threshold == pytest.approx(max(score[np.isclose(every, max(every))]), abs=1e-6)
    assert list(rows[3].values()) == ["d", "0", *[""] * 6]
    Image.open(tmp_path / "figures" / "pr_curves.png").verify()


def test_of_several_classes_at_once_only_what_is_known_counts(tmp_path, rng):
    scores = rng.random((60, 3))
    labels = (rng.random((60, 3)) < scores).astype(np.float32)
    labels[rng.random((60, 3)) < 0.4] = np.nan
    labels[:, 2] = np.nan
    per_class.write(tmp_path, "abc", labels, scores, threshold=0.7)
    rows = table(tmp_path / "per_class.csv")
    for number, row in enumerate(rows[:2]):
        known = ~np.isnan(labels[:, number])
        truth, score = labels[known, number] > 0, scores[known, number].astype(np.float32)
        said = score >= 0.7
        expected = [f(truth, said) for f in (precision_score, recall_score, f1_score)]
        found = numbers(row, "precision", "recall", "f1", "average_precision")
        np.testing.assert_allclose(
            found, [*expected, average_precision_score(truth, score)], atol=1e-6
        )
        assert int(row["n"]) == truth.sum()
    assert list(rows[2].values()) == ["c", "0", *[""] * 6]


@pytest.mark.parametrize("classes", [2, 60])
def test_any_number_of_classes_and_a_network_that_says_nothing_are_drawn(tmp_path, classes):
    names = [f"class {number}" for number in range(classes)]
    labels = np.arange(3) % classes
    per_class.write(tmp_path, names, labels, np.full((3, classes), np.nan))
    assert len(table(tmp_path / "per_class.csv")) == classes
    Image.open(tmp_path / "figures" / "pr_curves.png").verify()


def test_the_surest_of_the_wrong_come_first():
    scores = np.array([[0.6, 0.4], [0.1, 0.9], [0.2, 0.8], [0.7, 0.3], [np.nan, np.nan]])
    assert mistakes.worst(np.array([1, 0, 1, 1, 0]), scores, n=5) == [(1, 1), (3, 0), (0, 0)]
    assert mistakes.worst(np.array([1, 0, 1, 1, 0]), scores, n=1) == [(1, 1)]
    # Of several classes at once what is said wrongly and what is missed; what is not known is neither.
    labels = np.array([[0, 1], [np.nan, 0], [1, np.nan], [1, 0], [0, 0]])
    assert mistakes.worst(labels, scores) == [(1, 1), (2, 0), (0, 0), (0, 1)]


def test_a_mistake_is_named_where_its_source_has_names(rng):
    named = Arrays(np.zeros((3, 2)), np.zeros(3, int), ["a @ 0.0 s", "a @ 1.0 s", "b @ 0.0 s"])
    few = Arrays(np.zeros((2, 2)), np.zeros(2, int), {1: "copy.png"})
    plain = Arrays(np.zeros((1, 2)), np.zeros(1, int))
    source = Subset(Chain([plain, Subset(named, [2, 1]), few]), [4, 3, 2, 1, 0])
    assert mistakes.names_of(source, [0, 1, 2, 3, 4]) == [
        "copy.png", "", "a @ 1.0 s", "b @ 0.0 s", "",
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(6, 6, 1), (4, 40, 3), (20, 2)])
def test_mistakes_are_drawn_whatever_was_seen(tmp_path, rng, shape):
    labels = np.array([[0, 1], [np.nan, 0]])
    scores = np.array([[0.9, 0.2], [0.9, 0.8]])
    shown = mistakes.worst(labels, scores)
    assert len(shown) == 3
    inputs = rng.normal(size=(3, *shape))
    draw = mistakes.draw
    draw(inputs, shown, labels, scores, ["long" * 30, "", "$a$"], ["$x", "y$"], tmp_path / "a.png")
    draw([], [], labels, scores, [], "xy", tmp_path / "none.png")
    for name in ("a.png", "none.png"):
        Image.open(tmp_path / name).verify()
