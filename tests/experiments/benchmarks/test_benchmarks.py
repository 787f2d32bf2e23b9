import sys
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from dyn.diagnostics import count_parameters
from dyn.models.resnet import BasicBlock, ResNet
from experiments.benchmarks import (
    against_torch,
    flax_resnet,
    input,
    lowerings,
    networks,
    train_step,
)
from experiments.core import timing

TINY = partial(ResNet, stage_sizes=(1,), block=BasicBlock)


@pytest.mark.parametrize(
    ("module", "words", "fragment"),
    [
        (train_step, ["--sise=64"], "--size"),
        (train_step, ["--layers=odcnv"], "odconv"),
        (train_step, ["--batch=1"], "batch"),
        (train_step, ["--size=1000000"], "A batch takes"),
        (train_step, ["--out=/proc/nowhere"], "--out=/proc/nowhere"),
        (lowerings, ["--cases=5x5"], "--cases=5x5"),
        (input, ["--sets=digit"], "digits"),
    ],
)
def test_mistakes(command, module, words, fragment):
    code, _, err = command(module, *words)
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and fragment in err


def test_missing_torch(command, monkeypatch):
    monkeypatch.setattr(against_torch, "ENVIRONMENT", {})
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = command(against_torch)
    assert code == 2 and "pip install torch" in err


def test_steps_take_turns_after_a_warm_up():
    calls = []
    steps = {name: partial(calls.append, name) for name in ("a", "b")}
    seconds = timing.time_alternately(steps, 3)
    assert calls == ["a", "b"] * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert all(value >= 0 for values in seconds.values() for value in values)


def test_ratio_is_the_median_of_ratios():
    # The ratio of the medians would be 4 / 3.
    assert timing.compute_ratio([1.0, 4.0, 9.0], [2.0, 4.0, 3.0]) == 1.0
    with pytest.raises(ValueError):
        timing.compute_ratio([1.0, 2.0], [1.0])


@pytest.mark.matrix
def test_train_step(command, read_results, monkeypatch):
    tiny_flax = partial(flax_resnet.FlaxResNet, stage_sizes=(1,))
    monkeypatch.setattr(networks, "ResNet18", TINY)
    monkeypatch.setattr(networks, "make_flax_resnet", lambda depth, **fields: tiny_flax(**fields))
    words = ["--size=8", "--batch=2", "--width=4", "--runs=2", "--layers=odconv_k1"]
    code, out, _ = command(train_step, *words)
    assert code == 0
    results = read_results("train_step-8")
    assert {"size", "batch", "network", "width", "dtype", "runs", "machine"} < set(results)
    assert {"platform", "device", "cores", "cpu", "versions"} < set(results["machine"])
    assert list(results["rows"]) == ["flax", "odconv_k1"]
    for name, row in results["rows"].items():
        assert all(value > 0 for value in row.values())
        assert any(line.startswith(name) for line in out.splitlines())
    assert results["rows"]["flax"]["ratio"] == 1.0


@pytest.mark.matrix
@pytest.mark.parametrize("name", networks.MOBILE)
def test_mobile_networks_of_flax_are_ours(name):
    rows = networks.make_mobile_networks(name)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def shapes(row):
        model = rows[row](num_classes=5, width=16, dtype=jnp.float32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), x)
        return jax.tree.map(lambda leaf: leaf.shape, shapes["params"])

    assert shapes("flax") == shapes("Conv")


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_689_512), (50, 25_557_032)])
def test_flax_resnet_has_our_number_of_parameters(depth, parameters):
    network = flax_resnet.make_flax_resnet(depth)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), x)
    assert count_parameters(variables["params"]) == parameters


def test_first_batches_do_not_count(monkeypatch):
    now = 0.0

    def work(batches):
        nonlocal now
        now += next(batches)

    monkeypatch.setattr(input.time, "perf_counter", lambda: now)
    batches = iter([100.0, 100.0, 3.0, 3.0, 3.0, 3.0])
    assert input.measure_batch_seconds(work, batches, 2, 10.0) == 3.0
