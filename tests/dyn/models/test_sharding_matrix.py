"""Every model in training on meshes with explicit axes: the numbers of one device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from layer_cases import assert_trees_close, filled, random_input
from sharded_steps import make_mesh

from dyn import models
from dyn.diagnostics import attention_statistics, count_macs, layer_costs, sown_weights
from dyn.layers import (
    CBAM,
    DCDDense,
    DynamicConv,
    ODConv,
    PixelDynamicConv,
    SqueezeExcite,
    share_kernels,
)
from dyn.models.efficientnet import make_condconv_fields
from dyn.ops import max_pool, max_pool_with_argmax, max_unpool
from dyn.ops.platforms import plan_for_platform

pytestmark = pytest.mark.matrix

od = partial(ODConv, num_kernels=2)
pixel = partial(PixelDynamicConv, num_kernels=2)
small = partial(models.ResNet, (1, 1), models.BasicBlock, num_classes=3, width=4, stem="small")
backbone = partial(
    models.ResNet, (1, 1), models.BasicBlock, num_classes=None, width=4, output_stride=4, conv=od
)
PICTURES, SERIES = (4, 16, 16, 3), (4, 32, 1)
NETWORKS = {
    "ResNet": (small(conv=od), PICTURES),
    "ResNet, block": (small(conv=od, context="block"), PICTURES),
    "ResNet, carried": (small(conv=od, context="carried"), PICTURES),
    "ResNet, carried pixels": (small(conv=pixel, context="carried_pixels"), PICTURES),
    "ResNet, bottleneck": (
        models.ResNet((0, 1), models.Bottleneck, 3, conv=od, width=4, attention=CBAM),
        PICTURES,
    ),
    "ResNet, series": (
        small(conv=od, spatial_axes=1, attention=SqueezeExcite, dense=partial(DCDDense, latent=3)),
        (4, 16, 3),
    ),
    "ResNet, shared kernels": (
        share_kernels(
            lambda conv: small(conv=conv, shortcut=conv),
            jnp.ones(PICTURES),
            cell_ratio=2,
            basis_ratio=0.5,
        ),
        PICTURES,
    ),
    "MobileNetV2": (
        models.MobileNetV2(3, width=0.1, stem="small", conv=od, depthwise=od, dropout=0),
        (4, 8, 8, 3),
    ),
    "EfficientNet": (
        models.EfficientNet(
            *(3, pixel, od),
            width=0.1,
            stem="small",
            dropout=0,
            drop_connect=0,
            dynamic_stages=(2, 3),
        ),
        (4, 8, 8, 3),
    ),
    "EfficientNet, experts": (
        models.EfficientNet(
            3, width=0.1, stem="small", dropout=0, drop_connect=0, **make_condconv_fields(2)
        ),
        (4, 8, 8, 3),
    ),
    "DyMN": (models.DyMN(3, width=0.1, stem="small", dropout=0), (4, 8, 8, 3)),
    "ConvNeXt": (
        models.ConvNeXt(3, od, stage_sizes=(1,), width=4, stem="small", spatial_axes=1),
        (4, 16, 3),
    ),
    "VGG": (models.VGG((1, 1), num_classes=3, width=4, conv=od, dropout=0), PICTURES),
    "FCN": (models.FCN(num_classes=3, backbone=backbone, dropout=0), PICTURES),
    "DeepLabV3Plus": (
        models.DeepLabV3Plus(num_classes=3, backbone=backbone, features=8, dropout=0),
        PICTURES,
    ),
    "Net1": (models.Net1(num_classes=3, conv=partial(DynamicConv, num_kernels=2)), SERIES),
    "Net2": (
        models.Net2(num_classes=3, conv=partial(DynamicConv, num_kernels=2), context="series"),
        SERIES,
    ),
    "ACGAN": (models.ACGAN(3, latent=4, widths=(8, 4, 4, 4), conv=od), PICTURES),
    "Autoencoder, implicit": (models.Autoencoder((4, 4, 6), conv=od), PICTURES),
    "Autoencoder, explicit": (
        models.Autoencoder((4, 4, 6), pooling="explicit", conv=od),
        PICTURES,
    ),
    "Classifier": (models.Classifier(3, backbone=backbone, hidden=8, dropout=0), PICTURES),
}
MESHES = {
    "data": ((4,), "explicit", ["data"]),
    "explicit data": ((2, 2), "explicit, auto", ["data"]),
    "both": ((2, 2), "explicit", [("data", "model")]),
    "space": ((2, 2), "explicit", ["data", "model"]),
}


def place(mesh, variables, x, axes):
    """Puts variables on all devices of a mesh, and inputs sharded over the mesh axes `axes`."""
    replicated = NamedSharding(mesh, PartitionSpec())
    batch = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.device_put(variables, replicated), jax.device_put(x, batch)


# The others compile for minutes.
QUICK = ("ResNet", "DeepLabV3Plus", "ACGAN", "Autoencoder, explicit")
CASES = [
    pytest.param(
        name,
        kind,
        marks=[] if name in QUICK and kind in ("explicit data", "space") else [pytest.mark.long],
    )
    for name in NETWORKS
    for kind in MESHES
    if kind != "space" or name in ("ResNet", "DeepLabV3Plus")
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_training_step_has_the_numbers_of_one_device(name, kind):
    (net, size), (shape, types, axes) = NETWORKS[name], MESHES[kind]

    @jax.jit
    def train(variables, x):
        def loss(params):
            mutable = ["batch_stats", "intermediates"]
            y, state = net.apply({**variables, "params": params}, x, train=True, mutable=mutable)
            return sum(jnp.mean(jnp.sin(leaf)) for leaf in jax.tree.leaves(y)), (y, state)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    # In float64, because norms over few samples magnify what rounding changes.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        x = random_input(*size, dtype=np.float64)
        variables = filled(net, x, dtype=np.float64)
        placed = place(make_mesh(shape, types), variables, x, axes)
        (_, (outputs, _)), _ = got = train(*placed)
        # Among gradients of several thousand are some near zero.
        assert_trees_close(got, train(variables, x), rtol=1e-5, atol=1e-6)
        made = jax.eval_shape(jax.jit(net.init), jax.random.key(0), placed[1])
        assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, variables)
    for y in jax.tree.leaves(outputs):
        assert not y.sharding.is_fully_replicated  # the batch stays on its devices


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("axes", [["data"], ["data", "model"], ["data", None, None, "model"]])
def test_pooling_and_unpooling(axes, platform):
    def pool(x):
        values, places = max_pool_with_argmax(x, (4, 4), 2, 1)
        wide = max_unpool(values, places, x.shape[1:-1])
        return jnp.sum(wide**2) + jnp.sum(max_pool(x, (3, 3), 2, "SAME") ** 3), (values, places)

    x = random_input(4, 8, 8, 6)
    gradient = jax.jit(jax.value_and_grad(pool, has_aux=True))
    with plan_for_platform(platform):
        placed = place(make_mesh((2, 2), "explicit"), {}, x, axes)[1]
        (_, (values, places)), _ = got = gradient(placed)
        assert_trees_close(got, gradient(x), rtol=1e-5, atol=1e-5)
    assert values.sharding == places.sharding and values.sharding.spec[0] == "data"


def test_costs_and_attention_are_those_of_one_device():
    net, size = NETWORKS["ResNet"]
    x = random_input(*size)
    variables = filled(net, x)
    placed = place(make_mesh((4,), "explicit"), variables, x, ["data"])
    assert count_macs(net.apply, *placed) == count_macs(net.apply, variables, x) > 0
    assert layer_costs(net, *placed) == layer_costs(net, variables, x)

    @jax.jit
    def summarise(variables, x):
        _, state = net.apply(variables, x, mutable=["intermediates"])
        sown = sown_weights(state["intermediates"])
        return {path: attention_statistics(w["kernel"]) for path, w in sown.items()}

    got = summarise(*placed)
    assert_trees_close(got, summarise(variables, x), rtol=1e-4, atol=1e-5)
