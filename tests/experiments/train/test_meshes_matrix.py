"""The compiled functions of a run on meshes of every type of axis: automatic, explicit and both."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from products import thin_out
from small_runs import assert_near_run, change, interrupted_before, small

from experiments.configs import (
    base,
    dr_acgan,
    hard,
    net2,
    odconv,
    soundscape_autoencoder,
    species_multilabel,
)
from experiments.load import load
from experiments.tasks import make_task
from experiments.train.loop import train
from experiments.train.optimizer import StepCounts
from experiments.train.program import compile_program
from experiments.train.sharding import AXIS

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("compiled_once")]

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
BATCH, CLASSES = 16, 3
PICTURES = {"model.depth": 6, "model.width": 4, "model.dropout": 0.2, "mixing.label_smoothing": 0.1}
MIXING = {"mixing.mixup": 0.2, "mixing.cutmix": 1.0}
SOUNDS = {"audio.picture": "linear", "audio.height": 16, "audio.width": 16}
# By name: a config and changes of it. Adam would make much of the rounding of gradients that are almost zero.
RUNS = {
    "classification": (base, "digits,smoke", {**PICTURES, **MIXING}),
    "microbatches of sharded parameters": (
        odconv,
        "digits,smoke",
        {
            **PICTURES,
            "model.hidden": 1024,
            "accumulate": 2,
            "shard_parameters": True,
            "average": 0.9,
            "optimizer.clip": 1.0,
            "optimizer.weight_decay": 0.1,
        },
    ),
    "gates and a loss scale": (
        hard,
        "digits,smoke",
        {**PICTURES, "loss_scale.start": 1024.0, "loss_scale.grow_every": 2},
    ),
    "stages": (base, "digits,smoke", {**PICTURES, "stages.head_epochs": 1, "init_from": "RUN"}),
    "series": (net2, "ucr,name=Toy,smoke", {}),
    "tagging": (species_multilabel, "digits,smoke", {**PICTURES, **MIXING}),
    "fcn": (odconv, "mask_folder,smoke", {**PICTURES, "head": {"name": "fcn"}}),
    "deeplabv3plus": (
        base,
        "mask_folder,smoke",
        {**PICTURES, "head": {"name": "deeplabv3plus", "features": 8}},
    ),
    "acgan": (
        dr_acgan,
        "audio,smoke",
        {**SOUNDS, "gan.widths": (8, 4, 4, 4), "gan.diff_augment": True},
    ),
    "reconstruction": (
        soundscape_autoencoder,
        "audio,smoke",
        {**SOUNDS, "autoencoder.widths": (4, 4, 4, 6)},
    ),
}


def make_mesh(*axis_types, devices=4):
    """A mesh of one axis `data`, or of two devices along `data` and the others along `model`."""
    shape, names = (
        ((devices,), (AXIS,)) if len(axis_types) == 1 else ((2, devices // 2), (AXIS, "model"))
    )
    return jax.make_mesh(shape, names, axis_types=axis_types, devices=jax.devices()[:devices])


def make_config(name):
    file, argument, changes = RUNS[name]
    sgd = {"optimizer.name": "sgd", "optimizer.learning_rate": 0.05, "batch_size": BATCH}
    return change(file.get_config(argument), {**sgd, **changes})


def draw_examples(config, seed=0):
    """A batch of random examples, as the config's task takes them, with a mask."""
    rng = np.random.default_rng(seed)
    shape = (24, 1) if "series" in config else (16, 16, 3 if "head" in config else 1)
    label = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    inputs = rng.uniform(-1, 1, (BATCH, *shape)) + label.reshape(-1, *[1] * len(shape)) / 4
    batch = {"inputs": inputs.astype(np.float32), "label": label}
    if config.task == "tagging":
        batch["label"] = rng.choice([0.0, 1.0, np.nan], (BATCH, CLASSES)).astype(np.float32)
    if config.task == "segmentation":
        batch["label"] = rng.choice([0, 1, 2, 255], (BATCH, 16, 16)).astype(np.int32)
        batch["geometry"] = np.tile(np.int32([16, 16, 16, 16]), (BATCH, 1))
    return {**batch, "mask": (np.arange(BATCH) < BATCH - 3).astype(np.float32)}


def in_training(batch):
    return {name: batch[name] for name in ("inputs", "label")}


def compile_for(name, mesh):
    config = make_config(name)
    evaluated = {key: value[0] for key, value in draw_examples(config).items() if key != "mask"}
    steps = StepCounts(per_epoch=2, total=8, annealing=4, auxiliary_ramp=2, head_only=1)
    steps = steps if "stages" in name else StepCounts(2, 8, 4, 2)
    trained = in_training(evaluated)
    return compile_program(config, make_task(config), CLASSES, steps, trained, evaluated, mesh)


def run(name, mesh):
    """Two steps of training, an evaluation and an inspection: everything that they return, on the host."""
    config, program = make_config(name), compile_for(name, mesh)
    state, logged = program.create_state(0), []
    for seed in range(2):
        batch = in_training(draw_examples(config, seed))
        state, metrics = program.train_step(state, program.shard_batch(batch))
        logged.append(metrics)
    batch = program.shard_batch(draw_examples(config, 2))
    state = state.replace(plateau=program.update_plateau(state.plateau, 1.0))
    sums = program.eval_step(state.eval_variables, batch)
    inspected = program.inspect_step(state.eval_variables, batch)
    for leaf in jax.tree.leaves((state, logged, sums, inspected)):
        assert leaf.sharding.mesh == mesh
    assert not state.failed
    state = state.replace(rng=jax.random.key_data(state.rng))
    return jax.device_get((state, logged, sums, inspected))


@functools.cache
def expected_of(name):
    return run(name, make_mesh(AUTO))


def assert_close(ours, theirs, rtol=1e-5, atol=1e-6):
    ours, theirs = (jax.tree_util.tree_leaves_with_path(tree) for tree in (ours, theirs))
    for (path, mine), (_, other) in zip(ours, theirs, strict=True):
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(np.float64(mine), np.float64(other), rtol, atol, err_msg=where)


# The others compile for minutes.
QUICK = ("microbatches of sharded parameters", "fcn", "reconstruction")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in RUNS]
)
def test_explicit_axes_compute_what_automatic_ones_do(name):
    assert_close(run(name, make_mesh(EXPLICIT)), expected_of(name))


@pytest.mark.parametrize(
    "types",
    [(EXPLICIT, AUTO), (AUTO, EXPLICIT), (EXPLICIT, EXPLICIT), (AUTO, AUTO)],
    ids=lambda types: "-".join(one.name for one in types),
)
@pytest.mark.long
@pytest.mark.parametrize("name", ["microbatches of sharded parameters", "tagging"])
def test_batches_are_split_over_the_data_axis_of_any_mesh(name, types):
    assert_close(run(name, make_mesh(*types)), expected_of(name), 1e-4, 1e-5)


@pytest.mark.parametrize("devices", thin_out([2, 1], step=2))
def test_explicit_axes_of_fewer_devices(devices):
    name = "microbatches of sharded parameters"
    mesh = make_mesh(EXPLICIT, devices=devices)
    assert_close(run(name, mesh), expected_of(name), 1e-4, 1e-5)


LOOP = {"shard_parameters": True, "optimizer.name": "sgd", "optimizer.learning_rate": 0.01}


@pytest.mark.parametrize("types", thin_out([(EXPLICIT, AUTO), (AUTO, EXPLICIT)], step=2))
def test_a_run_on_one_type_of_axes_continues_on_the_other(tmp_path, types):
    config = small(odconv, **LOOP)
    train(config, tmp_path / "whole")
    first, then = map(make_mesh, types)
    with jax.set_mesh(first), interrupted_before(7):
        train(config, tmp_path / "run")
    with jax.set_mesh(then):
        train(config, tmp_path / "run")
    assert_near_run(tmp_path / "run", tmp_path / "whole")
    pictures = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    expected = load(tmp_path / "whole")(pictures)
    with jax.set_mesh(make_mesh(EXPLICIT)):
        np.testing.assert_allclose(load(tmp_path / "whole")(pictures), expected, 1e-5)


def test_a_run_on_explicit_axes_starts_from_another(tmp_path):
    train(small(base, **LOOP), tmp_path / "static")
    warm = small(odconv, **LOOP, init_from=str(tmp_path / "static"))
    train(warm, tmp_path / "automatic")
    with jax.set_mesh(make_mesh(EXPLICIT)):
        train(warm, tmp_path / "explicit")
    assert_near_run(tmp_path / "explicit", tmp_path / "automatic")
