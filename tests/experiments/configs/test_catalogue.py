"""Every config of the catalogue trains; what layers sow and anneal reaches the loop."""

import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import experiments.configs
from experiments import data
from experiments.configs import base, hard, kernel_warehouse
from experiments.core.errors import UserError
from experiments.data import pipeline
from experiments.reports.comparison import PERCENT
from experiments.tasks import make_task
from experiments.tasks.backbone import make_network
from experiments.train.loop import train
from experiments.train.loss_scale import all_finite
from experiments.train.optimizer import count_steps
from experiments.train.program import compile_program
from experiments.train.validate import validate

FOLDER = Path(experiments.configs.__file__).parent
# The small networks for series have a study of their own to be tested in.
NAMES = sorted(
    file.stem
    for file in FOLDER.glob("*.py")
    if file.stem not in ("__init__", "common") and not file.stem.startswith("net")
)
SMALL = {
    "model.width": 4,
    "data.limit": 16,
    "batch_size": 8,
    "epochs": 2,
    "temperature.epochs": 2,
    "auxiliary.epochs": 2,
}


# They differ from others in their layer alone, whose training the tests of layers see.
LIKE_OTHERS = (
    "cbam",
    "condconv",
    "dcd",
    "dyconv",
    "fdconv",
    "global_soft",
    "rotated",
    "spectral_norm",
)
# Of configs for recordings, whose smoke runs are on made-up songs.
OF_SOUND = {
    "audio.picture": "linear",  # the quickest to draw
    "audio.height": 32,
    "audio.width": 32,
    "gan.widths": (8, 4, 4, 4),
    "autoencoder.widths": (4, 4, 4, 6),
}


@pytest.fixture(scope="module", autouse=True)
def songs_in_one_place(tmp_path_factory):
    """They are written once for all configs, and not at home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DYN_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="module", autouse=True)
def ordinary_promotion():
    """Optax does not pass strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(autouse=True)
def without_maps(monkeypatch):
    """What is kept for reports takes as long to compile as all else, and has tests of its own."""
    monkeypatch.setattr("experiments.tasks.classification.save_maps", lambda *_: None)


def small(config_file, **changes):
    config = config_file.get_config("smoke")
    with config.unlocked():
        of_sound = OF_SOUND if config.data.name == "audio" else {}
        config.update_from_flattened_dict({**SMALL, **of_sound, **changes})
    return config


def train_rows(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == "train"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if name in LIKE_OTHERS else ())
        for name in NAMES
        if name not in ("hard", "kernel_warehouse")
    ],
)
def test_a_config_trains_on_digits_or_songs(name, tmp_path):
    config_file = importlib.import_module(f"experiments.configs.{name}")
    summary = train(small(config_file, epochs=1), tmp_path)
    assert summary["config"] == name and summary["steps"] == 2
    assert np.isfinite(summary["test"]["loss"])
    if summary["metric"] in PERCENT:
        assert 0 <= summary["test"][summary["metric"]] <= 1
    # A static network sows none.
    assert name != "base" or all("auxiliary" not in row for row in train_rows(tmp_path))


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_a_config_stays_finite_for_200_steps_in_bfloat16(name):
    config = small(
        importlib.import_module(f"experiments.configs.{name}"),
        **{"dtype": "bfloat16", "data.limit": 64, "epochs": 25},
    )
    task, dataset = make_task(config), data.load(config.data, config.seed)
    train_split, transform = dataset.splits["train"], task.make_transform(train=True)
    steps = count_steps(config, len(train_split))
    program = compile_program(
        config,
        task,
        len(dataset.classes),
        steps,
        transform(train_split[0], np.random.default_rng(0)),
        task.make_transform(train=False)(train_split[0]),
    )
    batches = pipeline.train_batches(train_split, transform, batch_size=config.batch_size, seed=0)
    state, losses = program.create_state(0), []
    for _ in range(steps.total):
        state, metrics = program.train_step(state, program.shard_batch(next(batches)))
        losses.append(metrics["loss"])
    batches.close()
    # A state that met a loss, a gradient or a statistic that is not finite would have stayed there.
    assert int(state.step) == steps.total == 200 and not bool(state.failed)
    assert bool(all_finite((state.params, state.batch_stats, state.opt_state)))
    assert np.mean(losses[-50:]) < np.mean(losses[:50])


def test_the_losses_that_gates_sow_are_added_with_a_growing_weight(tmp_path):
    """The gradient's weight is 0 at first: the first step is that of a network without the loss."""
    summary = train(small(hard), tmp_path / "with")
    rows = train_rows(tmp_path / "with")
    assert all(np.isfinite(row["auxiliary"]) and row["auxiliary"] > 0 for row in rows)
    train(small(hard, **{"auxiliary.weight": 0.0}), tmp_path / "without")
    others = train_rows(tmp_path / "without")
    assert [row["loss"] for row in rows[:2]] == [row["loss"] for row in others[:2]]
    assert rows[-1]["loss"] != others[-1]["loss"]
    assert "attention.png" in {path.name for path in (tmp_path / "with/figures").iterdir()}
    assert summary["steps"] == 4


def test_the_warehouse_s_blend_falls_to_zero_over_the_epochs_of_the_temperature(tmp_path):
    train(small(kernel_warehouse), tmp_path)
    assert [row["blend"] for row in train_rows(tmp_path)] == [0.75, 0.5, 0.25, 0.0]
    # It softens nothing, so there is no temperature to show.
    assert all("temperature" not in row for row in train_rows(tmp_path))


def test_the_convolutions_of_a_stage_share_a_warehouse_and_so_do_the_shortcuts():
    config = kernel_warehouse.get_config("smoke")
    config.model.depth = 10
    net = make_network(config, num_classes=5, spatial_axes=2)
    shapes = jax.eval_shape(net.init, jax.random.key(0), np.ones((1, 8, 8, 1), np.float32))
    params = shapes["params"]
    assert set(params["conv"]) == {"stage1", "stage2", "stage3", "stage4"}
    assert "kernel" not in params["stage2_block1"]["downsample_conv"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"conv": {"name": "odcnv"}},
            "--config.conv.name=odcnv does not exist; did you mean 'odconv'?",
        ),
        ({"conv": {"name": "dcd", "latnt": 3}}, "dcd has no such field; did you mean 'latent'?"),
        (
            {"attention": {"name": "cbm"}},
            "--config.attention.name=cbm does not exist; did you mean",
        ),
        ({"classifier": {"name": "svm"}}, "--config.classifier.name=svm does not exist; there are"),
        ({"model.context": "carry"}, "--config.model.context=carry: choose one of input, block"),
        ({"model.context": "block"}, "a static convolution looks at no context"),
        ({"model.shortcut": "none"}, "--config.model.shortcut=none: choose one of static, conv."),
        ({"auxiliary.weight": -1.0}, "--config.auxiliary.weight=-1.0: choose 0 or more."),
    ],
)
def test_what_does_not_exist_is_answered_with_what_does(changes, says):
    config = base.get_config()
    with config.unlocked():
        for path, value in changes.items():
            section, _, field = path.partition(".")
            if field:
                config[section][field] = value
            else:
                config[section] = value
    with pytest.raises(UserError) as error:
        validate(config)
    assert says in str(error.value)


def test_a_field_s_value_that_a_layer_refuses_is_answered_in_its_words(tmp_path):
    config = small(hard, **{"conv.density_weight": 1.0})
    config.conv = {"name": "rotated", "pooling": "least"}
    with pytest.raises(UserError, match="cannot be built: pooling='least' is unknown: write"):
        train(config, tmp_path)
