"""Every kind of classifier that a run can have, described for the library alone."""

import json

import jax
import numpy as np
import pytest
from finished_runs import config_with, random_variables
from products import thin_out

from dyn.interop import from_pretrained
from experiments.inference import hub
from experiments.inference.trained import Trained

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("standard_promotion")]

CASES = {
    "a hidden layer and shared kernels": {
        "conv": {"name": "warehouse"},
        "model.shortcut": "conv",
        "model.hidden": 5,
    },
    "a carried context": {"conv": {"name": "odconv"}, "model.context": "carried"},
    "attention and a dynamic classifier": {
        "attention": {"name": "cbam"},
        "classifier": {"name": "dyconv"},
        "model.remat": "cheap",
    },
    "involution": {"conv": {"name": "involution"}},
    "vgg16": {"model.network": "vgg16", "conv": {"name": "odconv", "num_kernels": 2}},
    "mobilenet_v2": {"model.network": "mobilenet_v2", "conv": {"name": "dcd"}},
    "efficientnet_b0": {
        "model.network": "efficientnet_b0",
        "model.padding": "same",
        "conv": {"name": "condconv", "num_kernels": 2},
    },
    "dymn": {"model.network": "dymn", "conv": {"name": "dyconv"}},
}


def assert_described(config, shape, tmp_path, x):
    model, variables = random_variables(config, "abc", shape)
    trained = Trained(config, list("abc"), shape, variables)
    hub.write_folder(trained, tmp_path)
    network, back, *_ = from_pretrained(tmp_path)
    ours = jax.jit(lambda v, x: network.apply(v, x, train=False))(back, x)
    np.testing.assert_array_equal(
        ours, jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, x)
    )


@pytest.mark.parametrize("name", thin_out(CASES, step=2))
def test_a_classifier_is_described(name, tmp_path, rng):
    config = config_with(**CASES[name])
    assert_described(config, (8, 8, 1), tmp_path, rng.standard_normal((2, 8, 8, 1), np.float32))


@pytest.mark.parametrize("changes", [{}, {"task": "tagging", "audio.colour": "magma"}])
def test_spectrograms(changes, tmp_path, rng):
    config = config_with("songs", **changes)
    x = rng.standard_normal((2, 16, 16, 3), np.float32)
    assert_described(config, (16, 16, 3), tmp_path, x)
    about = json.loads((tmp_path / "config.json").read_text())
    assert about["about"]["audio"]["sample_rate"] == 32_000
    assert about["preprocessing"]["size"] is None and about["task"] == config.task


@pytest.mark.parametrize("network", ["resnet", "net1", "net2"])
def test_series(network, tmp_path, rng):
    config = config_with("adiac", **{"model.network": network})
    x = rng.standard_normal((2, 24, 1), np.float32)
    assert_described(config, (24, 1), tmp_path, x)
    assert json.loads((tmp_path / "config.json").read_text())["preprocessing"] is None
