"""The logits of every network of which torch's are known."""

from functools import partial

import jax
import numpy as np
import pytest
from torch_networks import (
    NETWORKS,
    assert_torchs_logits,
    network,
    variable_shapes,
    weights_of,
)
from torch_numbers import pictures

from dyn.interop import from_torch, warm_start
from dyn.interop.torch_weights import detect_source, num_classes
from dyn.layers import ODConv

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "odconv50"])
def test_has_torchs_logits(name):
    weights, net = weights_of(name), network(name)
    assert detect_source(weights) == NETWORKS[name][0] and num_classes(weights) == 5
    variables, left_out, kept = from_torch(variable_shapes(net), weights)
    assert left_out == tuple(key for key in weights if key.endswith("num_batches_tracked"))
    assert kept == ()
    assert_torchs_logits(jax.jit(net.apply)(variables, pictures()), name)


def test_weights_with_a_batch_norm_say_so_to_a_network_with_another():
    net = network("odconv50", conv=partial(ODConv, num_kernels=4))
    with pytest.raises(ValueError, match="make the network with attention_norm='batch'"):
        from_torch(variable_shapes(net), weights_of("odconv50"))


def test_a_dynamic_network_starts_with_torchs_static_logits():
    static = variable_shapes(network("seresnet"))
    twin = from_torch(static, weights_of("seresnet")).variables
    net = network("seresnet", conv=partial(ODConv, num_kernels=2))
    fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable_shapes(net))
    variables = warm_start(fresh, twin, key=jax.random.key(1))
    assert_torchs_logits(jax.jit(net.apply)(variables, pictures()), "seresnet")
