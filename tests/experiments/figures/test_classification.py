import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.figures import classification as figures
from experiments.figures import style

NAMES = [f"$class$ with a rather long name {i}" for i in range(200)]


def _size(path):
    """Width and height in inches; fails where the picture has nothing on it."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(2**24)) > 10
        return tuple(side / style.DPI for side in image.size)


def _rows(steps=6):
    rows = []
    for step in range(1, steps + 1):
        train = {"step": step, "split": "train", "loss": 2.0 / step, "accuracy": 1 - 0.5 / step}
        rows.append({**train, "learning_rate": 1e-3, "temperature": 30.0 / step})
        rows.append({**train, "split": "validation", "top5": 1.0})
    return rows


@pytest.mark.parametrize(
    ("rows", "height"),
    [
        (_rows(), 7.6),
        ([{**row, "loss": None} for row in _rows()], 7.6),  # diverged
        ([row for row in _rows() if row["split"] == "validation"], 6),
        ([], 6),
    ],
)
def test_training_curves(tmp_path, rows, height):
    figures.training_curves(rows, tmp_path / "figures" / "curves.png")
    if rows:
        size = _size(tmp_path / "figures" / "curves.png")
        np.testing.assert_allclose(size, (7.5, height), atol=0.02)
    assert len(list((tmp_path / "figures").iterdir())) == 1  # no temporary file is left


def test_the_best_validation_is_the_most_accurate():
    rows = [{"step": 1, "accuracy": 0.9, "loss": 3}, {"step": 2, "accuracy": 0.8, "loss": 1}]
    assert figures._best(rows)["step"] == 1
    assert figures._best([{"step": r["step"], "loss": r["loss"]} for r in rows])["step"] == 2
    assert figures._best([{"step": 1, "loss": None}]) is None


@pytest.mark.parametrize("number", [2, 20, 37, 200])
def test_confusion_grows_with_the_classes_and_stays_on_a_page(tmp_path, number):
    matrix = np.random.default_rng(0).integers(0, 3, (number, number)) + 9 * np.eye(
        number, dtype=int
    )
    matrix[1] = 0  # a class without examples
    figures.confusion(matrix, NAMES[:number], tmp_path / "confusion.png")
    width, height = _size(tmp_path / "confusion.png")
    assert 4 < height < 11 and 4 < width < 13


def test_a_perfect_matrix_of_many_classes_has_no_pair_to_list(tmp_path):
    figures.confusion(5 * np.eye(30, dtype=int), NAMES[:30], tmp_path / "confusion.png")
    _size(tmp_path / "confusion.png")


@pytest.mark.parametrize(
    "shape", [(40, 8, 8, 1), (9, 16, 16, 3), (3, 8, 24, 1), (5, 20, 1), (2, 20, 3), (1, 8, 8, 1)]
)
def test_prediction_grid(tmp_path, shape):
    rng = np.random.default_rng(0)
    inputs = rng.normal(0, 300, shape)
    inputs[0] = 7.0  # a constant picture cannot be scaled by its range
    labels, predictions = rng.integers(0, 5, (2, shape[0]))
    probabilities = rng.dirichlet(np.ones(5), shape[0])
    path = tmp_path / "grid.png"
    figures.prediction_grid(inputs, labels, predictions, probabilities, NAMES[:5], path)
    width, height = _size(path)
    assert 4 < width < 14 and 1 < height < 14


def test_probabilities_of_all_classes_or_of_the_prediction(tmp_path):
    inputs, labels, predictions = np.ones((2, 9, 1)), np.array([0, 1]), np.array([0, 2])
    every = np.array([[0.7, 0.2, 0.1], [0.2, 0.3, 0.5]])
    for name, probabilities in [("a", every), ("b", np.array([0.7, 0.5]))]:
        path = tmp_path / name
        figures.prediction_grid(inputs, labels, predictions, probabilities, "xyz", path)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_examples_show_mistakes_first_but_not_only():
    rng = np.random.default_rng(0)
    labels = np.zeros(100, int)
    for mistakes, n, shown in [(3, 10, 3), (60, 10, 5), (98, 10, 8), (0, 10, 0), (100, 10, 10)]:
        predictions = (np.arange(100) < mistakes).astype(int)
        chosen = figures.choose_examples(labels, predictions, n, rng)
        assert len(set(chosen.tolist())) == n
        wrong = predictions[chosen] == 1
        assert wrong.sum() == shown and wrong[:shown].all()
    assert sorted(figures.choose_examples(labels[:4], labels[:4], 32, rng)) == [0, 1, 2, 3]
    assert figures.choose_examples(labels[:0], labels[:0], 32, rng).shape == (0,)


@pytest.mark.parametrize(("number", "layers", "kernels"), [(10, 3, 4), (200, 19, 4), (2, 1, 16)])
def test_attention_by_class(tmp_path, number, layers, kernels):
    rng = np.random.default_rng(0)
    attention = {f"stage{i}/conv": rng.dirichlet(np.ones(kernels), number) for i in range(layers)}
    attention["stage0/conv"][0] = np.nan  # a class without examples
    figures.attention_by_class(attention, NAMES[:number], tmp_path / "attention.png")
    width, height = _size(tmp_path / "attention.png")
    assert 6 < width < 15 and 2 < height < 12


def test_the_spread_is_zero_for_a_layer_that_is_not_selective():
    assert figures._spread(np.full((7, 4), 0.25)) == 0
    assert figures._spread(np.array([[1.0, 0], [0, 1], [np.nan, np.nan]])) == 0.5


def test_figures_leave_pyplot_alone():
    code = "import sys, experiments.report; assert 'matplotlib.pyplot' not in sys.modules"
    root = Path(figures.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
