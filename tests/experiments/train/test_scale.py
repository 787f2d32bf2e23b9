"""Parameters dealt out to the devices, and batches that are taken in parts."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments.train.accumulation import accumulate, microbatches
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dyn.diagnostics import count_parameters
from experiments.configs import base, common, odconv
from experiments.core.errors import UserError
from experiments.data import Dataset
from experiments.runs.checkpoints import Checkpoints, with_sharding
from experiments.tasks import make_task
from experiments.train import loop as loop
from experiments.train import program, sharding
from experiments.train.optimizer import Lengths, make_optimizer
from experiments.train.validate import validate

DEVICES = 4
BATCH = 32
SERIES, PICTURES = (64, 4), (64, 64, 3)


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """Optax does not pass the strict one."""
    with jax.numpy_dtype_promotion("standard"):
        yield


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


def config_of(changes):
    config = common.get_config("digits")
    with config.unlocked():
        if "conv" in changes:
            config.conv = changes["conv"]
        config.update_from_flattened_dict({k: v for k, v in changes.items() if k != "conv"})
    return config


def build(shape, **changes):
    """A compiled program for random examples of a shape."""
    config = config_of(changes)
    example = {"inputs": np.zeros(shape, np.float32), "label": np.int32(0)}
    dataset = Dataset("random", {}, ("a", "b", "c"), shape)
    lengths = Lengths(epoch=10, total=100, annealing=20, ramp=0)
    return program.build(config, make_task(config), dataset, lengths, example, example)


@functools.cache
def small(accumulate=1, shard_parameters=False, devices=DEVICES):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "make_mesh", lambda: mesh_of(devices))
        return build(SERIES, **SMALL, accumulate=accumulate, shard_parameters=shard_parameters)


def batch(step):
    rng = np.random.default_rng(step)
    label = rng.integers(0, 3, BATCH).astype(np.int32)
    noise = rng.standard_normal((BATCH, *SERIES))
    return {"inputs": (noise + label[:, None, None]).astype(np.float32), "label": label}


def steps(program, state, first, last):
    """The state after some steps, and the metrics of the last."""
    for step in range(first, last):
        state, metrics = program.train_step(state, program.put(batch(step)))
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
    return [
        line for line in text.splitlines() if re.search(rf" ({'|'.join(kinds)})(-start)?\(", line)
    ]


# ---------------------------------------------------------------- parameters dealt out


def test_an_array_is_cut_along_its_longest_axis_that_the_devices_divide():
    shapes = {
        "kernel": (8, 3, 3, 64, 256),
        "tie": (3, 128, 128),
        "odd longest": (2, 64, 1001),
        "indivisible": (3, 5, 1001),
        "small": (512,),
        "scalar": (),
    }
    placed = sharding.with_shards(
        {name: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for name, shape in shapes.items()},
        mesh_of(DEVICES),
    )
    assert {name: leaf.sharding.spec for name, leaf in placed.items()} == {
        "kernel": P(None, None, None, None, "data"),
        "tie": P(None, "data"),
        "odd longest": P(None, "data"),
        "indivisible": P(),
        "small": P(),
        "scalar": P(),
    }
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in placed.items()} == {
        name: (shape, jnp.bfloat16) for name, shape in shapes.items()
    }


def bytes_on_one(tree):
    """What one device holds of the arrays of a tree."""
    return sum(
        np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=int) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def test_an_odconv_resnet50_of_eight_kernels_lies_on_a_device_in_its_share():
    """Shapes alone: nothing of it is allocated or compiled."""
    config = odconv.get_config("tiny_imagenet")
    config.model.depth, config.conv.num_kernels = 50, 8
    model = make_task(config).make_model(num_classes=1000, spatial_axes=2)
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    moments = jax.eval_shape(make_optimizer(config, lambda step: 1e-3).init, params)
    state, number = (params, moments), count_parameters(params)
    assert number > 170e6
    everywhere = bytes_on_one(with_sharding(state, NamedSharding(mesh_of(DEVICES), P())))
    assert everywhere == pytest.approx(3 * 4 * number, rel=1e-6)
    dealt = bytes_on_one(sharding.with_shards(state, mesh_of(DEVICES)))
    # What stays whole are biases and the scales of norms.
    assert 1 / DEVICES < dealt / everywhere < 1.01 / DEVICES


def test_a_compiled_step_holds_its_share_of_the_state_and_fetches_parameters_once():
    whole, dealt = (small(shard_parameters=shard).train_step for shard in (False, True))
    whole, dealt = whole.memory_analysis(), dealt.memory_analysis()
    examples = BATCH // DEVICES * (np.prod(SERIES) + 1) * 4
    held = [memory.argument_size_in_bytes - examples for memory in (whole, dealt)]
    assert 1 / DEVICES < held[1] / held[0] < 1.04 / DEVICES
    parameters = 4 * count_parameters(small().shape.params)
    assert parameters > 1e6
    assert dealt.temp_size_in_bytes - whole.temp_size_in_bytes < 1.02 * parameters


@pytest.mark.long
def test_the_compiled_step_of_an_odconv_resnet50_of_eight_kernels_holds_its_share():
    conv = {"name": "odconv", "num_kernels": 8}
    changes = {"model.depth": 50, "model.width": 64, "batch_size": BATCH, "conv": conv}
    step = build(PICTURES, **changes, shard_parameters=True)
    number = count_parameters(step.shape.params)
    assert number > 170e6
    held = step.train_step.memory_analysis().argument_size_in_bytes
    assert held < 1.02 * 3 * 4 * number / DEVICES
    assert not collectives(step.train_step.as_text(), "all-to-all", "collective-permute")


def test_parameters_are_fetched_and_examples_are_not():
    built = small(shard_parameters=True)
    text = built.train_step.as_text()
    assert not collectives(text, "all-to-all", "collective-permute")
    fetched = [
        np.prod([int(length) for length in shape.split(",")])
        for line in collectives(text, "all-gather")
        for shape in re.findall(r"f32\[([\d,]+)\]", line.split(" all-gather")[0])
    ]
    cut = [leaf.size for leaf in jax.tree.leaves(built.shape.params) if leaf.sharding.spec != P()]
    assert sorted(fetched) == sorted(cut) and cut
    assert not collectives(small().train_step.as_text(), "all-gather")


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
    expected, metrics = steps(small(), small().create(0), 0, 4)
    first, second = small(**begun), small(**continued)
    state, _ = steps(first, first.create(0), 0, 2)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, state, {})
    step, state, _ = checkpoints.restore_latest(second.shape)
    checkpoints.close()
    for leaf, like in zip(jax.tree.leaves(state), jax.tree.leaves(second.shape), strict=True):
        assert leaf.sharding == like.sharding
    state, found = steps(second, state, step, 4)
    assert found == pytest.approx(metrics, rel=1e-5)
    assert_close(state, expected)
    evaluated = {**batch(9), "mask": np.ones(BATCH, np.float32)}
    ours = second.evaluation_step(state.evaluated, second.put(evaluated))
    theirs = small().evaluation_step(expected.evaluated, small().put(evaluated))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), ours, theirs)
    for leaf in jax.tree.leaves(second.whole(state.params)):
        assert leaf.is_fully_replicated


# ---------------------------------------------------------------- batches in parts


def test_the_accumulated_gradient_is_that_of_the_whole_batch_in_float64(rng):
    """Of least squares, which numpy can differentiate."""
    x, y, w = rng.normal(size=(24, 5)), rng.normal(size=24), rng.normal(size=5)

    def gradient(w, seen, batch, key):
        def loss(w):
            return jnp.mean((batch["x"] @ w - batch["y"]) ** 2)

        value, gradients = jax.value_and_grad(loss)(w)
        return gradients, (
            {"loss": value, "draw": jax.random.uniform(key)},
            0.5 * seen + jnp.sum(batch["y"]),
        )

    def run(number):
        return jax.jit(accumulate, static_argnums=(0, 5))(
            gradient, w, jnp.zeros(()), {"x": x, "y": y}, jax.random.key(0), number
        )

    with jax.enable_x64(True):
        for number in (1, 2, 4, 24):
            gradients, (metrics, seen) = run(number)
            np.testing.assert_allclose(gradients, 2 * x.T @ (x @ w - y) / 24, rtol=1e-12)
            np.testing.assert_allclose(metrics["loss"], np.mean((x @ w - y) ** 2), rtol=1e-12)
            expected = 0.0
            for part in range(number):
                expected = 0.5 * expected + y[part::number].sum()
            np.testing.assert_allclose(seen, expected, rtol=1e-12)
        keys = [jax.random.fold_in(jax.random.key(0), part) for part in range(4)]
        draws = [float(jax.random.uniform(key)) for key in keys]
        assert len(set(draws)) == 4
        np.testing.assert_allclose(run(4)[1][0]["draw"], np.mean(draws), rtol=1e-12)


def test_a_step_in_parts_is_the_step_of_the_whole_batch():
    (expected, metrics), (state, found) = (
        steps(built, built.create(0), 0, 3) for built in (small(), small(accumulate=4))
    )
    assert int(state.step) == 3
    assert found == pytest.approx(metrics, rel=1e-5)
    assert_close(state, expected)


def test_parts_and_dealt_out_parameters_go_together():
    expected, _ = steps(small(), small().create(0), 0, 3)
    both = small(accumulate=4, shard_parameters=True)
    state, _ = steps(both, both.create(0), 0, 3)
    assert_close(state, expected)
    text = both.train_step.as_text()
    assert not collectives(text, "all-to-all", "collective-permute")
    # The sum that the loop carries is dealt out like the parameters.
    [carried] = [line.split(" while(")[0] for line in text.splitlines() if " while(" in line]
    spread = both.shape.params["hidden"]["kernel"]
    assert spread.shape == (512, 512) and spread.sharding.spec == P("data")
    assert "f32[128,512]" in carried


def test_every_device_takes_its_own_examples_in_every_part():
    text = small(accumulate=4).train_step.as_text()
    assert " while(" in text
    assert not collectives(text, "all-gather", "all-to-all", "collective-permute")
    x = jax.device_put(np.arange(16), NamedSharding(mesh_of(DEVICES), P("data")))
    cut = jax.jit(lambda x: microbatches({"x": x}, 2)["x"])
    np.testing.assert_array_equal(cut(x), [range(0, 16, 2), range(1, 16, 2)])
    for before, after in zip(x.addressable_shards, cut(x).addressable_shards, strict=True):
        assert before.device == after.device
        assert sorted(before.data) == sorted(after.data.ravel())
    # The control: parts of neighbours have to be fetched.
    neighbours = jax.jit(
        lambda x: x.reshape(2, -1), out_shardings=NamedSharding(mesh_of(DEVICES), P(None, "data"))
    )
    text = neighbours.lower(x).compile().as_text()
    assert collectives(text, "all-gather", "all-to-all", "collective-permute")


def test_memory_falls_with_the_number_of_parts_and_work_stays():
    whole, parts = (build(PICTURES, **RESNET, accumulate=number) for number in (1, 4))
    held = [built.train_step.memory_analysis().temp_size_in_bytes for built in (whole, parts)]
    assert held[1] < 0.4 * held[0]
    flops = [built.cost["xla_flops_per_step"] for built in (whole, parts)]
    assert flops[1] == pytest.approx(flops[0], rel=0.02)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"batch_size": 24, "accumulate": 4},
            "--config.batch_size=24 does not divide among 4 devices in 4 microbatches "
            "(--config.accumulate); choose a multiple of 16.",
        ),
        ({"batch_size": 6}, "=6 does not divide among 4 devices; choose a multiple of 4."),
        ({"accumulate": 0}, "--config.accumulate=0: choose 1 or more."),
    ],
)
def test_a_batch_that_cannot_be_cut_is_answered(changes, says):
    with pytest.raises(UserError, match=re.escape(says)):
        validate(config_of(changes))
    validate(config_of({"batch_size": 16, "accumulate": 4}))


# ---------------------------------------------------------------- the whole loop


LOOP = {
    "model.width": 4,
    "data.limit": 32,
    "batch_size": 16,
    "epochs": 3,
    "log_every": 1,
    "checkpoint_every": 3,
    "accumulate": 2,
    "shard_parameters": True,
}


class Interrupted(Exception):
    """Stands for anything that ends a run in the middle."""


@pytest.fixture
def run(monkeypatch):
    """Returns a function that trains, and ends before it takes the batch of step `last`."""
    managers, programs, real = [], {}, loop.pipeline.train_batches

    class Recorded(Checkpoints):
        def __init__(self, *args):
            super().__init__(*args)
            managers.append(self)

    monkeypatch.setattr(loop, "Checkpoints", Recorded)

    def train(workdir, last=None, **changes):
        config = base.get_config("digits,smoke")
        config.update_from_flattened_dict({**LOOP, **changes})

        def batches(*args, start_step, **fields):
            for step, batch in enumerate(real(*args, start_step=start_step, **fields), start_step):
                if step == last:
                    raise Interrupted
                yield batch

        monkeypatch.setattr(loop.pipeline, "train_batches", batches)
        try:
            return loop.train(config, workdir, programs)
        finally:
            # A process that ends waits for its writer.
            managers.pop().close()

    return train


def test_a_run_in_parts_of_dealt_out_parameters_continues_bit_for_bit(run, tmp_path):
    expected = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", last=5)
    steps = sorted(int(folder.name) for folder in (tmp_path / "cut" / "checkpoints").iterdir())
    assert steps == [2, 3, 4]
    summary = run(tmp_path / "cut")
    assert summary["params_sha256"] == expected["params_sha256"]
    assert summary["test"] == expected["test"] and summary["best"] == expected["best"]
    rows = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert rows[0] == rows[1]
    # The parameters of another run are dealt out as well.
    with pytest.raises(Interrupted):
        run(tmp_path / "next", last=1, **{"init_from": str(tmp_path / "whole")})
