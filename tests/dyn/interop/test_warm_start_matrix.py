"""Layers that start as the trained static one, and networks that need more than the layers alone."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import EVERYWHERE, filled, init_shapes, random_input, shapes_of
from warm_starts import assert_same, initialised

from dyn import layers
from dyn.interop import candidate_kernels, warm_start
from dyn.models import BasicBlock, Bottleneck, EfficientNet, ResNet, efficientnet
from dyn.models.efficientnet import make_condconv_fields
from dyn.schedules import set_blend, set_temperature

pytestmark = pytest.mark.matrix

KEY = jax.random.key(5)


@pytest.mark.parametrize(
    "layer",
    [
        partial(layers.DynamicConv, num_kernels=3),
        partial(layers.DynamicConv, num_kernels=1),
        partial(layers.DynamicConv, num_kernels=3, use_bias=False),
        partial(layers.DynamicConv, num_kernels=3, reduction=None),
        partial(layers.ODConv, num_kernels=3),
        partial(layers.ODConv, num_kernels=1, attention_norm="layer", use_bias=False),
        partial(layers.ODConv, kernel_size=(1, 1)),  # without attention over positions
        partial(layers.ODConv, features=6, feature_group_count=6),  # without attention over filters
        partial(layers.ODConv, feature_group_count=2, attention_norm="none"),
        partial(layers.PixelDynamicConv, num_kernels=3),
        partial(layers.FrequencyDynamicConv, num_kernels=3),
        partial(layers.FrequencyDynamicConv, axis="time", attention_norm="batch"),
        partial(layers.CondConv, num_kernels=3),
        partial(layers.GatedConv, num_kernels=3),
        partial(layers.GatedConv, num_kernels=3, static=True),
        partial(layers.GatedConv, granularity="filter"),
        partial(layers.GatedConv, granularity="slice"),
        partial(layers.DCDConv),
        partial(layers.DCDConv, pool=None),
        partial(layers.FDConv, num_kernels=3, **EVERYWHERE),
        partial(layers.FDConv, num_kernels=3, local=False, **EVERYWHERE),
        partial(layers.FDConv, num_kernels=3, num_spectra=2, kernel_size=(3, 3), **EVERYWHERE),
        partial(layers.FDConv, kernel_size=(3, 3)),  # a plain convolution
        partial(layers.DeformableConv),
        partial(layers.DeformableConv, modulated=False, offset_groups=3),
    ],
)
def test_every_layer_starts_as_the_static_one(layer):
    x = random_input(3, 7, 8, 6)
    fields = {"features": 4, "kernel_size": (3, 2)} | layer.keywords
    net = layer(**{k: fields[k] for k in ("features", "kernel_size")})
    shared = ("features", "kernel_size", "feature_group_count", "use_bias")
    static = nn.Conv(**{k: fields[k] for k in shared if k in fields})
    trained = filled(static, x)
    fresh = initialised(net, x)
    apply, expected = jax.jit(net.apply), jax.jit(static.apply)(trained, x)
    for awake in (True, False):
        variables = warm_start(fresh, trained, awake=awake, noise=0.3, key=KEY)
        assert_same(apply(variables, x), expected)


def test_experts_that_share_a_routing_start_as_the_static_network(monkeypatch):
    monkeypatch.setattr(efficientnet, "STAGES", ((1, 3, 16, 1, 1), (6, 3, 16, 1, 1)))
    x = random_input(3, 9, 8, 2)
    static = EfficientNet(3, width=0.25, stem="small")
    trained = filled(static, x)
    experts = make_condconv_fields(3) | {"dynamic_stages": (2,)}
    net = static.clone(**experts)
    variables = warm_start(initialised(net, x), trained, noise=0.3, key=KEY)
    assert_same(jax.jit(net.apply)(variables, x), jax.jit(static.apply)(trained, x))
    frozen = candidate_kernels(variables["params"])["stage2_block1"]
    assert frozen["expand"]["kernel"] and frozen["depthwise"]["kernel"]
    assert not frozen["routing"]["kernel"] and not frozen["squeeze_excite"]["reduce"]["kernel"]
    assert not candidate_kernels(variables["params"])["stage1_block1"]["project"]["kernel"]


def test_static_layers_beside_a_shared_routing_are_not_frozen(monkeypatch):
    monkeypatch.setattr(efficientnet, "STAGES", ((1, 3, 16, 1, 1), (6, 3, 16, 1, 1)))
    experts = make_condconv_fields(3) | {"depthwise": None, "dynamic_stages": (2,)}
    net = EfficientNet(3, width=0.25, stem="small", **experts)
    params = initialised(net, random_input(3, 9, 8, 2))["params"]
    frozen = candidate_kernels(params)["stage2_block1"]
    assert frozen["expand"]["kernel"] and not frozen["depthwise"]["kernel"]


INVERTED = {
    "attention after the blocks": {"attention": layers.SqueezeExcite},
    "CBAM": {"attention": partial(layers.CBAM, reduction=0.5)},
    "pixels": {
        "conv": partial(layers.PixelDynamicConv, num_kernels=2),
        "context": "carried_pixels",
    },
    "gates": {"conv": partial(layers.GatedConv, num_kernels=2), "context": "block"},
}


@pytest.mark.parametrize("name", INVERTED)
def test_inverted_residual_blocks_start_as_static_ones(name, monkeypatch):
    monkeypatch.setattr(efficientnet, "STAGES", ((1, 3, 16, 1, 1), (6, 3, 16, 2, 1)))
    x = random_input(3, 9, 8, 2)
    static = EfficientNet(3, width=0.25, stem="small")  # squeezes inside its blocks
    trained = filled(static, x)
    net = static.clone(**INVERTED[name])
    variables = warm_start(initialised(net, x), trained, noise=0.3, key=KEY)
    assert_same(jax.jit(net.apply)(variables, x), jax.jit(static.apply)(trained, x))


STATIC = ResNet((1, 1), BasicBlock, num_classes=3, width=8, stem="small")
X = random_input(3, 8, 8, 2)


@pytest.fixture(scope="module")
def trained():
    """Variables of the static network, and its logits of X."""
    variables = filled(STATIC, X)
    return variables, jax.jit(STATIC.apply)(variables, X)


def shared(**fields):
    return layers.share_kernels(lambda conv: STATIC.copy(conv=conv, shortcut=conv), X, **fields)


NETWORKS = {
    "CondConv": STATIC.copy(conv=partial(layers.CondConv, num_kernels=3), context="block"),
    "DCDConv, DCDDense": STATIC.copy(conv=layers.DCDConv, dense=partial(layers.DCDDense, latent=4)),
    "KernelRepresentation": STATIC.copy(
        conv=partial(layers.ODConv, num_kernels=2), context="carried"
    ),
    "KernelRepresentation, pixels": STATIC.copy(
        conv=partial(layers.PixelDynamicConv, num_kernels=2), context="carried_pixels"
    ),
    "SqueezeExcite": STATIC.copy(attention=partial(layers.SqueezeExcite, reduction=0.5)),
    "CBAM": STATIC.copy(attention=partial(layers.CBAM, reduction=0.5)),
    "CBAM without a norm": STATIC.copy(attention=partial(layers.CBAM, spatial_norm="none")),
    "ODConv, shortcuts too, and CBAM": STATIC.copy(
        conv=partial(layers.ODConv, num_kernels=2),
        shortcut=partial(layers.ODConv, num_kernels=2),
        attention=layers.CBAM,
    ),
    "EfficientChannelAttention": STATIC.copy(attention=layers.EfficientChannelAttention),
    "CoordinateAttention": STATIC.copy(attention=layers.CoordinateAttention),
    "DynamicReLU": STATIC.copy(activation=layers.DynamicReLU),
    "DeformableConv": STATIC.copy(conv=layers.DeformableConv),
    "SpectralNormConv": STATIC.copy(conv=layers.SpectralNormConv),
    "SpectralNormConv, K = 3": STATIC.copy(conv=partial(layers.SpectralNormConv, num_kernels=3)),
    "WarehouseConv": STATIC.copy(conv=layers.WarehouseConv),
    "WarehouseConv, shared": shared(),
    "WarehouseConv, shared, 2": shared(cell_ratio=2.5, in_ratio=0.5),
    "WarehouseConv, shared, low rank": shared(cell_ratio=2, basis_ratio=0.25),
    "WarehouseConv, whole cells": STATIC.copy(
        conv=partial(layers.WarehouseConv, spatial_partition=False, in_ratio=0.5)
    ),
    "WarehouseDense, shared": layers.share_kernels(
        lambda conv: STATIC.copy(conv=conv, dense=conv),
        X,
        share=lambda path: "head" if path == ("head",) else None,
        in_ratio=0.25,
    ),
    "DynamicDense": STATIC.copy(dense=layers.DynamicDense),
}


def started(net, trained, **fields):
    warehouses = net.conv if isinstance(net.conv, layers.Warehouses) else None
    fresh = initialised(net, X)
    variables = warm_start(fresh, trained, key=KEY, noise=0.3, warehouses=warehouses, **fields)
    assert shapes_of(variables) == shapes_of(fresh)
    return variables


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_starts_as_the_static_one(name, trained):
    static, expected = trained
    variables = started(NETWORKS[name], static)
    assert_same(jax.jit(NETWORKS[name].apply)(variables, X), expected)


@pytest.mark.parametrize("name", ["SqueezeExcite", "CBAM", "WarehouseConv", "SpectralNormConv"])
def test_in_training_it_is_the_same_and_its_attention_learns(name, trained):
    static, _ = trained
    net = NETWORKS[name]
    variables = started(net, static)

    def loss(net, params, variables):
        logits, _ = net.apply({**variables, "params": params}, X, True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(logits)), logits

    learn = jax.jit(jax.grad(partial(loss, net), has_aux=True))
    gradient, logits = learn(variables["params"], variables)
    expected = loss(STATIC, static["params"], static)[1]
    np.testing.assert_allclose(logits, expected, rtol=2e-3, atol=2e-3)
    # Nothing is saturated. (The convolution of a spatial gate waits for the scale of its norm.)
    sizes = {
        "/".join(part.key for part in path): float(jnp.abs(leaf).max())
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if path[-2].key in ("expand", "cell") or "spatial" in [part.key for part in path[:-2]]
    }
    sizes = {k: size for k, size in sizes.items() if not k.endswith("spatial/conv/kernel")}
    assert name == "SpectralNormConv" or sizes
    assert all(size > 1e-5 for size in sizes.values()), sizes


def test_warehouses_hold_the_kernels_for_every_blend(trained):
    static, expected = trained
    for name in ("WarehouseConv", "WarehouseConv, shared, 2"):
        variables, apply = started(NETWORKS[name], static), jax.jit(NETWORKS[name].apply)
        for blend in (1.0, 0.5):
            logits = apply(set_blend(variables, blend), X)
            np.testing.assert_allclose(logits, expected, rtol=0.02, atol=0.02)


def test_temperature_matters_only_to_the_noise_of_spectral_norms(trained):
    static, expected = trained
    net = NETWORKS["SpectralNormConv, K = 3"]
    apply = jax.jit(net.apply)
    for noise, tolerance in ((0.0, 1e-4), (0.1, 0.02)):
        variables = warm_start(initialised(net, X), static, awake=False, key=KEY, noise=noise)
        logits = apply(set_temperature(variables, 30.0), X)
        np.testing.assert_allclose(logits, expected, rtol=tolerance, atol=tolerance)


def test_a_bottlenecks_gates_are_undone_by_its_third_norm():
    static = STATIC.copy(block=Bottleneck, stage_sizes=(1,))
    variables = filled(static, X)
    net = static.copy(attention=layers.CBAM)
    warm = started(net, variables)
    block, before = warm["params"]["stage1_block1"], variables["params"]["stage1_block1"]
    np.testing.assert_array_equal(block["norm3"]["scale"], 4 * before["norm3"]["scale"])
    np.testing.assert_array_equal(block["norm2"]["scale"], before["norm2"]["scale"])
    expected = jax.jit(static.apply)(variables, X)
    np.testing.assert_allclose(jax.jit(net.apply)(warm, X), expected, rtol=1e-4, atol=1e-4)


def test_gates_of_the_trained_network_are_copied():
    static = STATIC.copy(attention=layers.SqueezeExcite)
    variables = filled(static, X)
    warm = started(static.copy(conv=partial(layers.ODConv, num_kernels=2)), variables)
    block, before = warm["params"]["stage1_block1"], variables["params"]["stage1_block1"]
    np.testing.assert_array_equal(block["norm2"]["scale"], before["norm2"]["scale"])
    for name in ("reduce", "expand"):
        ours, theirs = block["attention"][name], before["attention"][name]
        np.testing.assert_array_equal(ours["kernel"], theirs["kernel"])


def test_rotated_kernels_start_equal_only_if_they_are_1x1(trained):
    static, expected = trained
    net = STATIC.copy(conv=layers.RotatedConv)
    logits = jax.jit(net.apply)(started(net, static), X)
    assert float(jnp.abs(logits - expected).max()) > 0.1
    one, turned = nn.Conv(4, (1, 1)), layers.RotatedConv(4, (1, 1), num_kernels=3)
    variables = filled(one, X)
    fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), init_shapes(turned, X))
    fresh["attention"] = {}
    warm = warm_start(fresh, variables, key=KEY)
    np.testing.assert_allclose(turned.apply(warm, X), one.apply(variables, X), rtol=1e-4, atol=1e-5)


def test_warehouses_that_cannot_hold_the_kernels_are_errors(trained):
    static, _ = trained
    net = shared(cell_ratio=0.5)
    with pytest.raises(ValueError, match=r"conv/stage1/cells has .* too few"):
        started(net, static)
    with pytest.raises(ValueError, match=r"stage1_block1/conv1/kernel, .* is not in"):
        warm_start(initialised(shared(), X), static, key=KEY)  # without saying which layers share
    with pytest.raises(ValueError, match="has no params/stage1_block1/conv1/kernel"):
        params = {k: v for k, v in static["params"].items() if not k.startswith("stage1")}
        started(shared(), {**static, "params": params})
