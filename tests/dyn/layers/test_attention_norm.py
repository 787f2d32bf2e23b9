"""The layer norm inside attention."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import filled, random_input

from dyn.layers import DCDConv, DCDDense, DynamicConv, GatedConv, ODConv, SpectralNormConv

LAYERS = {
    "ODConv": (partial(ODConv, 6, (3, 3), num_kernels=3), (4, 5, 5, 4)),
    "DynamicConv": (partial(DynamicConv, 6, (3, 3), num_kernels=3), (4, 5, 5, 4)),
    "SpectralNormConv": (partial(SpectralNormConv, 6, (3, 3), num_kernels=3), (4, 5, 5, 4)),
    "GatedConv": (partial(GatedConv, 6, (3, 3), granularity="filter"), (4, 5, 5, 4)),
    "DCDConv": (partial(DCDConv, 6, (3, 3), min_squeeze=8), (4, 5, 5, 4)),
    "DCDDense": (partial(DCDDense, 6, latent=3, squeezed=8), (4, 5)),
}


def weights(layer, variables, x, context):
    _, state = jax.jit(partial(layer.apply, mutable=["intermediates"]))(variables, x, context)
    return state["intermediates"]["attention"]["weights"][0]


@pytest.mark.parametrize("name", LAYERS)
def test_the_layer_norm_normalises_the_squeezed_vector(name):
    """Without it, and with a vector normalised by hand, the attention is the same."""
    make, shape = LAYERS[name]
    x, context = random_input(*shape), random_input(shape[0], 7, seed=2)
    normed, plain = make(attention_norm="layer"), make(attention_norm="none")
    variables = filled(normed, x, context)
    attention = {**variables["params"]["attention"]}
    scale, bias = (attention["norm"][key] for key in ("scale", "bias"))
    del attention["norm"]
    vector = context if name == "GatedConv" else context @ attention["squeeze"]["kernel"]
    deviation = vector - vector.mean(-1, keepdims=True)
    by_hand = deviation / np.sqrt(vector.var(-1, keepdims=True) + 1e-5) * scale + bias
    if name != "GatedConv":  # gates look at the context itself
        attention["squeeze"] = {"kernel": jnp.eye(by_hand.shape[-1])}
    others = {**variables, "params": {**variables["params"], "attention": attention}}
    want = weights(plain, others, x, jnp.asarray(by_hand))
    got = weights(normed, variables, x, context)
    for key in want:
        np.testing.assert_allclose(got[key], want[key], rtol=1e-4, atol=1e-5)
