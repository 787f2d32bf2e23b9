"""A trained network from Python: the numbers of evaluation, whatever the sizes of pictures and batches."""

import dataclasses

import jax
import numpy as np
import pytest
from finished_runs import config_with, write_finished

from experiments.core.errors import UserError
from experiments.data import transforms, ucr
from experiments.data.ucr import Series
from experiments.load import load

pytestmark = pytest.mark.usefixtures("standard_promotion")

ODCONV = {"conv": {"name": "odconv", "num_kernels": 2, "attention_norm": "layer"}}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A finished run on digits: (trained, Flax module, variables)."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    with jax.numpy_dtype_promotion("standard"):
        net, variables = write_finished(folder, config_with(**ODCONV), "abc", (8, 8, 1))
        return load(folder), net, variables


def test_predictions_are_those_of_evaluation(digits, rng):
    trained, net, variables = digits
    pictures = rng.integers(0, 256, (6, 8, 8, 1), np.uint8)  # a batch of four and a half one
    probabilities = trained(pictures)

    inputs = transforms.normalise(pictures, **trained.config.normalise)
    expected = jax.nn.softmax(jax.jit(net.apply)(variables, inputs))
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-6)
    assert probabilities.shape == (6, 3) and probabilities.dtype == np.float32
    assert trained.classes == ["a", "b", "c"] and trained.shape == (8, 8, 1)
    # The temperatures are those of evaluation, not 1.
    assert any(np.any(leaf != 1) for leaf in jax.tree.leaves(trained.variables["attention"]))
    assert trained(pictures[:0]).shape == (0, 3)
    np.testing.assert_array_equal(trained(list(pictures[..., 0])), probabilities)
    assert len(trained._programs) == 1


def test_a_batch_has_keys_predictions_and_features(digits, rng):
    trained = digits[0]
    pictures = rng.integers(0, 256, (6, 8, 8, 1), np.uint8)
    examples = [(index, trained.prepare(picture)) for index, picture in enumerate(pictures)]
    batches = list(trained.predict_batches(iter(examples), with_features=True))
    assert [batch.keys for batch in batches] == [[0, 1, 2, 3], [4, 5]]
    features = np.concatenate([batch.features for batch in batches])
    head = trained.variables["params"]["head"]
    predictions = jax.nn.softmax(features @ head["kernel"] + head["bias"])
    np.testing.assert_allclose(predictions, trained(pictures), rtol=1e-4, atol=1e-6)
    (batch,) = trained.predict_batches(iter(examples), batch_size=8)
    np.testing.assert_allclose(batch.predictions, predictions, rtol=1e-4, atol=1e-6)
    assert batch.features.shape == (6, 0) and batch.seconds > 0


def test_a_network_without_a_head_has_no_features(digits):
    trained = dataclasses.replace(digits[0])
    trained.task.predict = lambda model, variables, inputs: inputs
    examples = [(0, {"inputs": np.zeros((8, 8, 1))})]
    with pytest.raises(UserError, match="no module named head"):
        list(trained.predict_batches(examples, with_features=True))


def test_pictures_of_other_sizes_are_fitted(digits, rng):
    large = rng.integers(0, 256, (20, 31, 1), np.uint8)
    fitted = transforms.crop_to_square(large, 8)
    np.testing.assert_array_equal(digits[0]([large]), digits[0]([fitted]))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.zeros((8, 8, 3), np.uint8), r"\(8, 8, 3\); .* with \(8, 8, 1\)"),
        (np.zeros((8, 8, 1), np.float32), "uint8"),
        (np.zeros((0, 8, 1), np.uint8), "empty"),
    ],
)
def test_invalid_pictures_are_refused(digits, raw, message):
    with pytest.raises(ValueError, match=message):
        digits[0]([raw])


def test_sounds_are_for_runs_on_recordings(digits):
    with pytest.raises(ValueError, match="on digits, not on recordings"):
        digits[0].sounds(np.zeros(9), 8000)


def test_series_are_filled_normalised_and_padded_as_in_training(tmp_path, rng):
    config = config_with("ucr,smoke,name=Toy", **{"model.network": "net1", "series.features": 2})
    net, variables = write_finished(tmp_path, config, ["1", "2"], (24, 1))
    trained, series = load(tmp_path), 3 + rng.normal(size=(3, 24))
    series[1, 20:] = np.nan
    series[2, 4] = np.nan
    rows = [Series(1, "", [values], padded=True) for values in series]
    inputs, notes = ucr._stack_series(rows)
    assert len(notes) == 3
    expected = jax.nn.softmax(jax.jit(net.apply)(variables, inputs))
    np.testing.assert_allclose(trained(series), expected, rtol=1e-5)
    np.testing.assert_allclose(trained([series[1, :20]]), expected[1:2], rtol=1e-5)
    with pytest.raises(ValueError, match="25 values, more than the 24"):
        trained([np.zeros(25)])
    with pytest.raises(ValueError, match="no values"):
        trained([np.full(3, np.nan)])


def test_a_batch_that_no_machine_holds_is_refused(digits, rng):
    trained = digits[0]
    example = trained.prepare(rng.integers(0, 256, (8, 8, 1), np.uint8))
    for size, says in ((10**9, "batch of 1,000,000,000 examples takes .* GB"), (10**20, "or less")):
        with pytest.raises(UserError, match=says):
            next(trained.predict_batches([(0, example)], size))
