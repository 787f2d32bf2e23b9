import itertools

import numpy as np
import pytest
from matplotlib.text import Annotation
from PIL import Image

from experiments.figures import style
from experiments.reports import map_figures, study_figures
from experiments.reports.comparison import compare
from experiments.runs import artifacts as maps
from experiments.runs import find as runs


def size(path):
    """Width and height in inches; fails where the picture has nothing on it."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(2**24)) > 10
        return tuple(side / style.DPI for side in image.size)


@pytest.fixture
def comparison(write_run):
    """Twelve configs of three seeds, all about as good and as dear as each other."""
    folders = [
        write_run(name, 0.9 + number / 500 + seed / 200, seed, macs=10_000_000 + 300_000 * number)
        for number, name in enumerate(["base", *(f"with a long name {n}" for n in range(11))])
        for seed in range(3)
    ]
    (found,) = compare([runs.read(folder) for folder in folders])
    return found


@pytest.mark.parametrize(
    ("draw", "width", "height"),
    [
        (study_figures.accuracy_against_macs, 7.2, 4.6),
        (study_figures.curves, 8.6, 6.0),
        (study_figures.per_run, 11.0, 6.4),
    ],
)
def test_a_dozen_configs_fit_on_a_page(tmp_path, comparison, draw, width, height):
    path = tmp_path / "figures" / "figure.png"
    assert draw(comparison, path)
    np.testing.assert_allclose(size(path), (width, height), atol=0.02)
    assert len(list(path.parent.iterdir())) == 1  # no temporary file is left


def test_labels_stand_beside_their_points_and_not_on_each_other(tmp_path, comparison, monkeypatch):
    figures = []
    monkeypatch.setattr(study_figures, "save", lambda figure, path: figures.append(figure))
    study_figures.accuracy_against_macs(comparison, tmp_path / "figure.png")
    (axes,) = figures[0].axes
    renderer = figures[0].canvas.get_renderer()
    labels = [text for text in axes.texts if isinstance(text, Annotation)]
    assert len(labels) == 12
    boxes = [label.get_window_extent(renderer) for label in labels]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_figures_with_nothing_to_show_are_not_drawn(tmp_path, write_run):
    folder = write_run(without=["macs"])
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"damaged\n{"step": 2}\n')
    (found,) = compare([runs.read(folder)])
    for draw in (
        study_figures.accuracy_against_macs, study_figures.curves, study_figures.per_run,
    ):  # fmt: skip
        assert not draw(found, tmp_path / "figure.png")
    for draw in (
        map_figures.attention_maps, map_figures.mixtures, map_figures.pixel_attention,
        map_figures.segmentation_samples,
    ):  # fmt: skip
        assert not draw({}, tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()


def test_curves_are_means_over_the_runs_that_are_still_running(write_run):
    folders = [write_run(seed=seed) for seed in range(3)]
    rows = [
        '{"step": 10, "split": "validation", "accuracy": 0.5}\n',
        '{"step": 10, "split": "validation", "accuracy": 0.7}\n',
        '{"step": 10, "split": "validation", "accuracy": null}\n'
        '{"step": 20, "split": "validation", "accuracy": 0.9}\n'
        '{"step": 20, "split": "train", "accuracy": 0.1}\n',
    ]
    for folder, text in zip(folders, rows, strict=True):
        (folder / "metrics.jsonl").write_text(text)
    (found,) = compare([runs.read(folder) for folder in folders])
    steps, mean, sd = study_figures._mean_curve(found.rows[0], "accuracy")
    assert steps.tolist() == [10, 20]
    np.testing.assert_allclose(mean, [0.6, 0.9])
    np.testing.assert_allclose(sd, [np.std([0.5, 0.7], ddof=1), 0])


def some_maps(rng, shape, spatial, pixel=(), places=()):
    """Maps of three examples, with mixtures of two layers, and pixel-wise attention if asked for."""
    mixtures = {
        "stage1_block1/conv1": maps.describe_mixture(rng.dirichlet(np.ones(4), 20)),
        "stage1_block1/conv2": maps.describe_mixture(rng.dirichlet(np.ones(40), 20)),
    }
    weights = {
        f"layer{n}": {"pixel": rng.dirichlet(np.ones(3), (3, *pixel))}
        for n in range(5 * bool(pixel))
    }
    weights |= {f"block{n}": {"channel": np.ones((3, 2)), "spatial": rng.random((3, *places))}
                for n in range(2 * bool(places))}  # fmt: skip
    return maps.Maps(
        inputs=rng.normal(0, 100, (3, *shape)),
        labels=np.array([0, 1, 1]),
        predictions=np.array([0, 1, 0]),
        probabilities=np.ones(3),
        classes=["$one$", "two with a rather long name"],
        layer="stage2_block1",
        activation=np.maximum(rng.normal(size=(3, *spatial)), 0),
        weights=weights,
        mixtures=mixtures,
    )


@pytest.mark.parametrize(
    ("shape", "spatial", "places"),
    [((8, 8, 1), (4, 4), (8, 8)), ((8, 24, 3), (4, 12), (4, 12)), ((40, 1), (5,), (40,))],
)
def test_maps_of_pictures_and_series(tmp_path, rng, shape, spatial, places):
    one = some_maps(rng, shape, spatial)
    one.inputs[0] = 3.0  # a constant picture cannot be scaled by its range
    one.activation[1] = 0.0  # nothing speaks for the class
    shown = {
        "base": one,
        "local soft": some_maps(rng, shape, spatial, pixel=places),
        "CBAM": some_maps(rng, shape, spatial, places=places),
    }
    for draw in (
        map_figures.attention_maps, map_figures.mixtures, map_figures.pixel_attention,
    ):  # fmt: skip
        path = tmp_path / f"{draw.__name__}.png"
        assert draw(shown, path)
        width, height = size(path)
        assert 4 < width < 13 and 2 < height < 12
    assert not map_figures.pixel_attention({"base": one}, tmp_path / "none.png")


def test_attention_over_a_kernel_s_taps_is_no_map(rng):
    one = some_maps(rng, (8, 8, 1), (4, 4))
    taps = {"channel": np.ones((3, 2)), "filter": np.ones((3, 2)), "spatial": rng.random((3, 5, 5))}
    one.weights["conv1"] = taps
    one.weights["last"] = {"pixel": rng.random((3, 2, 2, 4))}  # too few places to look at
    assert map_figures._placewise(one) == []


def test_three_layers_stand_for_all(rng):
    one = some_maps(rng, (8, 8, 1), (4, 4), pixel=(8, 8))
    assert [layer for layer, _ in map_figures._placewise(one)] == ["layer0", "layer2", "layer4"]


def test_segmented_pictures_of_several_sizes(tmp_path, rng):
    images = [rng.integers(0, 256, (*side, 3), np.uint8) for side in ((20, 30), (40, 30))]
    masks = [rng.choice(np.array([0, 1, 255], np.uint8), image.shape[:2]) for image in images]
    one = maps.Samples(images, masks, [mask % 2 for mask in masks], ["background"])
    path = tmp_path / "samples.png"
    assert map_figures.segmentation_samples({"base": one, "hard": one}, path)
    width, height = size(path)
    assert 5 < width < 12 and 3 < height < 12


def test_gates_are_counted():
    assert map_figures._gates(np.array([1.0, 0.0, 0.5, 0.2, 1.0])) == "on 2, off 1, free 2"
