"""The logits of every network of which torch's are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from torch_networks import (
    NETWORKS,
    REFERENCES,
    assert_torchs_logits,
    network,
    variable_shapes,
    weights_of,
)
from torch_numbers import pictures

from dyn.interop import from_torch, warm_start
from dyn.interop.torch_weights import num_classes, source_of
from dyn.layers import ODConv

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "odconv50"])
def test_has_torchs_logits(name):
    weights, net = weights_of(name), network(name)
    assert source_of(weights) == NETWORKS[name][0] and num_classes(weights) == 5
    variables, left_out, kept = from_torch(variable_shapes(net), weights)
    assert left_out == tuple(key for key in weights if key.endswith("num_batches_tracked"))
    assert kept == ()
    assert_torchs_logits(jax.jit(net.apply)(variables, pictures()), name)


def test_a_dynamic_network_starts_with_torchs_static_logits():
    static = variable_shapes(network("seresnet"))
    twin = from_torch(static, weights_of("seresnet")).variables
    net = network("seresnet", conv=partial(ODConv, num_kernels=2))
    fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable_shapes(net))
    variables = warm_start(fresh, twin, key=jax.random.key(1))
    assert_torchs_logits(jax.jit(net.apply)(variables, pictures()), "seresnet")


def test_the_comparison_notices_a_wrong_layout():
    """Kernels and matrices transposed, norms' scales and variances reversed."""
    net = network("odconv50")
    variables = from_torch(variable_shapes(net), weights_of("odconv50")).variables
    apply = jax.jit(net.apply)
    flat = traverse_util.flatten_dict(variables, sep="/")
    block = "params/stage2_block1"
    for path, turn in (
        (f"{block}/conv2/kernel", lambda a: a.swapaxes(1, 2)),  # taps
        (f"{block}/conv2/kernel", lambda a: a[::-1]),  # candidates
        (f"{block}/conv2/kernel", lambda a: a.swapaxes(3, 4)),  # features
        (f"{block}/conv2/attention/spatial/bias", lambda a: a[::-1]),
        (f"{block}/norm2/scale", lambda a: a[::-1]),
        ("batch_stats/stage2_block1/norm2/var", lambda a: a[::-1]),
    ):
        changed = traverse_util.unflatten_dict(
            {**flat, path: jnp.asarray(turn(flat[path]))}, sep="/"
        )
        logits = apply(changed, pictures())
        assert np.abs(logits - np.asarray(REFERENCES["odconv50"]["logits"])).max() > 5e-4, path


@pytest.mark.parametrize(
    ("name", "other"), [("resnet18", "resnet34"), ("odconv18", "resnet18"), ("dcd", "condconv")]
)
def test_weights_of_another_network_are_refused(name, other):
    with pytest.raises(ValueError, match=r"\d+ (missing|without a counterpart)"):
        from_torch(variable_shapes(network(name)), weights_of(other))
