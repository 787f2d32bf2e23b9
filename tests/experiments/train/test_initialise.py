"""Weights of another run or of torch: which are taken over, which are not, and the sentence about it."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from finished_runs import config_with
from flax import traverse_util
from new_states import INPUTS, LIKE_TORCH, ODCONV, new_state, start_from, weights_of

from dyn import models
from dyn.interop import SOURCES
from dyn.models.efficientnet import TENSORFLOW
from experiments.core.errors import UserError
from experiments.runs.checkpoints import Checkpoints, read_best_step
from experiments.runs.weights import write_weights
from experiments.train import initialise

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def trained(tmp_path):
    """Returns a function that saves a network as a run that has not come to its end."""

    def save(config, num_classes):
        state = new_state(config, num_classes, seed=7)
        checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
        arrays = {"params": state.params, "batch_stats": state.batch_stats}
        checkpoints.save(3, arrays, {"best": {"step": 3}}, {"accuracy": 0.5, "loss": 1.0})
        checkpoints.save(5, jax.tree.map(jnp.zeros_like, arrays), {"best": {"step": 3}})
        checkpoints.close()
        return state

    return save


def start(tmp_path, config, num_classes):
    return start_from(tmp_path / "run", config, num_classes)


def same(one, other):
    """Compares the arrays of two trees of the same names: name to whether they are equal."""
    one, other = (traverse_util.flatten_dict(tree, sep="/") for tree in (one, other))
    assert one.keys() == other.keys()
    return {name: np.array_equal(one[name], other[name]) for name in one}


@pytest.mark.parametrize("exported", [False, True], ids=["run", "exported file"])
def test_the_same_network_takes_everything_over(trained, tmp_path, exported):
    config = config_with(conv=ODCONV)
    old, source = trained(config, 3), tmp_path / "run"
    origin = f"step 3 of {source}"  # the best evaluation, not the latest
    if exported:
        origin = source = tmp_path / "model.safetensors"
        arrays = {"params": old.params, "batch_stats": old.batch_stats, "attention": {}}
        write_weights(source, arrays, {"config": {}, "classes": [], "shape": [8, 8, 3]})
    _, state, words = start_from(source, config, 3)
    assert all(same(state.params, old.params).values())
    assert all(same(state.batch_stats, old.batch_stats).values())
    number = len(jax.tree.leaves(old.params))
    assert words == f"starts from {origin}: {number} of {number} parameters taken over"


@pytest.mark.parametrize(
    ("classifier", "head"),
    [
        ({"name": "dense"}, ["head/bias (5,)", "head/kernel (8, 5)"]),
        ({"name": "dcd"}, ["head/"]),
        ({"name": "dyconv", "num_kernels": 2}, ["head/"]),
    ],
    ids=["dense", "dcd", "dyconv"],
)
def test_the_head_stays_new_with_other_classes(trained, tmp_path, classifier, head):
    old = trained(config_with(conv=ODCONV, classifier=classifier), 3)
    new, state, words = start(tmp_path, config_with(conv=ODCONV, classifier=classifier), 5)
    body, made = ({k: v for k, v in one.params.items() if k != "head"} for one in (state, old))
    assert all(same(body, made).values()) and body
    assert all(same(state.params["head"], new.params["head"]).values())
    assert all(same(state.batch_stats, old.batch_stats).values())
    assert "; new (other classes): " in words and all(part in words for part in head)
    number = len(jax.tree.leaves(old.params))
    assert f"{number - len(jax.tree.leaves(new.params['head']))} of {number} parameters" in words


def test_a_dynamic_network_starts_from_its_static_twin(trained, tmp_path):
    old = trained(config_with(), 3)
    new, state, words = start(tmp_path, config_with(conv=ODCONV), 5)
    assert np.array_equal(state.params["stem_conv"]["kernel"], old.params["stem_conv"]["kernel"])
    kernels = [
        one["stage1_block1"]["conv1"]["kernel"] for one in (state.params, new.params, old.params)
    ]
    assert not np.array_equal(kernels[0], kernels[1])
    # With neutral attention: sigmoids of a half, and the mean of the candidates.
    np.testing.assert_allclose(kernels[0].mean(axis=0), 8 * kernels[2], rtol=1e-4, atol=1e-5)
    assert same(state.params["head"], new.params["head"]) and "head/bias (5,)" in words


def test_networks_with_gates_or_shared_cells_start_from_their_static_twin(trained, tmp_path):
    old = trained(config_with(), 3)
    _, state, words = start(tmp_path, config_with(attention={"name": "cbam"}), 3)
    norms = [one["stage1_block1"]["norm2"]["scale"] for one in (state.params, old.params)]
    np.testing.assert_allclose(norms[0], 4 * norms[1], rtol=1e-6)
    assert "; new: stage1_block1/attention/channel/" in words
    warehouse = {"name": "warehouse", "cell_ratio": 1.0, "in_ratio": 1.0}
    _, state, words = start(tmp_path, config_with(conv=warehouse), 3)
    cells, kernel = state.params["conv"]["stage1"]["cells"], old.params["stage1_block1"]["conv1"]
    np.testing.assert_allclose(cells[:9].reshape(3, 3, 4, 4), 1.001 * kernel["kernel"], 1e-4)
    assert "/attention/cell/" in words and "stage1/cells" not in words


def test_another_norm_of_the_attention_is_named_with_what_to_write(trained, tmp_path):
    """Runs of before the layer norm, and the papers' weights, have a batch norm there."""
    trained(config_with(conv={**ODCONV, "attention_norm": "batch"}), 3)
    with pytest.raises(
        UserError, match=r"another norm: write --config\.conv\.attention_norm=batch"
    ):
        start(tmp_path, config_with(conv={**ODCONV, "attention_norm": "layer"}), 3)


def test_another_number_of_kernels_is_named_with_both_shapes(trained, tmp_path):
    trained(config_with(conv=ODCONV), 3)
    says = r"start from .*: params/\S+/bias is \(2,\) there and \(4,\) here; .*; and \d+ more"
    with pytest.raises(UserError, match=says):
        start(tmp_path, config_with(conv={"name": "odconv", "num_kernels": 4}), 3)


def test_a_missing_or_damaged_run_is_an_error(trained, tmp_path):
    with pytest.raises(UserError, match=r"init_from=.* holds no run with a checkpoint"):
        start(tmp_path, config_with(), 3)
    trained(config_with(), 3)
    for file in (tmp_path / "run" / "checkpoints" / "3" / "state").glob("ocdbt.*/d/*"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="checkpoints/3 cannot be read: "):
        start(tmp_path, config_with(), 3)
    # Another run's checkpoint stays where it is.
    assert (tmp_path / "run" / "checkpoints" / "3").exists()
    (tmp_path / "run" / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json cannot be read: it is no JSON"):
        start(tmp_path, config_with(), 3)


def test_the_summary_of_a_finished_run_names_its_best_step(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"best": {"step": 40}}))
    assert read_best_step(tmp_path) == 40


@pytest.mark.matrix
def test_a_torch_file_starts_the_dynamic_twin_of_its_network(tmp_path):
    path = tmp_path / "resnet18.safetensors"
    safetensors.numpy.save_file(weights_of("resnet18"), path)
    picture = np.zeros((32, 32, 3), np.float32)
    _, state, words = start_from(path, config_with(conv=ODCONV, **LIKE_TORCH), 5, picture)
    kernel = weights_of("resnet18")["conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(state.params["stem_conv"]["kernel"], kernel)
    assert words.startswith(f"starts from {path}: 62 of ")
    assert words.endswith(", left out: 20 counts of batches")


def test_every_source_of_weights_says_what_they_fit():
    assert initialise._FITTING.keys() == SOURCES.keys()


def test_tiny_imagenet_takes_its_classes_of_imagenet():
    config = config_with("tiny_imagenet", conv=ODCONV)
    config.init_from = "weights.pth"
    theirs = new_state(config_with("tiny_imagenet"), 1000, seed=7)
    arrays = {"params": theirs.params, "batch_stats": theirs.batch_stats}
    imagenet = initialise.TrainedWeights(arrays, "weights.pth", of_imagenet=True)
    state, words = initialise.initialise_from(new_state(config, 200), imagenet, config, 200, INPUTS)
    rows = [
        1,
        25,
        30,
    ]  # goldfish, the European fire salamander and the bullfrog are its first classes
    kernel = theirs.params["head"]["kernel"]
    np.testing.assert_array_equal(state.params["head"]["kernel"][:, :3], kernel[:, rows])
    np.testing.assert_array_equal(
        state.params["head"]["bias"][:3], theirs.params["head"]["bias"][rows]
    )
    assert "head/" not in words
    # Fewer classes than all of Tiny ImageNet have a new classifier.
    new = new_state(config, 5)
    state, words = initialise.initialise_from(new, imagenet, config, 5, INPUTS)
    assert all(same(state.params["head"], new.params["head"]).values()) and "head/kernel" in words


@pytest.mark.parametrize(
    ("network", "epsilon"),
    [
        (models.ResNet18, 1e-5),
        (models.MobileNetV2, 1e-5),
        (models.MobileNetV3, 1e-3),
        (partial(models.EfficientNet, **TENSORFLOW), 1e-3),
    ],
)
def test_the_epsilon_of_norms_is_the_networks(network, epsilon):
    assert initialise.find_epsilon(network(num_classes=3)) == epsilon
