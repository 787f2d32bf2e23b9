import numpy as np
import pytest

from experiments.data.views import Arrays, Chain, Subset
from experiments.figures.examples import (
    choose_examples,
    draw_mistakes,
    draw_predictions,
    find_mistakes,
    find_names,
)

NAMES = [f"$class$ with a rather long name {i}" for i in range(5)]


@pytest.mark.parametrize("shape", [(32, 8, 8, 1), (3, 8, 24, 3), (5, 20, 1), (1, 20, 3)])
def test_predictions(size_of, tmp_path, rng, shape):
    inputs = rng.normal(0, 300, shape)
    inputs[0] = 7.0  # a constant picture cannot be scaled by its range
    labels, predictions = rng.integers(0, 5, (2, len(inputs)))
    path = tmp_path / "predictions.png"
    draw_predictions(inputs, labels, predictions, rng.random(len(inputs)), NAMES, path)
    width, height = size_of(path)
    assert 4 < width < 14 and 1 < height < 14


def test_wrong_examples_are_shown_first_but_not_only(rng):
    labels = np.zeros(100, int)
    for mistakes, n, shown in [(3, 10, 3), (60, 10, 5), (98, 10, 8), (0, 10, 0), (100, 10, 10)]:
        predictions = (np.arange(100) < mistakes).astype(int)
        chosen = choose_examples(labels, predictions, n, rng)
        assert len(set(chosen.tolist())) == n
        wrong = predictions[chosen] == 1
        assert wrong.sum() == shown and wrong[:shown].all()
    assert sorted(choose_examples(labels[:4], labels[:4], 32, rng)) == [0, 1, 2, 3]


def test_the_most_confident_mistakes_come_first():
    scores = np.array([[0.6, 0.4], [0.1, 0.9], [0.2, 0.8], [0.7, 0.3], [np.nan, np.nan]])
    assert find_mistakes(np.array([1, 0, 1, 1, 0]), scores) == [(1, 1), (3, 0), (0, 0)]
    assert find_mistakes(np.array([1, 0, 1, 1, 0]), scores, n=1) == [(1, 1)]
    # Several labels per example: wrong predictions and missed labels; unknown ones are neither.
    labels = np.array([[0, 1], [np.nan, 0], [1, np.nan], [1, 0], [0, 0]])
    assert find_mistakes(labels, scores) == [(1, 1), (2, 0), (0, 0), (0, 1)]


def test_names_come_from_the_source():
    named = Arrays(np.zeros((3, 2)), np.zeros(3, int), ["a @ 0.0 s", "a @ 1.0 s", "b @ 0.0 s"])
    few = Arrays(np.zeros((2, 2)), np.zeros(2, int), {1: "copy.png"})
    plain = Arrays(np.zeros((1, 2)), np.zeros(1, int))
    source = Subset(Chain([plain, Subset(named, [2, 1]), few]), [4, 3, 2, 1, 0])
    names = ["copy.png", "", "a @ 1.0 s", "b @ 0.0 s", ""]
    assert find_names(source, range(5)) == names


@pytest.mark.parametrize("shape", [(6, 6, 1), (4, 40, 3), (20, 2)])
def test_mistakes(size_of, tmp_path, rng, shape):
    labels, scores = np.array([[0, 1], [np.nan, 0]]), np.array([[0.9, 0.2], [0.9, 0.8]])
    mistakes = find_mistakes(labels, scores)
    assert len(mistakes) == 3
    inputs, names, classes = rng.normal(size=(3, *shape)), ["long" * 30, "", "$a$"], ["$x", "y$"]
    draw_mistakes(inputs, mistakes, labels, scores, names, classes, tmp_path / "a.png")
    size_of(tmp_path / "a.png")


def test_no_mistakes(size_of, tmp_path):
    draw_mistakes([], [], np.zeros(0), np.zeros((0, 2)), [], "xy", tmp_path / "none.png")
    size_of(tmp_path / "none.png")
