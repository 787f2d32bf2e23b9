"""A finished run's network from Python: the numbers of evaluation, whatever the pictures' sizes."""

import json

import jax
import numpy as np
import pytest
from finished_runs import config_with, write_finished

from experiments.core.errors import UserError
from experiments.data import transforms, ucr
from experiments.data.ucr import Series
from experiments.inference.trained import config_of
from experiments.load import load
from experiments.runs import artifacts as maps

pytestmark = pytest.mark.usefixtures("standard_promotion")

ODCONV = {"conv": {"name": "odconv", "num_kernels": 2, "attention_norm": "layer"}}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A finished run on digits: (folder, config, model, variables)."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    config = config_with(**ODCONV)
    with jax.numpy_dtype_promotion("standard"):
        return folder, config, *write_finished(folder, config, "abc", (8, 8, 1))


def test_three_lines_give_what_the_network_says_of_any_number_of_pictures(digits, rng):
    folder, config, net, variables = digits
    pictures = rng.integers(0, 256, (6, 8, 8, 1), np.uint8)  # a batch and a half

    model = load(folder)
    probabilities = model(pictures)

    inputs = transforms.normalise(pictures, config.normalise.mean, config.normalise.std)
    expected = jax.nn.softmax(jax.jit(net.apply)(variables, inputs))
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-6)
    assert probabilities.shape == (6, 3) and probabilities.dtype == np.float32
    assert model.classes == ["a", "b", "c"] and model.shape == (8, 8, 1)
    # With the temperatures that it was evaluated with, which are not 1 here.
    assert any(np.any(leaf != 1) for leaf in jax.tree.leaves(model.variables["attention"]))
    assert model(pictures[:0]).shape == (0, 3)
    np.testing.assert_array_equal(model(list(pictures[..., 0])), probabilities)
    assert model._compiled._cache_size() == 1


def test_pictures_of_other_sizes_are_brought_to_that_of_the_run(digits, rng):
    model = load(digits[0])
    large = rng.integers(0, 256, (20, 31, 1), np.uint8)
    np.testing.assert_array_equal(model([large]), model([transforms.crop_to_square(large, 8)]))


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (np.zeros((8, 8, 3), np.uint8), r"of the shape \(8, 8, 3\); .* with \(8, 8, 1\)"),
        (np.zeros((8, 8, 1), np.float32), "of float32; pictures are uint8"),
        (np.zeros((0, 8, 1), np.uint8), "which is empty"),
    ],
)
def test_what_is_no_picture_of_the_run_is_refused_by_name(digits, raw, why):
    with pytest.raises(ValueError, match=why):
        load(digits[0])([raw])


def test_series_are_filled_normalised_and_padded_as_in_training(tmp_path, rng):
    config = config_with("ucr,smoke,name=Toy", **{"model.network": "net1", "series.features": 2})
    net, variables = write_finished(tmp_path, config, ["1", "2"], (24, 1))
    model, series = load(tmp_path), 3 + rng.normal(size=(3, 24))
    series[1, 20:] = np.nan
    series[2, 4] = np.nan
    rows = [Series(1, "", [values], padded=True) for values in series]
    inputs, notes = ucr._stack_series(rows)
    assert len(notes) == 3
    expected = jax.nn.softmax(net.apply(variables, inputs))
    np.testing.assert_allclose(model(series), expected, rtol=1e-5)
    np.testing.assert_allclose(model([series[1, :20]]), expected[1:2], rtol=1e-5)
    with pytest.raises(ValueError, match="25 values, more than the 24"):
        model([np.zeros(25)])
    with pytest.raises(ValueError, match="no values"):
        model([np.full(3, np.nan)])


def test_a_segmentation_run_gives_a_class_for_each_pixel_of_each_picture(tmp_path, rng):
    config = config_with("mask_folder,smoke", image_size=16)
    write_finished(tmp_path, config, ["ground", "square"], (16, 16, 3))
    sizes = [(16, 16), (9, 30), (40, 12)]
    found = load(tmp_path)([rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes])
    assert [mask.shape for mask in found] == sizes
    assert all(mask.dtype == np.uint8 and mask.max() <= 1 for mask in found)


def test_a_run_from_before_its_summary_named_the_classes_has_them_from_its_maps(digits, tmp_path):
    folder = digits[0]
    for name in ("checkpoints", "config.json"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "summary.json").write_text(json.dumps({"best": {"step": 4}}))
    with pytest.raises(UserError, match=r"maps\.npz cannot be read"):
        load(tmp_path)
    arrays = {name: np.zeros(()) for name in ("labels", "predictions", "probabilities")}
    arrays |= {"layer": np.array(""), "activation": np.zeros(())}
    arrays |= {"inputs": np.zeros((2, 8, 8, 1)), "classes": np.array(list("xyz"))}
    np.savez(tmp_path / "maps.npz", **arrays)
    assert maps.load_maps(tmp_path / "maps.npz").classes == ["x", "y", "z"]
    old, new = load(tmp_path), load(folder)
    assert old.classes == ["x", "y", "z"] and old.shape == new.shape


def test_what_is_no_finished_run_is_answered(tmp_path):
    with pytest.raises(UserError, match=r"holds no finished run: give the --workdir of one"):
        load(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load(tmp_path)


def test_settings_come_back_as_they_were_also_those_that_did_not_exist_then():
    config = config_with(**ODCONV)
    settings = json.loads(json.dumps(config.to_dict()))
    assert config_of(settings).to_dict() == config.to_dict()
    del settings["loss_scale"], settings["model"]["context"]
    assert config_of(settings).to_dict() == config.to_dict()
