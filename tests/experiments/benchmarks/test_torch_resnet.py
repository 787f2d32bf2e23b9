"""PyTorch's networks against ours; skipped where torch is not installed."""

import math
from functools import partial

import flax
import jax
import numpy as np
import optax
import pytest

from dyn import layers
from dyn.models import ResNet18
from dyn.models.resnet import BasicBlock, ResNet
from experiments.benchmarks import against_torch

pytestmark = pytest.mark.matrix

torch = pytest.importorskip("torch")

from experiments.benchmarks import torch_resnet  # noqa: E402

TINY = partial(ResNet, stage_sizes=(1,), block=BasicBlock)


def make_torch_network(num_kernels, width):
    """Returns PyTorch's network; with None, the static one."""
    conv = torch_resnet.make_static_conv
    if num_kernels is not None:
        conv = partial(torch_resnet.ODConv, num_kernels=num_kernels)
    return torch_resnet.ResNet18(conv, width)


def make_our_network(num_kernels, width):
    conv = (
        layers.Conv
        if num_kernels is None
        else partial(layers.ODConv, num_kernels=num_kernels, attention_norm="batch")
    )
    return ResNet18(num_classes=1000, width=width, conv=conv)


def copy_parameters(variables, network):
    """Copies our parameters and statistics into a PyTorch network that has the same names."""
    flat = flax.traverse_util.flatten_dict(variables)
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    state = network.state_dict()
    left = {name for name in state if not name.endswith("num_batches_tracked")}
    for (collection, *path, leaf), value in flat.items():
        if collection not in ("params", "batch_stats"):
            continue
        # Outputs are the last axis of ours, and the first of torch's.
        axes = {2: (1, 0), 4: (3, 2, 0, 1), 5: (0, 4, 3, 1, 2)}.get(value.ndim, (0,))
        last = names.get(leaf, "kernel" if value.ndim == 5 else "weight")
        name = ".".join([*path, last])
        with torch.no_grad():
            state[name].copy_(torch.from_numpy(np.array(value.transpose(axes))))
        left.remove(name)
    assert not left


@pytest.mark.parametrize("num_kernels", [None, 1, 4])
def test_same_numbers(num_kernels, rng):
    functional = torch.nn.functional
    theirs, expected = (make_torch_network(num_kernels, 4).double() for _ in range(2))
    ours = make_our_network(num_kernels, 4)
    pictures, labels = rng.standard_normal((3, 40, 40, 3)), rng.integers(0, 1000, 3)
    x = torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())

    def loss(params, rest):
        logits, _ = ours.apply(
            {"params": params, **rest}, pictures, train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), logits

    variables = jax.jit(ours.init)(jax.random.key(0), np.float32(pictures))
    # Replaces the zeros and ones of norms and biases, so that every parameter matters.
    variables = jax.tree.map(lambda v: np.float64(v) + 0.1 * rng.random(v.shape), variables)
    rest = {"batch_stats": variables["batch_stats"]}  # the temperature is 1 if there is none
    copy_parameters(variables, theirs)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        logits = jax.jit(ours.apply)({"params": variables["params"], **rest}, pictures)
        gradient = jax.jit(jax.grad(loss, has_aux=True))
        gradients, train_logits = gradient(variables["params"], rest)
    copy_parameters({"params": gradients, **rest}, expected)

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


def test_benchmark_against_torch(command, read_results, monkeypatch):
    monkeypatch.setattr(against_torch, "ENVIRONMENT", {})
    monkeypatch.setattr(against_torch, "ResNet18", TINY)
    code, out, _ = command(
        against_torch, "--quick", "--size=32", "--batch=2", "--width=4", "--runs=2"
    )
    assert code == 0
    found = read_results("against_torch-32")
    assert found["keep_memory"] is False and "torch" in found["machine"]["versions"]
    assert list(found["rows"]) == ["static", "ODConv, K = 1"]
    for name, row in found["rows"].items():
        assert set(row) == {"parameters", "torch_milliseconds", "milliseconds", "ratio"}
        assert all(math.isfinite(value) and value > 0 for value in row.values())
        assert any(line.startswith(name) for line in out.splitlines())
