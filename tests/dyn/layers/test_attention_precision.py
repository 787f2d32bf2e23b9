"""The precision of attention's products, which accelerators would round to bfloat16 or TF32."""

import dataclasses
from functools import partial

import jax
import pytest
from jax.lax import Precision
from layer_cases import LAYERS, random_input

from dyn.diagnostics.costs import _inner_jaxprs
from dyn.layers import PixelDynamicConv
from dyn.layers.kernel_representation import KernelRepresentation


def list_precisions(jaxpr):
    """Lists the precision of every product and convolution, None for the default."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            both = eqn.params["precision"] or (None, None)
            found += both
        for inner in _inner_jaxprs(eqn.params):
            found += list_precisions(inner)
    return found


def trace(module, *args, **options):
    """Lists the precisions of a layer; those of its gradient are the same."""
    return list_precisions(
        jax.make_jaxpr(partial(module.init, **options))(jax.random.key(0), *args).jaxpr
    )


AT_POSITIONS = (
    "PixelDynamicConv",
    "CBAM",
    "Involution",
    "SequenceDynamicConv",
    "DeformableConv",
    "DynamicReLU, positions",
)


# All products of DeformableAggregation are at each position.
@pytest.mark.parametrize("name", [n for n in LAYERS if not n.startswith("DeformableAgg")])
def test_products_of_attention_ask_for_the_highest_precision(name):
    """The field `precision` stays that of the convolution."""
    layer = LAYERS[name].layer()
    has_field = any(field.name == "precision" for field in dataclasses.fields(layer))
    if has_field:
        layer = layer.clone(precision="high")
    found = set(trace(layer, random_input(*LAYERS[name].shape)))
    if name in AT_POSITIONS:  # attention at each position is not tiny
        assert found == {Precision.HIGH if has_field else Precision.HIGHEST, None}
    elif name == "DecoupledDynamicFilter":  # both, for positions and channels
        assert found == {Precision.HIGHEST, Precision.HIGH, None}
    else:
        assert found == ({Precision.HIGHEST, Precision.HIGH} if has_field else {Precision.HIGHEST})


def test_one_attention_for_the_whole_input_is_precise_in_a_pixel_wise_layer_too():
    layer = PixelDynamicConv(4, (3, 3), num_kernels=2, attention="image", precision="high")
    assert set(trace(layer, random_input(2, 5, 5, 3))) == {Precision.HIGHEST, Precision.HIGH}


def test_the_carried_state_is_precise():
    found = trace(KernelRepresentation(4), random_input(2, 5, 5, 3), layer="a")
    assert set(found) == {Precision.HIGHEST}
