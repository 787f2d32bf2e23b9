"""Detectors on a mesh: each device has a part of the batch, and nothing of the others; losses are of all."""

from functools import partial

import jax
import numpy as np
import pytest
from detection_cases import TINY, TINY_CONDINST, FourStages, make_batch
from jax.sharding import NamedSharding, PartitionSpec
from layer_cases import filled
from products import thin_out
from sharded_steps import gathers, shardings

from dyn.models import CondInst, MaskRCNN

pytestmark = pytest.mark.matrix

NETS = {
    "mask_rcnn": MaskRCNN(4, FourStages, TINY),
    "condinst": CondInst(4, FourStages, TINY_CONDINST),
}


@pytest.mark.parametrize("name", thin_out(NETS, step=2))
def test_numbers_are_those_of_one_device(name):
    net, (x, targets) = NETS[name], make_batch()
    variables = filled(net, x, scale=0.1)

    def compute(variables, x, targets):
        rngs = {"sampling": jax.random.key(0)}
        return net.apply(variables, x, targets, rngs=rngs), net.apply(variables, x)

    expected = jax.jit(compute)(variables, x, targets)
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        everywhere, split = (NamedSharding(mesh, PartitionSpec(*a)) for a in ((), ("data",)))
        variables = jax.device_put(variables, everywhere)
        batch = jax.device_put((x, targets), split)
        losses, found = jax.jit(compute)(variables, *batch)
    assert found.boxes.sharding.spec[0] == found.masks.sharding.spec[0] == "data"
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), (losses, found), expected
    )


@pytest.mark.parametrize(("name", "axes"), thin_out(NETS, ["auto", "explicit"], step=2))
def test_devices_exchange_sums_alone(name, axes):
    """Neither pictures nor boxes: not in top-k, not in scatters, and in no turn of a loop."""
    net, (x, targets) = NETS[name], make_batch()
    variables = jax.eval_shape(lambda: filled(net, x, scale=0.1))
    replicated, batch = shardings(2, axes)

    def shard(tree, sharding):
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree
        )

    def compute(variables, x, targets):
        def sum_losses(variables):
            rngs = {"sampling": jax.random.key(0)}
            return sum(jax.tree.leaves(net.apply(variables, x, targets, rngs=rngs)))

        return jax.grad(sum_losses)(variables), net.apply(variables, x)

    step = jax.jit(compute).lower(shard(variables, replicated), *shard((x, targets), batch))
    text = step.compile().as_text()
    sums = [line for line in text.splitlines() if " all-reduce(" in line]
    assert sums and not gathers(text)
    assert not [line for line in sums if "/while" in line]
