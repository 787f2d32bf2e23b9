"""Parameters of another run: which are taken over, which are not, and how that is said."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch_zip
from flax import traverse_util
from torch_numbers import weight

from experiments.configs import common
from experiments.core.errors import UserError
from experiments.runs.checkpoints import Checkpoints, read_best_step
from experiments.runs.weights import write_weights
from experiments.tasks import make_task
from experiments.train.initialise import start_from_run
from experiments.train.program import TrainState

pytestmark = pytest.mark.usefixtures("standard_promotion")

INPUTS = np.zeros((8, 8, 1), np.float32)
LAYERS = ("conv", "classifier", "attention")


def config_with(**changes):
    config = common.get_config("smoke")
    config.update_from_flattened_dict(
        {"model.width": 4, **{k: v for k, v in changes.items() if k not in LAYERS}}
    )
    with config.unlocked():
        for section in LAYERS:
            if section in changes:
                config[section] = changes[section]
    return config


def new_state(config, num_classes, seed=0):
    model = make_task(config).make_model(num_classes, spatial_axes=2)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), INPUTS[None], train=False))
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)
    nothing = dict.fromkeys(
        ("step", "attention", "opt_state", "plateau", "loss_scale", "failed", "rng")
    )
    return TrainState(
        **nothing,
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        average={},
    )


@pytest.fixture
def trained(tmp_path):
    """Saves a network as a run that has not come to its end; gives it."""

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


def start_from(source, config, num_classes):
    config.init_from = str(source)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    new = new_state(config, num_classes)
    return new, *start_from_run(new, config, make_task(config), num_classes, INPUTS, sharding)


def same(one, other):
    """Which arrays of two trees of the same names are equal, by name."""
    one, other = (traverse_util.flatten_dict(tree, sep="/") for tree in (one, other))
    assert one.keys() == other.keys()
    return {name: np.array_equal(one[name], other[name]) for name in one}


ODCONV = {"name": "odconv", "num_kernels": 2}


def test_of_the_same_network_all_is_taken_over(trained, tmp_path):
    old = trained(config_with(conv=ODCONV), 3)
    _, state, words = start(tmp_path, config_with(conv=ODCONV), 3)
    assert all(same(state.params, old.params).values())
    assert all(same(state.batch_stats, old.batch_stats).values())
    number = len(jax.tree.leaves(old.params))
    # The best evaluation, and not what came behind.
    assert words == (
        f"starts from step 3 of {tmp_path / 'run'}: {number} of {number} parameters taken over"
    )


def test_a_file_that_was_exported_here_starts_a_network_as_its_run_does(tmp_path):
    config = config_with(conv=ODCONV)
    old = new_state(config, 3, seed=7)
    variables = {"params": old.params, "batch_stats": old.batch_stats, "attention": {}}
    path = tmp_path / "model.safetensors"
    write_weights(path, variables, {"config": {}, "classes": [], "shape": []})
    _, state, words = start_from(path, config, 3)
    assert all(same(state.params, old.params).values())
    assert all(same(state.batch_stats, old.batch_stats).values())
    assert words.startswith(f"starts from {path}: ")


@pytest.mark.parametrize(
    ("classifier", "head"),
    [
        ({"name": "dense"}, ["head/bias (5,)", "head/kernel (8, 5)"]),
        ({"name": "dcd"}, ["head/"]),
    ],
    ids=["dense", "dynamic"],
)
def test_with_other_classes_the_head_stays_as_it_was_made(trained, tmp_path, classifier, head):
    old = trained(config_with(conv=ODCONV, classifier=classifier), 3)
    new, state, words = start(tmp_path, config_with(conv=ODCONV, classifier=classifier), 5)
    body, made = ({k: v for k, v in one.params.items() if k != "head"} for one in (state, old))
    assert all(same(body, made).values()) and body
    assert all(same(state.params["head"], new.params["head"]).values())
    assert all(same(state.batch_stats, old.batch_stats).values())
    assert "; new (other classes): " in words and all(part in words for part in head)
    number = len(jax.tree.leaves(old.params))
    assert f"{number - len(jax.tree.leaves(new.params['head']))} of {number} parameters" in words


def test_a_dynamic_network_starts_from_its_static_twin_of_other_classes(trained, tmp_path):
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


def test_a_network_with_gates_or_with_shared_cells_starts_from_its_static_twin(trained, tmp_path):
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


def test_another_number_of_kernels_is_named_with_both_shapes(trained, tmp_path):
    trained(config_with(conv=ODCONV), 3)
    says = r"start from .*: params/\S+/bias is \(2,\) there and \(4,\) here; .*; and \d+ more"
    with pytest.raises(UserError, match=says):
        start(tmp_path, config_with(conv={"name": "odconv", "num_kernels": 4}), 3)


def test_a_run_that_is_not_there_or_damaged_is_answered(trained, tmp_path):
    with pytest.raises(UserError, match=r"init_from=.* holds no run that has come to a checkpoint"):
        start(tmp_path, config_with(), 3)
    trained(config_with(), 3)
    for file in (tmp_path / "run" / "checkpoints" / "3" / "state").glob("ocdbt.*/d/*"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"checkpoints/3/state/ocdbt\.\S* cannot be read: "):
        start(tmp_path, config_with(), 3)
    # What belongs to another run is left where it is.
    assert (tmp_path / "run" / "checkpoints" / "3").exists()
    (tmp_path / "run" / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json cannot be read \(Expecting"):
        start(tmp_path, config_with(), 3)


def test_of_a_finished_run_the_summary_knows_the_best_step(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"best": {"step": 40}}))
    assert read_best_step(tmp_path) == 40


REFERENCES = Path(__file__).parents[2] / "dyn" / "torch_references.json"
TORCH = json.loads(REFERENCES.read_text())
PICTURE = np.zeros((32, 32, 3), np.float32)
LIKE_TORCH = {"model.depth": 18, "model.width": 8, "model.stem": "imagenet"}


def weights_of(name):
    return {key: weight(key, shape) for key, shape in TORCH[name]["shapes"].items()}


def start_from_file(path, num_classes=5, inputs=PICTURE, task="classification", **changes):
    config = config_with(**LIKE_TORCH | {"init_from": str(path), "task": task} | changes)
    model = make_task(config).make_model(num_classes, spatial_axes=2)
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs[None], train=False))
    made = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), made)
    nothing = dict.fromkeys(TrainState.__dataclass_fields__)
    new = TrainState(
        **nothing | {"average": {}, **{k: made.get(k, {}) for k in ("params", "batch_stats")}}
    )
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state, words = start_from_run(new, config, make_task(config), num_classes, inputs, sharding)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return model, variables, words


@pytest.fixture
def resnet18(tmp_path):
    """A file of a static network's weights, as torch's people publish them."""
    path = tmp_path / "resnet18.safetensors"
    safetensors.numpy.save_file(weights_of("resnet18"), path)
    return path


def logits(model, variables):
    from torch_numbers import pictures

    return jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, pictures())


@pytest.mark.parametrize("conv", [{"name": "conv"}, ODCONV], ids=["static", "dynamic"])
def test_a_file_of_torchs_weights_starts_a_static_network_and_its_dynamic_one(resnet18, conv):
    model, variables, words = start_from_file(resnet18, conv=conv)
    np.testing.assert_allclose(logits(model, variables), TORCH["resnet18"]["logits"], 0, 1e-4)
    assert words.startswith(f"starts from {resnet18}: 62 of ")
    assert words.endswith(", left out: 20 counts of batches")


def test_a_file_of_a_dynamic_networks_weights_starts_that(tmp_path):
    path = torch_zip.save(tmp_path / "od.pth", weights_of("odconv18"))
    conv = {"name": "odconv", "num_kernels": 4, "attention_norm": "batch"}
    model, variables, words = start_from_file(path, conv=conv)
    np.testing.assert_allclose(logits(model, variables), TORCH["odconv18"]["logits"], 0, 1e-4)
    assert "parameters taken over, left out: 36 counts of batches" in words


def test_of_a_file_with_other_classes_or_without_a_head_the_head_stays_new(resnet18, tmp_path):
    _, variables, words = start_from_file(resnet18, num_classes=3)
    assert not variables["params"]["head"]["kernel"].any()
    assert variables["params"]["stem_conv"]["kernel"].any()
    assert (
        "60 of 62 parameters taken over; new (other classes): head/bias (3,), head/kernel" in words
    )
    weights = {k: v for k, v in weights_of("resnet18").items() if not k.startswith("fc.")}
    _, _, words = start_from_file(torch_zip.save(tmp_path / "body.pth", weights), conv=ODCONV)
    assert "head/kernel (64, 5)" in words and "60 of " in words


def test_a_file_of_a_classifiers_weights_starts_the_backbone_of_a_segmentation(resnet18):
    _, variables, words = start_from_file(resnet18, task="segmentation")
    kernel = variables["params"]["backbone"]["stem_conv"]["kernel"]
    np.testing.assert_array_equal(
        kernel, weights_of("resnet18")["conv1.weight"].transpose(2, 3, 1, 0)
    )
    assert "60 of 65 parameters taken over" in words and "logits/kernel" in words
    assert words.endswith("left out: fc.bias, fc.weight, 20 counts of batches")


@pytest.mark.parametrize(
    ("name", "number", "conv"),
    [
        ("vgg16", 32, {"name": "conv"}),
        ("vgg16", 32, ODCONV),
        ("mobilenet_v2", 158, {"name": "conv"}),
    ],
    ids=["vgg16", "vgg16, dynamic", "mobilenet_v2"],
)
def test_files_of_other_networks_start_them(tmp_path, name, number, conv):
    path = tmp_path / f"{name}.safetensors"
    safetensors.numpy.save_file(weights_of(name), path)
    model, variables, words = start_from_file(path, conv=conv, **{"model.network": name})
    assert f"{number} of " in words
    if conv["name"] == "conv":
        np.testing.assert_allclose(logits(model, variables), TORCH[name]["logits"], 0, 1e-4)
    with pytest.raises(UserError, match=f"Such weights fit --config.model.network={name}"):
        start_from_file(path)


@pytest.mark.parametrize("conv", [{"name": "conv"}, ODCONV], ids=["static", "dynamic"])
@pytest.mark.parametrize("task", ["classification", "tagging"])
def test_a_file_starts_what_is_below_a_hidden_layer_whatever_its_own_classes(resnet18, task, conv):
    changes = {"conv": conv, "model.hidden": 7, "classifier": {"name": "dcd"}}
    _, variables, words = start_from_file(resnet18, task=task, **changes)
    params = variables["params"]
    assert not any(leaf.any() for leaf in jax.tree.leaves([params["hidden"], params["head"]]))
    np.testing.assert_array_equal(
        params["backbone"]["stem_conv"]["kernel"],
        weights_of("resnet18")["conv1.weight"].transpose(2, 3, 1, 0),
    )
    assert "60 of " in words
    assert words.endswith("left out: fc.bias, fc.weight, 20 counts of batches")


def without(weights, *names):
    return {name: value for name, value in weights.items() if name not in names}


FILES = {
    "a picture": (lambda path: path.write_bytes(b"GIF89a" + bytes(90)), "is not a file of weights"),
    "half of a file": (
        lambda path: path.write_bytes(
            torch_zip.save(path, weights_of("resnet18")).read_bytes()[:5000]
        ),
        "is not a file of weights",
    ),
    "missing names": (
        lambda path: torch_zip.save(
            path, without(weights_of("resnet18"), "conv1.weight", "bn1.running_var")
        ),
        "2 missing for parameters of the network: params/stem_conv/kernel (7, 7, 1, 8), batch_stats",
    ),
    "another depth": (
        lambda path: torch_zip.save(path, weights_of("resnet34")),
        "Such weights fit a ResNet of their --config.model.depth",
    ),
    "a forbidden name": (
        lambda path: torch_zip.save(path, {}, {"evil": b"cposix\nsystem\n"}),
        "it uses posix.system, but only tensors and dictionaries are read",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_will_not_do_is_answered_before_anything_is_compiled(ask, tmp_path, kind):
    write, says = FILES[kind]
    write(tmp_path / "net.pth")
    words = [f"--config.{key}={value}" for key, value in LIKE_TORCH.items()]
    answer = ask(
        "--config=experiments/configs/odconv.py:smoke",
        *words,
        f"--config.init_from={tmp_path / 'net.pth'}",
    )
    assert says in answer and "net.pth" in answer
