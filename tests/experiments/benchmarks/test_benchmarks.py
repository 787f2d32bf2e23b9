import json
import math
import sys
from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import flags
from absl.testing import flagsaver

from dyn import layers
from dyn.diagnostics import count_parameters
from dyn.models import ResNet18
from dyn.models.resnet import BasicBlock, ResNet
from experiments.benchmarks import (
    against_torch,
    flax_resnet,
    input,
    lowerings,
    synthetic,
    timing,
    train_step,
)
from experiments.configs import base
from experiments.core import cli
from experiments.tasks import backbone, make_task

TINY = partial(ResNet, stage_sizes=(1,), block=BasicBlock)
MACHINE = {"platform", "device", "devices", "cores", "cpu", "load_average", "glibc_tunables"}
MACHINE |= {"system", "versions"}


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Returns a function that runs a benchmark in this process: (exit code, output, errors)."""

    def run(module, *words):
        words = [module.__name__, f"--out={tmp_path}", *words]
        # The flags of a process are global; this forgets their values.
        with flagsaver.flagsaver(), jax.numpy_dtype_promotion("standard"):
            code = cli.run(module.main, words, module.__doc__)
        return code, *capsys.readouterr()

    yield run
    flags.FLAGS.mark_as_parsed()


@pytest.fixture
def written(tmp_path):
    """Returns a function that reads what a benchmark has written, and sees that there is a plot beside it."""

    def read(name):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        return json.loads((tmp_path / f"{name}.json").read_text())

    return read


@pytest.mark.parametrize(
    ("module", "words", "says"),
    [
        (train_step, ["--sise=64"], "There is no flag --sise; did you mean '--size'?"),
        (train_step, ["--layers=odcnv"], "there is no row odcnv; did you mean 'odconv'?"),
        (train_step, ["64"], "'64' is not a flag; flags are written --name=value."),
        (train_step, ["--batch=1"], "batch"),
        (train_step, ["--out=/proc/nowhere"], "--out=/proc/nowhere cannot be used"),
        (lowerings, ["--cases=5x5"], "--cases=5x5: no case has such a name."),
        (input, ["--set=digits"], "There is no flag --set; did you mean '--sets'?"),
        (input, ["--sets=digit"], "there is no data set digit; did you mean 'digits'?"),
        (against_torch, ["--quik"], "There is no flag --quik; did you mean '--quick'?"),
    ],
)
def test_a_mistake_is_answered_in_one_line(command, module, words, says):
    code, out, err = command(module, *words)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and says in err


def test_a_batch_that_fits_no_device_is_answered_before_it_is_made(command):
    code, _, err = command(train_step, "--size=1000000")
    assert code == 2 and err.startswith("error: A batch takes ") and err.count("\n") == 1
    assert err.endswith("choose a smaller --size or --batch.\n")


def test_steps_take_turns_and_the_first_round_does_not_count():
    calls = []
    steps = {name: partial(calls.append, name) for name in ("a", "b")}
    seconds = timing.alternate(steps, 3)
    assert calls == ["a", "b"] * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert all(value >= 0 for values in seconds.values() for value in values)


def test_a_ratio_is_the_median_of_the_pairs():
    # The ratio of the medians would be 4 / 3.
    assert timing.ratio([1.0, 4.0, 9.0], [2.0, 4.0, 3.0]) == 1.0
    with pytest.raises(ValueError):
        timing.ratio([1.0, 2.0], [1.0])


def test_training_steps_are_timed_against_the_static_network(command, written, monkeypatch):
    monkeypatch.setattr(train_step, "ResNet18", TINY)
    toy = ["--size=8", "--batch=2", "--width=4", "--runs=2"]
    code, out, _ = command(train_step, *toy, "--layers=odconv_k1")
    assert code == 0
    found = written("train_step-8")
    assert set(found) == {"size", "batch", "depth", "width", "dtype", "runs", "machine", "rows"}
    assert set(found["machine"]) == MACHINE
    assert list(found["rows"]) == ["flax", "odconv_k1"]
    for name, row in found["rows"].items():
        expected = {"parameters", "milliseconds", "ratio", "temporary_bytes", "compile_seconds"}
        assert set(row) == expected and all(value > 0 for value in row.values())
        assert any(line.startswith(name) for line in out.splitlines())
    assert found["rows"]["flax"]["ratio"] == 1.0


def test_the_network_of_flax_s_own_parts_has_as_many_parameters_as_ours():
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    for depth, parameters in ((18, 11_689_512), (50, 25_557_032)):
        network = flax_resnet.flax_resnet(depth)
        variables = jax.eval_shape(network.init, jax.random.key(0), x)
        assert count_parameters(variables["params"]) == parameters


def test_lowerings_are_timed_and_prices_fitted(command, written):
    code, out, _ = command(lowerings, "--cases=32-32", "--runs=1", "--fit")
    assert code == 0
    found = written("lowerings")["cases"]
    assert list(found) == ["32 x 4x4, 32-32, k3, K4"]
    (case,) = found.values()
    assert set(case) == {"forward", "training", "auto", "regret"}
    assert set(case["training"]) == {"taps", "patches", "shared", "samples"}
    assert case["regret"]["training"] == pytest.approx(
        case["training"][case["auto"]] / min(case["training"].values())
    )
    assert '"samples": Kinds(' in out


def test_the_grid_has_every_kind_of_layer():
    cases = lowerings.grid()
    assert len(set(map(str, cases))) == len(cases) >= 24
    assert {c.kernels for c in cases} == {0, 1, 4, 8}
    assert {1, 8, 32, 128} <= {c.batch for c in cases}
    assert {len(c.spatial) for c in cases} == {1, 2} and {c.stride for c in cases} == {1, 2}
    assert any(c.groups == c.inputs for c in cases) and any(c.size == 1 for c in cases)


@pytest.mark.parametrize("name", synthetic.SETS)
def test_a_made_up_data_set_is_read_like_the_real_one(name, tmp_path):
    config, dataset, _ = input.load(name, tmp_path / name, 60)
    assert not dataset.skipped
    transform = make_task(config).make_transform(train=True)
    source = dataset.splits["train"]
    assert len(source) > 10
    example = transform(source[0], np.random.default_rng(0))
    side = config.image_size
    assert example["inputs"].shape == ((side, side, 3) if side else dataset.shape)
    assert np.isfinite(example["inputs"]).all() and example["inputs"].std() > 0.1


def test_input_is_measured_against_a_training_step(command, written, monkeypatch):
    configure = base.get_config
    monkeypatch.setattr(base, "get_config", lambda name: configure(f"{name},smoke"))
    monkeypatch.setitem(backbone.RESNETS, 10, TINY)
    code, _, _ = command(input, "--sets=digits", "--runs=2", "--quick")
    assert code == 0
    found = written("input")
    assert set(found) == {"runs", "goal", "machine", "rows"} and set(found["machine"]) == MACHINE
    assert list(found["rows"]) == ["digits"]
    row = found["rows"]["digits"]
    rates = {"input_per_second", "training_per_second", "times_a_step", "step_fed"}
    assert set(row) == rates | {
        "preparing_seconds", "examples", "inputs", "batch", "compile_seconds"
    }  # fmt: skip
    assert row["inputs"] == [8, 8, 1] and row["batch"] == 16 and row["examples"] == 64
    assert all(row[rate] > 0 for rate in rates)


def test_a_rate_leaves_out_the_first_batches(monkeypatch):
    now = 0.0

    def work(batches):
        nonlocal now
        now += next(batches)

    monkeypatch.setattr(input.time, "perf_counter", lambda: now)
    assert input.steady(work, iter([100.0, 100.0, 3.0, 3.0, 3.0, 3.0]), 2, 10.0) == 3.0


def test_without_torch_one_line_says_how_to_get_it(command, monkeypatch):
    monkeypatch.setattr(against_torch, "SHARING", {})
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, err = command(against_torch)
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and "needs torch" in err and "pip install torch" in err


def torch_network(num_kernels, width):
    """PyTorch's network; with None, the static one."""
    from experiments.benchmarks import torch_resnet

    conv = torch_resnet.static_conv
    if num_kernels is not None:
        conv = partial(torch_resnet.ODConv, num_kernels=num_kernels)
    return torch_resnet.ResNet18(conv, width)


def our_network(num_kernels, width):
    conv = layers.Conv if num_kernels is None else partial(layers.ODConv, num_kernels=num_kernels)
    return ResNet18(num_classes=1000, width=width, conv=conv)


def copied(variables, network):
    """Copies our parameters and statistics into a network of torch's that has the same names."""
    import torch

    flat = flax.traverse_util.flatten_dict(variables)
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    state = network.state_dict()
    left = {name for name in state if not name.endswith("num_batches_tracked")}
    for (collection, *path, leaf), value in flat.items():
        if collection not in ("params", "batch_stats"):
            continue
        # Ours have the outputs last, torch's first.
        axes = {2: (1, 0), 4: (3, 2, 0, 1), 5: (0, 4, 3, 1, 2)}.get(value.ndim, (0,))
        last = names.get(leaf, "kernel" if value.ndim == 5 else "weight")
        name = ".".join([*path, last])
        with torch.no_grad():
            state[name].copy_(torch.from_numpy(np.array(value.transpose(axes))))
        left.remove(name)
    assert not left


KERNELS = pytest.mark.parametrize("num_kernels", [None, 1, 4])


@KERNELS
def test_networks_of_torch_have_our_number_of_parameters(num_kernels):
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        network = torch_network(num_kernels, 64)
    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    ours = jax.eval_shape(our_network(num_kernels, 64).init, jax.random.key(0), x)
    count = sum(values.numel() for values in network.parameters())
    assert count == count_parameters(ours["params"])
    assert count == {None: 11_689_512, 1: 11_943_944, 4: 44_901_640}[num_kernels]


@KERNELS
def test_networks_of_torch_compute_our_numbers(num_kernels, rng):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    theirs, expected = (torch_network(num_kernels, 4).double() for _ in range(2))
    ours = our_network(num_kernels, 4)
    pictures, labels = rng.standard_normal((3, 40, 40, 3)), rng.integers(0, 1000, 3)
    x = torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())

    def loss(params, rest):
        logits, _ = ours.apply(
            {"params": params, **rest}, pictures, train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), logits

    variables = jax.jit(ours.init)(jax.random.key(0), np.float32(pictures))
    # Other numbers than the zeros and ones of norms and biases: everything is to make a difference.
    variables = jax.tree.map(lambda v: np.float64(v) + 0.1 * rng.random(v.shape), variables)
    rest = {"batch_stats": variables["batch_stats"]}  # without a temperature it is 1
    copied(variables, theirs)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        logits = jax.jit(ours.apply)({"params": variables["params"], **rest}, pictures)
        gradient = jax.jit(jax.grad(loss, has_aux=True))
        gradients, train_logits = gradient(variables["params"], rest)
    copied({"params": gradients, **rest}, expected)

    found = theirs.eval()(x)
    np.testing.assert_allclose(found.detach().numpy(), logits, rtol=1e-9, atol=1e-9)
    found = theirs.train()(x)
    np.testing.assert_allclose(found.detach().numpy(), train_logits, rtol=1e-9, atol=1e-9)
    functional.cross_entropy(found, torch.from_numpy(labels)).backward()
    for (name, mine), gradient in zip(
        theirs.named_parameters(), expected.parameters(), strict=True
    ):
        gradient = gradient.detach().numpy()
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(mine.grad.numpy(), gradient, atol=1e-7 * scale, err_msg=name)


def test_torch_and_we_take_turns(command, written, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(against_torch, "SHARING", {})
    monkeypatch.setattr(against_torch, "ResNet18", TINY)
    code, out, _ = command(
        against_torch, "--quick", "--size=32", "--batch=2", "--width=4", "--runs=2"
    )
    assert code == 0
    found = written("against_torch-32")
    settings = {"size", "batch", "width", "dtype", "runs", "keep_memory"}
    assert set(found) == settings | {"machine", "rows"} and found["keep_memory"] is False
    assert set(found["machine"]) == MACHINE and "torch" in found["machine"]["versions"]
    assert list(found["rows"]) == ["static", "ODConv, K = 1"]
    for name, row in found["rows"].items():
        assert set(row) == {"parameters", "torch_milliseconds", "milliseconds", "ratio"}
        assert all(math.isfinite(value) and value > 0 for value in row.values())
        assert any(line.startswith(name) for line in out.splitlines())
