"""Parameters sharded over the devices, and batches cut into microbatches."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from small_runs import change

from dyn.diagnostics import count_parameters
from experiments.configs import common
from experiments.runs.checkpoints import Checkpoints
from experiments.tasks import make_task
from experiments.train.optimizer import StepCounts
from experiments.train.program import compile_program
from experiments.train.sharding import shardings_of
from experiments.train.step import cut_batch

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("compiled_once")]

DEVICES = 4
BATCH = 32
SERIES, PICTURES = (64, 4), (64, 64, 3)


def mesh_of(devices):
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


# A network for series, of many parameters and without batch norm: its loss is a mean over examples. Adam
# would make much of the rounding of gradients that are almost zero.
SMALL = {
    "model.network": "net2",
    "model.dropout": 0.0,
    "series.features": 32,
    "series.hidden": 512,
    "conv": {"name": "dyconv", "num_kernels": 4, "attention_norm": "layer"},
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.01,
    "average": 0.9,
    "batch_size": BATCH,
}
# A ResNet of few channels: what is large is its activations.
RESNET = {"model.depth": 10, "model.width": 8, "batch_size": BATCH}


def build(shape, mesh=None, **changes):
    """A compiled program for random examples of a shape."""
    config = change(common.get_config("digits"), changes)
    example = {"inputs": np.zeros(shape, np.float32), "label": np.int32(0)}
    steps = StepCounts(per_epoch=10, total=100, annealing=20, auxiliary_ramp=0)
    return compile_program(config, make_task(config), 3, steps, example, example, mesh)


@functools.cache
def small(accumulate=1, shard_parameters=False, devices=DEVICES):
    changes = {"accumulate": accumulate, "shard_parameters": shard_parameters}
    return build(SERIES, mesh_of(devices), **SMALL, **changes)


def batch(step, shape=SERIES):
    rng = np.random.default_rng(step)
    label = rng.integers(0, 3, BATCH).astype(np.int32)
    inputs = rng.standard_normal((BATCH, *shape)) + label.reshape(-1, *[1] * len(shape))
    return {"inputs": inputs.astype(np.float32), "label": label}


def steps(program, state, first, last):
    """The state after some steps, and the metrics of the last."""
    for step in range(first, last):
        state, metrics = program.train_step(state, program.shard_batch(batch(step)))
    return state, {name: float(value) for name, value in metrics.items()}


def numbers(state):
    """All arrays of a state on the host, by name."""
    leaves = jax.tree_util.tree_leaves_with_path(state.replace(rng=jax.random.key_data(state.rng)))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_close(state, expected):
    ours, theirs = numbers(state), numbers(expected)
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


def collectives(text, *kinds):
    """The lines of a compiled text that are one of these operations."""
    operation = re.compile(rf" ({'|'.join(kinds)})(-start)?\(")
    return list(filter(operation.search, text.splitlines()))


# ---------------------------------------------------------------- sharded parameters


def test_a_compiled_step_holds_its_share_of_the_state_and_fetches_parameters_once():
    whole, sharded = (
        small(shard_parameters=shard).train_step.memory_analysis() for shard in (False, True)
    )
    examples = BATCH // DEVICES * (np.prod(SERIES) + 1) * 4
    held = [memory.argument_size_in_bytes - examples for memory in (whole, sharded)]
    assert 1 / DEVICES < held[1] / held[0] < 1.04 / DEVICES
    parameters = 4 * count_parameters(small().state_shape.params)
    assert parameters > 1e6
    assert sharded.temp_size_in_bytes - whole.temp_size_in_bytes < 1.02 * parameters


def test_parameters_are_fetched_and_examples_are_not():
    built = small(shard_parameters=True)
    text = built.train_step.as_text()
    assert not collectives(text, "all-to-all", "collective-permute")
    fetched = [
        np.prod([int(length) for length in shape.split(",")])
        for line in collectives(text, "all-gather")
        for shape in re.findall(r"f32\[([\d,]+)\]", line.split(" all-gather")[0])
    ]
    cut = [
        leaf.size for leaf in jax.tree.leaves(built.state_shape.params) if leaf.sharding.spec != P()
    ]
    assert sorted(fetched) == sorted(cut) and cut
    assert not collectives(small().train_step.as_text(), "all-gather")
    conv = {"name": "odconv", "num_kernels": 4}
    network = build(PICTURES, **RESNET | {"model.width": 16}, conv=conv, shard_parameters=True)
    assert not collectives(network.train_step.as_text(), "all-to-all", "collective-permute")


@pytest.mark.parametrize(
    ("begun", "continued"),
    [
        (dict(shard_parameters=False), dict(shard_parameters=True)),
        (dict(shard_parameters=False), dict(shard_parameters=True, devices=2)),
        (dict(shard_parameters=True), dict(shard_parameters=False)),
        (dict(shard_parameters=True), dict(shard_parameters=True, devices=2)),
    ],
    ids=["to shards", "to shards on half the devices", "from shards", "to larger shards"],
)
def test_a_run_continues_however_its_parameters_lie(begun, continued, tmp_path):
    expected, metrics = steps(small(), small().create_state(0), 0, 4)
    first, second = small(**begun), small(**continued)
    state, _ = steps(first, first.create_state(0), 0, 2)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, state, {})
    step, state, _ = checkpoints.restore_latest(second.state_shape)
    checkpoints.close()
    for leaf, like in zip(jax.tree.leaves(state), jax.tree.leaves(second.state_shape), strict=True):
        assert leaf.sharding == like.sharding
    state, found = steps(second, state, step, 4)
    assert found == pytest.approx(metrics, rel=1e-5)
    assert_close(state, expected)
    evaluated = {**batch(9), "mask": np.ones(BATCH, np.float32)}
    ours = second.eval_step(state.eval_variables, second.shard_batch(evaluated))
    theirs = small().eval_step(expected.eval_variables, small().shard_batch(evaluated))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), ours, theirs)
    for leaf in jax.tree.leaves(second.replicate(state.params)):
        assert leaf.is_fully_replicated


# ---------------------------------------------------------------- microbatches


@pytest.mark.parametrize("shard_parameters", [False, True], ids=["whole", "sharded"])
def test_a_step_of_microbatches_is_the_step_of_the_batch(shard_parameters):
    parts = small(accumulate=4, shard_parameters=shard_parameters)
    (expected, metrics), (state, ours) = (
        steps(built, built.create_state(0), 0, 3) for built in (small(), parts)
    )
    assert int(state.step) == 3
    assert ours == pytest.approx(metrics, rel=1e-5)
    assert_close(state, expected)
    text = parts.train_step.as_text()
    assert not collectives(text, "all-to-all", "collective-permute")
    assert shard_parameters or not collectives(text, "all-gather")
    # The sum that the loop carries is sharded like the parameters. XLA may make small loops of its own.
    loops = [line.split(" while(")[0] for line in text.splitlines() if " while(" in line]
    carried = max(loops, key=len)
    kernel = parts.state_shape.params["hidden"]["kernel"]
    assert kernel.shape == (512, 512)
    assert ("f32[128,512]" in carried) == (kernel.sharding.spec == P("data")) == shard_parameters


def test_every_device_takes_its_own_examples_in_every_microbatch():
    x = jax.device_put(np.arange(16), NamedSharding(mesh_of(DEVICES), P("data")))
    cut = jax.jit(lambda x: cut_batch({"x": x}, 2)["x"])
    np.testing.assert_array_equal(cut(x), [range(0, 16, 2), range(1, 16, 2)])
    for before, after in zip(x.addressable_shards, cut(x).addressable_shards, strict=True):
        assert before.device == after.device
        assert sorted(before.data) == sorted(after.data.ravel())


def test_memory_falls_with_the_number_of_microbatches_and_work_stays():
    whole, parts = (build(PICTURES, **RESNET, accumulate=number) for number in (1, 4))
    held = [built.train_step.memory_analysis().temp_size_in_bytes for built in (whole, parts)]
    assert held[1] < 0.4 * held[0]
    flops = [built.cost["xla_flops_per_step"] for built in (whole, parts)]
    assert flops[1] == pytest.approx(flops[0], rel=0.02)


# ---------------------------------------------------------------- batch norm


def test_a_step_with_batch_norm_is_the_same_over_four_devices_and_one():
    """Statistics over shards alone, of 8 examples, would differ."""
    changes = {**RESNET, "optimizer.name": "sgd", "optimizer.learning_rate": 0.125}
    four, one = (build((8, 8, 1), mesh_of(devices), **changes) for devices in (4, 1))
    state = one.create_state(0)
    for step in range(3):
        examples = batch(step, (8, 8, 1))
        # A copy: a step gives its arguments' memory away.
        same = jax.device_put(jax.tree.map(jnp.copy, state), shardings_of(four.state_shape))
        state, metrics = one.train_step(state, one.shard_batch(examples))
        other, others = four.train_step(same, four.shard_batch(examples))
        np.testing.assert_allclose(others["loss"], metrics["loss"], rtol=0, atol=1e-6)
        assert_close(other, state)
