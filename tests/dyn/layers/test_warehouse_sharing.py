"""Networks whose convolutions share warehouses: their parameters, their gradients, and the plan."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import init_shapes, random_input, shapes_of

from dyn.layers import KernelShape, Warehouse, WarehouseConv, Warehouses, by_stage, share_kernels
from dyn.models import BasicBlock, MobileNetV2, ResNet


def small_resnet(x, **fields):
    """Returns a ResNet of two stages whose convolutions and shortcuts share warehouses."""
    small = {"width": 4, "stem": "small", "num_classes": 3, **fields.pop("network", {})}
    return share_kernels(
        lambda conv: ResNet((1, 1), BasicBlock, **small, conv=conv, shortcut=conv), x, **fields
    )


class Nested(nn.Module):
    """Contains a network, whose paths are then longer."""

    network: nn.Module

    @nn.compact
    def __call__(self, x, train=False):
        return self.network(x, train)


def test_a_nested_network_shares_by_stage():
    x = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)
    params = init_shapes(Nested(small_resnet(x)), x)["params"]
    assert set(params["network"]["conv"]) == {"stage1", "stage2"}


class Unnamed(nn.Module):
    """Has a convolution, in a block of its own if there are inner features, and one after that."""

    conv: nn.Module
    features: int
    inner: int | None = None

    @nn.compact
    def __call__(self, x, train=False):
        if self.inner:
            x = Unnamed(self.conv, self.inner)(x)
        return self.conv(self.features, (3, 3))(x)


@pytest.mark.parametrize("wrap", [lambda net: net, Nested], ids=["alone", "nested"])
@pytest.mark.parametrize(
    ("features", "share", "places"),
    [
        (4, lambda path: "all", [("all", 0), ("all", 1)]),
        (8, lambda path: "all", [("all", 0), ("all", 1)]),
        (8, lambda path: "all" if len(path) == 2 else None, [("all", 0), None]),
        (8, lambda path: "all" if len(path) == 1 else None, [None, ("all", 0)]),
    ],
    ids=["of one shape", "of two shapes", "the outer one static", "the inner one static"],
)
def test_a_layer_is_not_taken_for_an_inner_one_of_its_name(features, share, places, wrap):
    found = []

    def record(method, args, kwargs, context):
        result = method(*args, **kwargs)
        if isinstance(context.module, Warehouses) and context.method_name == "find":
            found.append(result and (result[0].name, result[1]))
        return result

    x = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
    net = share_kernels(lambda conv: Unnamed(conv, features, inner=4), x, share=share)
    with nn.intercept_methods(record):
        init_shapes(wrap(net), x)
    assert found == places


def test_the_gradient_of_shared_cells_is_the_sum_over_layers():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, y):
            cells = Warehouse((KernelShape((3,), 4, 4),) * 2, name="warehouse")
            conv = partial(WarehouseConv, 4, (3,), attention_norm="batch", warehouse=cells)
            first, second = conv(place=0, name="first")(x), conv(place=1, name="second")(y)
            return first.sum(), second.sum()

    x, y = random_input(2, 6, 4), random_input(2, 6, 4, seed=2)
    net = Two()
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, y)
    variables = jax.tree.map(lambda leaf: 0.1 * random_input(*leaf.shape), shapes)
    variables["batch_stats"] = jax.tree.map(jnp.ones_like, variables["batch_stats"])
    assert sum("cells" in name for name in shapes_of(variables["params"])) == 1

    def cells_gradient(compute_loss):
        def loss(params):
            return compute_loss(*net.apply({**variables, "params": params}, x, y))

        return jax.jit(jax.grad(loss))(variables["params"])["warehouse"]["cells"]

    first, second = cells_gradient(lambda a, b: a), cells_gradient(lambda a, b: b)
    assert np.abs(first).max() > 0 and np.abs(second).max() > 0
    both = cells_gradient(lambda a, b: a + b)
    np.testing.assert_allclose(both, first + second, rtol=1e-4, atol=1e-5)


def test_a_network_may_pass_contexts_to_its_convolutions():
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    net = small_resnet(x, network={"context": "block"})
    attention = init_shapes(net, x)["params"]["stage2_block1"]["conv2"]["attention"]
    assert attention["squeeze"]["kernel"].shape == (4, 16)  # the block's input and not the layer's


# Plans.


def test_a_network_of_shared_kernels_is_hashable():
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    small = {
        "stage_sizes": (1,),
        "block": BasicBlock,
        "num_classes": 3,
        "width": 4,
        "stem": "small",
    }
    net = share_kernels(lambda conv: ResNet(**small, conv=conv), x, attention_norm="layer")
    assert isinstance(hash(net), int) and net.conv.fields["attention_norm"] == "layer"


def test_a_convolution_in_no_stage_needs_share():
    with pytest.raises(ValueError, match="no stage"):
        by_stage(("Conv_0",))
    x = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)

    class Unnamed(nn.Module):
        conv: nn.Module

        @nn.compact
        def __call__(self, x):
            x = self.conv(4, (3, 3))(x)
            return self.conv(8, (3, 3))(x)

    with pytest.raises(ValueError, match="no stage"):
        share_kernels(Unnamed, x)
    net = share_kernels(Unnamed, x, share=lambda path: "all")
    shapes = shapes_of(init_shapes(net, x)["params"])
    assert shapes["conv/all/cells"] == (27, 4, 4)
    assert shapes["WarehouseConv_1/attention/cell/bias"] == (18 * 28,)


X = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)


def test_options_may_differ_between_warehouses():
    options = {"cell_ratio": [1, 2], "out_ratio": (0.5, 1), "spatial_partition": (True, False)}
    by_kernel = {"conv1": "first", "conv2": "second", "downsample_conv": None}
    net = small_resnet(
        X,
        network={"width": 64},
        share=lambda path: by_kernel[path[-1]],
        reduction=(1 / 2, 1 / 4),
        **options,
    )
    params = init_shapes(net, X)["params"]
    shapes = shapes_of(params)
    assert shapes["conv/first/cells"] == (2 * (9 + 2 * 9), 64, 32)
    assert shapes["conv/second/cells"] == (2 * (1 + 4), 3, 3, 64, 64)
    assert shapes["stage2_block1/downsample_conv/kernel"] == (1, 1, 64, 128)  # static
    squeezed = [
        shapes[f"stage2_block1/{conv}/attention/squeeze/kernel"] for conv in ("conv1", "conv2")
    ]
    assert squeezed == [(64, 32), (128, 32)]
    for option in ("cell_ratio", "reduction"):
        with pytest.raises(ValueError, match=f"{option} has 3 values for the 2 warehouses stage1"):
            init_shapes(small_resnet(X, **{option: (1, 1, 1)}), X)


def test_a_static_layer_of_a_shared_network_is_a_convolution():
    net = small_resnet(X, share=lambda path: None)
    x = random_input(*X.shape)
    variables = jax.jit(net.init)(jax.random.key(0), x)
    static = net.clone(conv=nn.Conv, shortcut=nn.Conv)
    want = jax.jit(static.apply)(variables, x)
    np.testing.assert_allclose(jax.jit(net.apply)(variables, x), want, rtol=1e-4, atol=1e-4)


def test_a_classifier_may_share():
    def network(conv):
        return MobileNetV2(num_classes=12, conv=conv, dense=conv, width=0.1, stem="small")

    share = lambda path: path[0] if path[0] in ("last_conv", "head") else None  # noqa: E731
    net = share_kernels(network, X, share=share, in_ratio=(1, 1 / 4))
    shapes = shapes_of(init_shapes(net, X)["params"])
    assert shapes["conv/head/cells"] == (4, 320, 12) and shapes["head/bias"] == (12,)
    assert "head/attention/cell/kernel" in shapes and "stem_conv/kernel" in shapes


def test_a_convolution_that_was_not_planned_is_refused():
    class Elsewhere(nn.Module):
        conv: nn.Module

        @nn.compact
        def __call__(self, x):
            return self.conv(8, (3, 3), name="new")(x)

    plan = (("all", ((("old",), KernelShape((3, 3), 4, 8)),)),)
    with pytest.raises(ValueError, match=r"no warehouse .* new"):
        init_shapes(Elsewhere(Warehouses(plan)), jnp.ones((2, 5, 5, 4)))
