"""Every figure is drawn once, with classes without examples, long names and dollars."""

import numpy as np
import pytest

from experiments.figures import embeddings, gan, objects, segmentation, style
from experiments.figures.attention import compute_spread, draw_attention_by_class
from experiments.figures.confusion import draw_confusion
from experiments.figures.curves import _find_best, draw_training_curves
from experiments.figures.pr_curves import PRCurve, draw_pr_curves
from experiments.figures.reconstruction import draw_reconstructions

# Between two dollars matplotlib would read a formula, and not know \class.
NAMES = [f"_$\\class$\x1b\n with a rather long name {i}" for i in range(200)]


def make_rows():
    rows = []
    for step in range(1, 7):
        train = {"step": step, "split": "train", "loss": 2.0 / step, "accuracy": 1 - 0.5 / step}
        rows.append({**train, "learning_rate": 1e-3, "temperature": 30.0 / step})
        rows.append({**train, "split": "validation", "top5": 1.0})
    return rows


@pytest.mark.parametrize(
    ("rows", "height"),
    [
        pytest.param(make_rows(), 7.6, id="all"),
        pytest.param([{**row, "loss": None} for row in make_rows()], 7.6, id="diverged"),
        pytest.param([row for row in make_rows() if row["split"] != "train"], 6, id="validation"),
        pytest.param([{"step": 1, "split": "train", "loss": 1.0}], 3.4, id="loss"),
    ],
)
def test_training_curves(size_of, tmp_path, rows, height):
    draw_training_curves(rows, tmp_path / "figures" / "curves.png")
    np.testing.assert_allclose(
        size_of(tmp_path / "figures" / "curves.png"), (7.5, height), atol=0.02
    )
    assert len(list((tmp_path / "figures").iterdir())) == 1  # no temporary file is left


def test_the_best_row_is_the_most_accurate():
    rows = [{"step": 1, "accuracy": 0.9, "loss": 3}, {"step": 2, "accuracy": 0.8, "loss": 1}]
    assert _find_best(rows)["step"] == 1
    assert _find_best([{"step": r["step"], "loss": r["loss"]} for r in rows])["step"] == 2
    assert _find_best([{"step": 1, "loss": None}]) is None


@pytest.mark.parametrize(("number", "mistakes"), [(2, 3), (200, 3), (30, 1)])
def test_confusion_stays_on_a_page(size_of, tmp_path, rng, number, mistakes):
    matrix = rng.integers(0, mistakes, (number, number)) + 9 * np.eye(number, dtype=int)
    matrix[1] = 0  # a class without examples
    draw_confusion(matrix, NAMES[:number], tmp_path / "confusion.png")
    width, height = size_of(tmp_path / "confusion.png")
    assert 4 < height < 11 and 4 < width < 13


@pytest.mark.parametrize(("number", "layers", "kernels"), [(40, 9, 4), (2, 1, 16)])
def test_attention_by_class(size_of, tmp_path, rng, number, layers, kernels):
    attention = {f"stage{i}/conv": rng.dirichlet(np.ones(kernels), number) for i in range(layers)}
    attention["stage0/conv"][0] = np.nan  # a class without examples
    draw_attention_by_class(attention, NAMES[:number], tmp_path / "attention.png")
    width, height = size_of(tmp_path / "attention.png")
    assert 6 < width < 15 and 2 < height < 12


def test_spread_is_zero_if_all_classes_are_mixed_alike():
    assert compute_spread(np.full((7, 4), 0.25)) == 0
    assert compute_spread(np.array([[1.0, 0], [0, 1], [np.nan, np.nan]])) == 0.5


@pytest.mark.parametrize("classes", [2, 60])
def test_pr_curves(size_of, tmp_path, classes):
    curve = PRCurve(np.array([0.2, 0.5, 1]), np.array([1, 0.5, 0]), np.array([0.1, 0.9]), 0.4)
    curves = [None, *[curve] * (classes - 1)]
    draw_pr_curves(NAMES[:classes], curves, curve, tmp_path / "pr_curves.png")
    size_of(tmp_path / "pr_curves.png")


def test_segmentation(size_of, tmp_path, rng):
    images = [rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)] * 2
    truths = [rng.integers(0, 3, (20, 30)), np.full((20, 30), 255)]
    predictions = {"prediction": truths[:1] * 2}
    segmentation.draw_samples(images, truths, predictions, NAMES, tmp_path / "samples.png")
    segmentation.draw_iou({"a": 0.5, "b": 0.7, "c": None}, tmp_path / "iou.png")
    for name in ("samples.png", "iou.png"):
        size_of(tmp_path / name)


def make_objects(scores=None, with_masks=True):
    masks = np.zeros((2, 20, 30), bool)
    masks[0, 2:12, 3:20] = masks[1, 8:20, 15:30] = True
    boxes = np.array([[3, 2, 20, 12], [15, 8, 30, 20]], np.float32)
    return objects.Drawn(boxes, np.array([1, 2]), scores, masks if with_masks else None)


@pytest.mark.parametrize("number", [1, 3])
def test_detections(size_of, tmp_path, rng, number):
    images = [rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)] * number
    empty = objects.Drawn(np.zeros((0, 4)), np.zeros(0, int), [], np.zeros((0, 20, 30), bool))
    found = [make_objects([0.9, 0.4], number == 1), empty, make_objects([0.9, 0.4])][:number]
    path, headings = tmp_path / "a.png", ["found"] * number
    truths = [make_objects()] * number
    objects.draw_detections(images, truths, found, headings, NAMES, "title", "caption", path)
    size_of(path)


def test_an_overlay_has_the_size_of_its_picture():
    image = np.zeros((20, 30, 3), np.uint8)
    drawn = make_objects([0.9, 0.4])
    overlay = np.asarray(objects.make_overlay(image, drawn, NAMES))
    assert overlay.shape == image.shape and overlay.any()
    painted = objects.paint_objects_over(image, drawn)
    red, green = style.make_voc_palette()[[1, 2]]
    assert (painted[2, 10] == red).all() and (painted[19, 20] == green).all()  # outlines
    assert (painted[5, 5] == red // 2).all() and (painted[0, 0] == 0).all()
    assert (painted[10, 17] == np.round((green / 2 + red) / 2)).all()  # the better one lies above


def test_precision_by_class(size_of, tmp_path):
    values = {"AP50": {"a": 0.5, "b": None, "c": 0.7}, "AP": {"a": 0.2, "b": None, "c": 0.3}}
    objects.draw_class_precision(values, "title", tmp_path / "ap.png")
    size_of(tmp_path / "ap.png")


def test_gan(size_of, tmp_path, rng):
    pictures = rng.integers(0, 255, (4, 16, 16, 1), dtype=np.uint8)
    gan.draw_samples({NAMES[0]: (pictures[:2], pictures)}, "Samples", tmp_path / "samples.png")
    rows = [
        {"step": 1, "split": split, "g": 1.0, "d": 2.0, "d_real": 0.5}
        for split in ("train", "validation")
    ]
    gan.draw_losses(rows, tmp_path / "gan.png")
    for name in ("samples.png", "gan.png"):
        size_of(tmp_path / name)


@pytest.mark.parametrize("channels", [1, 3])
def test_reconstructions(size_of, tmp_path, rng, channels):
    inputs, outputs = rng.random((2, 3, 8, 8, channels))
    draw_reconstructions(inputs, outputs, NAMES[:3], "title", "caption", tmp_path / "a.png")
    size_of(tmp_path / "a.png")


def test_embeddings(size_of, tmp_path, rng):
    clusters = rng.integers(0, 4, 30)
    codes = rng.normal(size=(30, 4))
    embeddings.draw_tsne(codes, clusters, ["", "wren"] * 15, tmp_path / "tsne.png")
    embeddings.draw_hours(rng.uniform(0, 24, 30), clusters, tmp_path / "day.png")
    scores = {kind: {"f": (0.5, 0.1), "purity": (0.6, 0.1)} for kind in ("codes", "indices")}
    embeddings.draw_comparison(scores, {"codes": 1.0, "indices": 2.0}, tmp_path / "compare.png")
    for name in ("tsne.png", "day.png", "compare.png"):
        size_of(tmp_path / name)
    embeddings.draw_tsne(codes[:4], clusters[:4], [""] * 4, tmp_path / "few.png")
    assert not (tmp_path / "few.png").exists()
