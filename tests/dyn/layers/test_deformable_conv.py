"""DeformableConv's own convolution for offsets, its start, parameters and multiply-adds."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import filled, init_shapes, random_input, shapes_of
from numpy_deform_conv import deform_conv as deform_by_loops

from dyn.diagnostics import count_macs
from dyn.layers import DeformableConv


@pytest.mark.parametrize(
    ("fields", "spatial"),
    [
        (dict(kernel_size=(3, 2), strides=2, offset_groups=2), (5, 4)),
        (dict(kernel_size=3, padding="CAUSAL", modulated=False), (6,)),
    ],
)
def test_follows_the_formulas(fields, spatial):
    layer = DeformableConv(6, **fields, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = random_input(2, *spatial, 4, dtype=np.float64)
        variables = filled(layer, x, dtype=np.float64)
        y, state = jax.jit(partial(layer.apply, mutable=["intermediates"]))(variables, x)
        params = variables["params"]
        name = "offsets_and_masks" if layer.modulated else "offsets"
        geometry = {k: v for k, v in fields.items() if k in ("kernel_size", "strides", "padding")}
        maps = nn.Conv(params[name]["bias"].size, **geometry, precision="highest").apply(
            {"params": params[name]}, x
        )
    rank, groups, taps = len(spatial), layer.offset_groups, int(np.prod(layer.kernel_size))
    # All offsets come first, group by group, tap by tap, one for each axis; then the weights.
    number = rank * groups * taps
    offsets = np.asarray(maps[..., :number]).reshape(*maps.shape[:-1], groups, taps, rank)
    mask = None
    if layer.modulated:
        mask = 1 / (1 + np.exp(-np.asarray(maps[..., number:])))
        mask = mask.reshape(*maps.shape[:-1], groups, taps)
    geometry.pop("kernel_size")
    want = deform_by_loops(np.asarray(x), params["kernel"], offsets, mask, **geometry)
    np.testing.assert_allclose(y, want + params["bias"], rtol=1e-10, atol=1e-12)
    (sown,) = state["intermediates"]["weights"]
    np.testing.assert_allclose(sown["offset"], offsets, rtol=1e-12)
    assert ("tap" in sown) == layer.modulated


def test_it_starts_as_half_of_the_convolution():
    x = random_input(2, 6, 5, 4)
    layer = DeformableConv(6, (3, 3))
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    kernel = {"params": {k: variables["params"][k] for k in ("kernel", "bias")}}
    want = jax.jit(nn.Conv(6, (3, 3)).apply)(kernel, x) / 2
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), want, rtol=1e-5, atol=1e-6)


def test_a_context_places_the_taps():
    x, context = random_input(2, 6, 5, 4), random_input(2, 6, 5, 7, seed=3)
    layer = DeformableConv(6, (3, 3))
    variables = filled(layer, x, context)
    assert variables["params"]["offsets_and_masks"]["kernel"].shape == (3, 3, 7, 27)
    y = jax.jit(layer.apply)(variables, x, context)
    assert np.abs(y - jax.jit(layer.apply)(variables, x, context + 1)).max() > 1e-3


def test_parameters_and_multiply_adds():
    layer = DeformableConv(16, (3, 3), strides=2, offset_groups=2, feature_group_count=4)
    x = jax.ShapeDtypeStruct((2, 8, 8, 8), jnp.float32)
    variables = init_shapes(layer, x)
    assert shapes_of(variables["params"]) == {
        "kernel": (3, 3, 2, 16),
        "bias": (16,),
        "offsets_and_masks/kernel": (3, 3, 8, 54),
        "offsets_and_masks/bias": (54,),
    }
    by_hand = 2 * 16 * 9 * (8 * 54 + 2 * 16)
    assert count_macs(layer.apply, variables, x) == by_hand


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="offset_groups=3 must divide the 4"):
        init_shapes(DeformableConv(6, (3, 3), offset_groups=3), jnp.ones((2, 5, 5, 4)))
