"""Every layer, and networks of every kind, as NNX modules: names, numbers and gradients of Linen."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from layer_cases import (
    LAYERS,
    LOCAL,
    assert_trees_close,
    compiled_case,
    init_shapes,
    random_input,
    shapes_of,
)
from nnx_cases import make_module
from sharded_steps import make_mesh

import dyn.nnx
from dyn import layers, models
from dyn.nnx import FromLinen, KernelRepresentation, Loss, load_linen, to_linen

pytestmark = pytest.mark.matrix


@nnx.jit
def train(module, x):
    """Returns the loss, the outputs and what was sown, and the gradient; see `compile_training`."""

    def loss(module):
        y, seen, losses = nnx.capture(module, nnx.Intermediate, Loss)(x)
        return jnp.sum(y * random_input(*y.shape, seed=6)), (y, seen, losses)

    return nnx.value_and_grad(loss, has_aux=True)(module)


@pytest.mark.parametrize("name", LAYERS)
def test_has_the_numbers_of_linen(name):
    layer, variables, x, apply, linen_train, _ = compiled_case(name)
    module = make_module(name, rngs=nnx.Rngs(0))
    assert shapes_of(to_linen(module)) == shapes_of(variables)
    made = jax.jit(layer.init)(nnx.Rngs(0).params(), x)
    assert_trees_close(to_linen(module), made, rtol=1e-6, atol=1e-7)
    load_linen(module, variables)
    assert_trees_close(to_linen(module), variables, rtol=0, atol=0)
    module.eval()
    y = nnx.jit(lambda module, x: module(x))(module, x)
    np.testing.assert_allclose(y, apply(variables, x), rtol=1e-6, atol=1e-6)
    module.train()
    (value, (y, seen, _)), gradient = train(module, x)
    (want, (wanted, state)), wanted_gradient = linen_train(variables, x)
    np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    assert_trees_close(nnx.to_pure_dict(gradient), wanted_gradient, rtol=1e-4, atol=1e-4)
    assert_trees_close(nnx.to_pure_dict(seen), state["intermediates"], rtol=1e-5, atol=1e-5)
    statistics = to_linen(module).get("batch_stats", {})
    assert_trees_close(statistics, state.get("batch_stats", {}), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [n for n, case in LAYERS.items() if case.looks_at])
def test_takes_contexts_of_another_width(name):
    layer, x = LAYERS[name].layer(), random_input(*LAYERS[name].shape)
    module = nnx.eval_shape(lambda: make_module(name, rngs=nnx.Rngs(0), context_features=7))
    contexts = [random_input(x.shape[0], 7)] if name != "DeformableConv" else []
    contexts += [random_input(*x.shape[:-1], 7)] if name in LOCAL else []
    for context in contexts:
        assert shapes_of(to_linen(module)) == shapes_of(init_shapes(layer, x, context))


@pytest.mark.parametrize("name", LAYERS)
def test_no_parameters_depend_on_the_size_of_the_picture(name):
    case = LAYERS[name]
    if len(case.shape) < 4:
        return
    shapes = shapes_of(init_shapes(case.layer(), random_input(2, 17, 23, case.shape[-1])))
    module = nnx.eval_shape(lambda: make_module(name, rngs=nnx.Rngs(0)))
    assert shapes == shapes_of(to_linen(module))


SMALL = {"width": 4, "stem": "small", "stage_sizes": (1, 1)}
NETWORKS = {
    "ResNet18": {},
    "ResNet50": {**SMALL, "conv": dyn.nnx.ODConv, "context": "carried"},
    "SKResNet18": SMALL,
    "RedNet26": SMALL,
    "VGG16": SMALL,
    "ConvNeXt": SMALL,
    "MobileNetV3": {"width": 0.25},
    "FCN": {"backbone": partial(dyn.nnx.ResNet18, num_classes=None, **SMALL)},
    "Classifier": {"backbone": partial(dyn.nnx.ResNet18, num_classes=None, **SMALL)},
    "Autoencoder": {"widths": (4, 4)},
    "ACGAN": {"widths": (8, 8, 8, 8)},
    "Net1": {"conv": dyn.nnx.DynamicConv},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_the_names_of_linen(name):
    fields = {**NETWORKS[name], **({} if name == "Autoencoder" else {"num_classes": 5})}
    net = nnx.eval_shape(lambda: getattr(dyn.nnx, name)(3, **fields, rngs=nnx.Rngs(0)))
    linen = getattr(models, name)
    fields = {n: dyn.nnx.constructors.translate_value(n, v) for n, v in fields.items()}
    x = jax.ShapeDtypeStruct((2, *net.spatial_shape, 3), jnp.float32)
    assert shapes_of(to_linen(net)) == shapes_of(init_shapes(linen(**fields), x))
    outputs = nnx.eval_shape(lambda net, x: net(x), net, x)
    for leaf in jax.tree.leaves(outputs):
        assert leaf.shape[0] == 2


def test_methods_of_networks():
    net = nnx.eval_shape(
        lambda: dyn.nnx.ACGAN(3, num_classes=2, widths=(8, 8, 8, 8), rngs=nnx.Rngs(0))
    )
    noise, labels = random_input(2, 100), jnp.arange(2)
    pictures = nnx.eval_shape(lambda net: net.generate(noise, labels, (32, 32, 3)), net)
    assert pictures.shape == (2, 32, 32, 3)
    _, logits = nnx.eval_shape(lambda net, x: net.discriminate(x), net, pictures)
    assert logits.shape == (2, 2)


def test_networks_that_were_made_in_linen():
    x = random_input(2, 8, 8, 3)
    small = {"num_classes": 2, "width": 4, "stem": "small", "stage_sizes": (1, 1)}
    shared = layers.share_kernels(
        lambda conv: models.ResNet18(**small, conv=conv, shortcut=conv), x
    )
    replaced = layers.replace_convs(
        models.ResNet18(**small), partial(layers.DynamicConv, num_kernels=2)
    )
    for linen in (shared, replaced):
        net = FromLinen(linen, x, rngs=nnx.Rngs(0))
        assert shapes_of(to_linen(net)) == shapes_of(init_shapes(linen, x))
        before = to_linen(net)
        nnx.jit(lambda net, x: net(x))(net, x)
        assert (
            np.abs(
                to_linen(net)["batch_stats"]["stem_norm"]["mean"]
                - before["batch_stats"]["stem_norm"]["mean"]
            ).max()
            > 0
        )
        net.eval()
        want = jax.jit(linen.apply)(to_linen(net), x)
        np.testing.assert_allclose(net(x), want, rtol=1e-4, atol=1e-5)


def test_a_representation_has_the_layers_that_it_was_made_for():
    representation = KernelRepresentation({"first": 3, "second": 4}, 8, rngs=nnx.Rngs(0))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, y):
            carry = layers.KernelRepresentation(8, name="representation")
            return carry(y, carry(x, layer="first"), layer="second")

    x, y = random_input(2, 5, 5, 3), random_input(2, 5, 5, 4)
    variables = {"params": {"representation": to_linen(representation)["params"]}}
    assert shapes_of(variables) == shapes_of(init_shapes(Net(), x, y))
    got = representation(y, representation(x, layer="first"), layer="second")
    np.testing.assert_allclose(got, Net().apply(variables, x, y), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="in_features"):
        representation(x, layer="third")


@pytest.mark.parametrize(
    ("shape", "axes"), [((4,), "explicit"), ((2, 2), "explicit"), ((4,), "auto")]
)
@pytest.mark.parametrize("name", ["ODConv", "WarehouseConv", "CBAM"])
def test_a_module_on_a_mesh_has_the_numbers_of_one_device(name, shape, axes):
    x = random_input(*LAYERS[name].shape)
    module = make_module(name, rngs=nnx.Rngs(0))
    definition, state = nnx.split(module)
    state = jax.device_get(state)
    placement = partial(jax.sharding.NamedSharding, make_mesh(shape, axes))
    placed = jax.device_put(state, placement(jax.sharding.PartitionSpec()))
    sharded = jax.device_put(x, placement(jax.sharding.PartitionSpec("data")))

    def step(module, x):
        (value, _), gradient = train(module, x)
        return value, gradient, nnx.state(module, nnx.BatchStat)

    got = step(nnx.merge(definition, placed), sharded)
    assert_trees_close(got, step(nnx.merge(definition, state), x), rtol=1e-4, atol=1e-4)
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(got[1]))
