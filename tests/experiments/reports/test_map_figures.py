import numpy as np
import pytest

from experiments.reports import map_figures
from experiments.runs import artifacts


def make_maps(rng, shape, spatial, weights=()):
    """Maps of three examples, with mixtures of two layers."""
    mixtures = {
        "stage1_block1/conv1": artifacts.describe_mixture(rng.dirichlet(np.ones(4), 20)),
        "stage1_block1/conv2": artifacts.describe_mixture(rng.dirichlet(np.ones(40), 20)),
    }
    return artifacts.Maps(
        inputs=rng.normal(0, 100, (3, *shape)),
        labels=np.array([0, 1, 1]),
        predictions=np.array([0, 1, 0]),
        probabilities=np.ones(3),
        classes=["$one$", "two with a rather long name"],
        layer="stage2_block1",
        activation=np.maximum(rng.normal(size=(3, *spatial)), 0),
        weights=dict(weights),
        mixtures=mixtures,
    )


def make_pixel_weights(rng, positions):
    return {f"layer{n}": {"pixel": rng.dirichlet(np.ones(3), (3, *positions))} for n in range(5)}


def make_spatial_weights(rng, positions):
    kinds = {"channel": np.ones((3, 2)), "spatial": rng.random((3, *positions))}
    return {"block0": kinds, "block1": kinds}


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("shape", "spatial", "positions"),
    [((8, 24, 3), (4, 12), (4, 12)), ((40, 1), (5,), (40,))],
    ids=["pictures", "series"],
)
def test_maps_of_pictures_and_series(size_of, tmp_path, rng, shape, spatial, positions):
    base = make_maps(rng, shape, spatial)
    base.inputs[0] = 3.0  # a constant picture cannot be scaled by its range
    base.activation[1] = 0.0  # no place supports the class
    maps = {
        "base": base,
        "local soft": make_maps(rng, shape, spatial, make_pixel_weights(rng, positions)),
        "CBAM": make_maps(rng, shape, spatial, make_spatial_weights(rng, positions)),
    }
    for draw in (
        map_figures.draw_attention_maps, map_figures.draw_mixtures, map_figures.draw_pixel_attention,
    ):  # fmt: skip
        path = tmp_path / f"{draw.__name__}.png"
        assert draw(maps, path)
        width, height = size_of(path)
        assert 4 < width < 13 and 2 < height < 12
    assert not map_figures.draw_pixel_attention({"base": base}, tmp_path / "none.png")


def test_nothing_to_draw(tmp_path):
    for draw in (
        map_figures.draw_attention_maps, map_figures.draw_mixtures, map_figures.draw_pixel_attention,
        map_figures.draw_segmentation_samples,
    ):  # fmt: skip
        assert not draw({}, tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()


def test_attention_over_taps_is_not_over_positions(rng):
    maps = make_maps(rng, (8, 8, 1), (4, 4))
    taps = {"channel": np.ones((3, 2)), "filter": np.ones((3, 2)), "spatial": rng.random((3, 5, 5))}
    maps.weights["conv1"] = taps
    maps.weights["last"] = {"pixel": rng.random((3, 2, 2, 4))}  # too few positions
    assert map_figures._choose_layers(maps) == []


def test_segmented_pictures_of_several_sizes(size_of, tmp_path, rng):
    images = [rng.integers(0, 256, (*side, 3), np.uint8) for side in ((20, 30), (40, 30))]
    masks = [rng.choice(np.array([0, 1, 255], np.uint8), image.shape[:2]) for image in images]
    samples = artifacts.Samples(images, masks, [mask % 2 for mask in masks], ["background"])
    path = tmp_path / "samples.png"
    assert map_figures.draw_segmentation_samples({"base": samples, "hard": samples}, path)
    width, height = size_of(path)
    assert 5 < width < 12 and 3 < height < 12
