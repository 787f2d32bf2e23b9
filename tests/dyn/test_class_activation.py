"""Class-activation maps and attention statistics, by hand and against finite differences."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import filled, random_input

from dyn.diagnostics import attention_statistics, class_activation, layer_outputs, sown_weights
from dyn.layers import CBAM, DynamicConv, GatedConv, ODConv, PixelDynamicConv, SqueezeExcite
from dyn.models import BasicBlock, ResNet


class Lower(nn.Module):
    """As a block of a ResNet: features, and a state beside them."""

    @nn.compact
    def __call__(self, x):
        return nn.Conv(3, (3,) * (x.ndim - 2), param_dtype=x.dtype)(x), None


class Upper(nn.Module):
    """A dynamic layer: the gradient goes through its attention, too."""

    @nn.compact
    def __call__(self, x):
        x = ODConv(
            4, (3,) * (x.ndim - 2), num_kernels=2, attention_norm="none", param_dtype=x.dtype
        )(x)
        x = nn.tanh(x).mean(tuple(range(1, x.ndim - 1)))
        return nn.Dense(5, param_dtype=x.dtype)(x)


class Two(nn.Module):
    """Features, then logits."""

    def setup(self):
        self.lower, self.upper = Lower(), Upper()

    def __call__(self, x):
        return self.upper(self.lower(x)[0])


@pytest.mark.parametrize("spatial", [(4, 3), (7,)])
def test_equals_finite_differences_through_a_dynamic_layer(spatial):
    with jax.enable_x64(True):
        x = random_input(2, *spatial, 2, dtype=np.float64)
        net = Two()
        variables = filled(net, x, dtype=np.float64)
        classes = jnp.array([4, 1])
        found = class_activation(net, variables, x, classes, layer="lower")

        upper = {name: collection["upper"] for name, collection in variables.items()}
        upper_apply = jax.jit(Upper().apply)
        features = np.array(net.apply(variables, x, method=lambda net, x: net.lower(x)[0]))
        gradient = np.zeros_like(features)
        for place in np.ndindex(features.shape):
            difference = np.zeros_like(features)
            difference[place] = 1e-5
            above, below = (upper_apply(upper, features + s * difference) for s in (1, -1))
            sample = place[0]
            gradient[place] = (above - below)[sample, classes[sample]] / 2e-5

    expected = np.zeros(features.shape[:-1])
    for sample in range(2):
        weights = gradient[sample].reshape(-1, 3).mean(axis=0)
        expected[sample] = np.maximum(features[sample] @ weights, 0)
    assert expected.max() > 0 and expected.min() == 0
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


class Linear(nn.Module):
    """Averages features over space, as class activation mapping began."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(3, (1, 1), name="features")(x)
        return nn.Dense(4, name="head")(x.mean((1, 2)))


def test_of_a_linear_classifier_of_averages_it_is_its_own_sum_at_each_place():
    net, x = Linear(), random_input(2, 5, 3, 2)
    variables = filled(net, x)
    params = variables["params"]
    features = np.einsum("bhwi,io->bhwo", x, params["features"]["kernel"][0, 0])
    features += params["features"]["bias"]
    for classes in ([0, 3], [2, 2]):
        sums = np.einsum("bhwc,cb->bhw", features, params["head"]["kernel"][:, classes])
        # dy / dA is the classifier's number over the 15 places, at each of them.
        found = class_activation(net, variables, x, jnp.array(classes), layer="features")
        np.testing.assert_allclose(found, np.maximum(sums, 0) / 15, rtol=1e-5, atol=1e-6)


class Pixels(nn.Module):
    """A class for each pixel."""

    @nn.compact
    def __call__(self, x):
        return nn.Conv(4, (1, 1), name="logits")(nn.Conv(3, (1, 1), name="features")(x))


def test_where_pixels_have_classes_it_is_of_their_sum():
    net, x = Pixels(), random_input(2, 4, 3, 2)
    variables = filled(net, x)
    features = net.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])[1]
    features = np.asarray(features["intermediates"]["features"]["__call__"][0])
    kernel = variables["params"]["logits"]["kernel"][0, 0]
    found = class_activation(net, variables, x, jnp.array([1, 3]), layer="features")
    expected = [np.maximum(features[b] @ kernel[:, c], 0) for b, c in enumerate((1, 3))]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def small_resnet(conv, **fields):
    net = ResNet((1, 1), BasicBlock, num_classes=3, width=4, stem="small", conv=conv, **fields)
    x = random_input(2, 8, 8, 3)
    return net, filled(net, x), x


@pytest.mark.parametrize(
    ("conv", "layer", "size"),
    [
        (PixelDynamicConv, "stage2_block1", 4),
        (partial(GatedConv, num_kernels=2), "stage1_block1", 8),
    ],
)
def test_layers_of_a_resnet_have_maps_of_their_own_size(conv, layer, size):
    net, variables, x = small_resnet(conv)
    maps = jax.jit(partial(class_activation, net, layer=layer))
    found = maps(variables, x, jnp.array([0, 2]))
    assert found.shape == (2, size, size)
    assert np.all(found >= 0) and np.all(np.isfinite(found))
    # An input's map is its own, whatever is beside it and asked about it.
    other = maps(variables, x.at[0].add(1.0), jnp.array([1, 2]))
    np.testing.assert_allclose(found[1], other[1], rtol=1e-4, atol=1e-6)
    assert not np.allclose(found[0], other[0], rtol=1e-2)


def test_maps_of_a_half_precision_network_are_in_float32():
    net, x = Linear(), random_input(1, 5, 3, 2).astype(jnp.bfloat16)
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), filled(net, x))
    found = class_activation(net, variables, x, jnp.array([0]), layer="features")
    assert found.dtype == jnp.float32


def test_a_layer_that_does_not_fit_is_named():
    net, variables, x = small_resnet(nn.Conv)
    classes = jnp.array([0, 1])
    with pytest.raises(ValueError, match="no layer 'stage1_blok1'; did you mean 'stage1_block1'"):
        class_activation(net, variables, x, classes, layer="stage1_blok1")
    with pytest.raises(ValueError, match="one class for each of the 2 inputs"):
        class_activation(net, variables, x, classes[:1], layer="stage1_block1")

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            shared = nn.Dense(3, name="shared")
            return shared(shared(x)).mean((1, 2))

    x = random_input(2, 2, 2, 3)
    with pytest.raises(ValueError, match="applies shared 2 times"):
        class_activation(Twice(), filled(Twice(), x), x, classes, layer="shared")


def test_layers_are_listed_in_the_order_in_which_they_return():
    net, variables, x = small_resnet(nn.Conv)
    found = layer_outputs(net, variables, x)
    outer = [name for name in found if "/" not in name]
    assert outer[:4] == ["stem_conv", "stem_norm", "stage1_block1", "stage2_block1"]
    assert outer[-1] == "head"
    names = list(found)
    assert names.index("stage1_block1/conv2") < names.index("stage1_block1")
    assert found["stage2_block1"] == (2, 4, 4, 8) and found["head"] == (2, 3)
    assert found == layer_outputs(net, *jax.eval_shape(lambda *args: args, variables, x))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"conv": PixelDynamicConv},
            {"stage2_block1/conv1": {"kernel": (2, 4), "pixel": (2, 4, 4, 4)}},
        ),
        ({"conv": DynamicConv}, {"stage2_block1/conv2": {"kernel": (2, 4)}}),
        (
            {"conv": nn.Conv, "attention": CBAM},
            {"stage2_block1": {"channel": (2, 8), "spatial": (2, 4, 4)}},
        ),
        ({"conv": nn.Conv, "attention": SqueezeExcite}, {"stage1_block1": {"channel": (2, 4)}}),
    ],
)
def test_sown_weights_are_found_by_layer_and_kind(fields, expected):
    net, variables, x = small_resnet(**fields)
    _, state = net.apply(variables, x, mutable=["intermediates"])
    found = sown_weights(state["intermediates"])
    shapes = {layer: {k: w.shape for k, w in kinds.items()} for layer, kinds in found.items()}
    assert shapes.items() >= expected.items()
    assert all(layer.startswith("stage") for layer in shapes)


def statistics_by_loops(weights, dead_below):
    rows = [np.asarray(row, np.float64) for row in np.reshape(weights, (-1, np.shape(weights)[-1]))]
    shares = [np.abs(row) / (np.abs(row).sum() or 1.0) for row in rows]
    number = len(rows[0])
    entropies = [-sum(p * np.log(p) for p in row if p > 0) / np.log(number) for row in shares]
    return {
        "mean": np.mean(rows, axis=0),
        "spread": np.mean([np.std([row[k] for row in rows]) for k in range(number)]),
        "entropy": np.mean(entropies),
        "dead": [max(row[k] for row in shares) < dead_below for k in range(number)],
    }


@pytest.mark.parametrize("shape", [(7, 4), (3, 2, 5, 4)])
@pytest.mark.parametrize("kind", ["mixture", "gates", "signed"])
def test_statistics_equal_a_loop_over_inputs(rng, shape, kind):
    weights = {
        "mixture": lambda: rng.dirichlet([0.1, 1, 1, 1], shape[:-1]),
        "gates": lambda: rng.integers(0, 2, shape) * np.array([1, 1, 0, 1]),
        "signed": lambda: rng.normal(size=shape) * np.array([1, 0.001, 1, 1]),
    }[kind]().astype(np.float32)
    weights[0] = 0.0  # all gates off
    found = attention_statistics(jnp.asarray(weights), dead_below=0.02)
    for name, expected in statistics_by_loops(weights, 0.02).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_statistics_of_the_extremes():
    alike = attention_statistics(jnp.full((5, 4), 0.25))
    assert float(alike["entropy"]) == pytest.approx(1) and float(alike["spread"]) == 0
    one = attention_statistics(jnp.eye(4)[jnp.array([0, 1, 0])])
    assert float(one["entropy"]) == 0 and one["dead"].tolist() == [False, False, True, True]
    single = attention_statistics(jnp.ones((3, 1)))
    assert float(single["entropy"]) == 0 and single["dead"].tolist() == [False]
    for weights in (jnp.ones(4), jnp.ones((0, 4))):
        with pytest.raises(ValueError, match="weights must be"):
            attention_statistics(weights)
