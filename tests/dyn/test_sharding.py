"""A train step over a sharded batch gathers nothing: no device ever needs another's samples."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from sharded_steps import BATCH, CASES, gathers, layer_gradient, shardings, train_step_text

from dyn.layers import ODConv
from dyn.models import Bottleneck
from dyn.ops import dynamic_conv, explain, lowerings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def on_eight_devices():
    """What a process with eight devices reports."""
    settings = {
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, str(ROOT / "tests/dyn/sharded_steps.py")]
    done = subprocess.run(
        command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("num_kernels", [1, 4])
def test_a_train_step_gathers_nothing(num_kernels):
    text = train_step_text(partial(ODConv, num_kernels=num_kernels))
    assert "all-reduce" in text  # of gradients and statistics: the batch is sharded indeed
    assert not gathers(text)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_no_layer_gathers_anything(name):
    """In training, towards parameters and inputs, with the lowering that the layer takes by itself."""
    text = layer_gradient(name, devices=4).as_text()
    assert "all-reduce" in text
    assert not gathers(text)


@pytest.mark.parametrize("name", CASES)
def test_on_eight_devices_no_layer_gathers_and_work_falls_with_their_number(name, on_eight_devices):
    """A larger input, of more samples than parameters, so that other lowerings are taken too."""
    found = on_eight_devices[name]
    assert found["reduces"] == [4, 8]
    assert not found["gathers"]
    alone, *shares = (found["flops"][str(devices)] for devices in (1, 4, 8))
    assert shares == pytest.approx([alone / 4, alone / 8], rel=0.02)


def test_on_eight_devices_a_train_step_gathers_nothing(on_eight_devices):
    assert on_eight_devices["network"] == {"reduces": True, "gathers": []}


# One block, with a strided convolution and one that is not: enough for one lowering, and quicker.
ONE_BLOCK = (0, 1)


@pytest.mark.parametrize("lowering", ["taps", "patches", "shared"])
def test_what_auto_may_choose_gathers_nothing(lowering):
    conv = partial(ODConv, num_kernels=4, lowering=lowering)
    text = train_step_text(conv, stage_sizes=ONE_BLOCK)
    assert "all-reduce" in text
    assert not gathers(text)


def test_mixing_outputs_gathers_nothing():
    """`outputs` cannot do tap attention, so it is compiled for the 1x1 convolutions of a bottleneck."""

    def conv(features, kernel_size, strides, **fields):
        lowering = "outputs" if set(kernel_size) == {1} else "shared"
        return ODConv(features, kernel_size, strides, num_kernels=4, lowering=lowering, **fields)

    text = train_step_text(conv, Bottleneck, ONE_BLOCK)
    assert "all-reduce" in text
    assert not gathers(text)


def test_the_reference_does_gather():
    """The control: what the other tests look for is there when a lowering gathers."""
    conv = partial(ODConv, num_kernels=4, lowering="reference")
    text = train_step_text(conv, stage_sizes=ONE_BLOCK)
    assert any("all-gather" in line for line in gathers(text))


def test_a_loop_over_samples_gathers_and_so_auto_leaves_it_alone_here(capsys, monkeypatch):
    monkeypatch.setattr(lowerings, "CACHE", 1)  # a turn for each sample
    jax.clear_caches()
    x, w = jnp.ones((BATCH, 4, 4, 2)), jnp.ones((2, 3, 3, 2, 2))
    mix = jnp.ones((BATCH, 2))
    x, mix = jax.device_put((x, mix), shardings()[1])
    looped = jax.jit(partial(dynamic_conv, lowering="samples"))
    assert gathers(looped.lower(x, w, mix).compile().as_text())
    explain(x, w, mix, platform="cpu")
    assert "gathers a batch that is sharded" in capsys.readouterr().out
