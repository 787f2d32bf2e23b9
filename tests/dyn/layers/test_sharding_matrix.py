"""No layer and no lowering that 'auto' may choose gathers a batch over four devices, which share the work."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from products import thin_out
from sharded_steps import BATCH, CASES, gathers, large, layer_gradient, shardings, train_step_text

from dyn.layers import ODConv
from dyn.models import Bottleneck
from dyn.ops import dynamic_conv, explain, lowerings

pytestmark = pytest.mark.matrix


EITHER = pytest.mark.parametrize("axes", ["explicit", "auto"])


@pytest.mark.parametrize(("name", "axes"), thin_out(CASES, ["explicit", "auto"], step=2))
def test_the_gradient_of_no_layer_gathers(name, axes):
    """In training, with respect to parameters and inputs, with the lowering that 'auto' chooses."""
    text = layer_gradient(name, 4, axes=axes).as_text()
    assert "all-reduce" in text
    assert not gathers(text)


@pytest.mark.parametrize(("name", "axes"), thin_out(CASES, ["explicit", "auto"], step=2))
def test_four_devices_share_the_work(name, axes):
    """With inputs large enough for other lowerings."""
    alone, shared = (layer_gradient(name, devices, large(name), axes) for devices in (1, 4))
    assert "all-reduce" in shared.as_text() and not gathers(shared.as_text())
    flops = [compiled.cost_analysis()["flops"] for compiled in (alone, shared)]
    assert flops[1] == pytest.approx(flops[0] / 4, rel=0.02)


# One block, which has a strided and an unstrided convolution.
ONE_BLOCK = (0, 1)


@EITHER
@pytest.mark.parametrize("lowering", ["taps", "patches", "shared"])
def test_lowerings_that_auto_may_choose_gather_nothing(lowering, axes):
    conv = partial(ODConv, num_kernels=4, attention_norm="batch", lowering=lowering)
    text = train_step_text(conv, stage_sizes=ONE_BLOCK, axes=axes)
    assert "all-reduce" in text
    assert not gathers(text)


@EITHER
def test_mixing_outputs_gathers_nothing(axes):
    """`outputs` cannot do tap attention, so it is compiled for the 1x1 convolutions of a bottleneck."""

    def conv(features, kernel_size, strides, **fields):
        lowering = "outputs" if set(kernel_size) == {1} else "shared"
        return ODConv(
            features,
            kernel_size,
            strides,
            num_kernels=4,
            attention_norm="batch",
            lowering=lowering,
            **fields,
        )

    text = train_step_text(conv, Bottleneck, ONE_BLOCK, axes=axes)
    assert "all-reduce" in text
    assert not gathers(text)


@EITHER
def test_the_reference_gathers(axes):
    """The control: the other tests would notice a lowering that gathers."""
    conv = partial(ODConv, num_kernels=4, attention_norm="batch", lowering="reference")
    text = train_step_text(conv, stage_sizes=ONE_BLOCK, axes=axes)
    assert any("all-gather" in line for line in gathers(text))


def test_chunks_of_samples_gather_so_auto_avoids_them(capsys, monkeypatch):
    monkeypatch.setattr(lowerings, "CHUNK_BYTES", 1)  # one sample at a time
    jax.clear_caches()
    x, w = jnp.ones((BATCH, 4, 4, 2)), jnp.ones((2, 3, 3, 2, 2))
    mix = jnp.ones((BATCH, 2))
    x, mix = jax.device_put((x, mix), shardings()[1])
    looped = jax.jit(partial(dynamic_conv, lowering="samples"))
    assert gathers(looped.lower(x, w, mix).compile().as_text())
    explain(x, w, mix, platform="cpu")
    assert "gathers a batch that is sharded" in capsys.readouterr().out
