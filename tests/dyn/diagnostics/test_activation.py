"""Class activation maps, by hand and against finite differences."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import filled, random_input

from dyn.diagnostics import class_activation, layer_outputs
from dyn.layers import ODConv
from dyn.models import BasicBlock, ResNet


def compile_activation(net, layer):
    return jax.jit(partial(class_activation, net, layer=layer))


class Lower(nn.Module):
    """Returns features and a state, like a block of a ResNet."""

    @nn.compact
    def __call__(self, x):
        return nn.Conv(3, (3,) * (x.ndim - 2), param_dtype=x.dtype)(x), None


class Upper(nn.Module):
    """A dynamic layer: the gradient passes through its attention too."""

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


def test_equals_finite_differences_through_a_dynamic_layer():
    with jax.enable_x64(True):
        x = random_input(2, 4, 3, 2, dtype=np.float64)
        net = Two()
        variables = filled(net, x, dtype=np.float64)
        classes = jnp.array([4, 1])
        maps = compile_activation(net, "lower")(variables, x, classes)

        lower, upper = ({"params": variables["params"][n]} for n in ("lower", "upper"))
        upper |= {"attention": variables["attention"]["upper"]}
        upper_apply = jax.jit(Upper().apply)
        features = np.array(jax.jit(lambda v: Lower().apply(v, x)[0])(lower))
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
    assert maps.dtype == np.float64
    np.testing.assert_allclose(maps, expected, rtol=1e-6, atol=1e-12)


class Linear(nn.Module):
    """Averages features over space, the original case of class activation mapping."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(3, (1, 1), name="features")(x)
        return nn.Dense(4, name="head")(x.mean((1, 2)))


class Pixels(nn.Module):
    """Classifies each pixel."""

    @nn.compact
    def __call__(self, x):
        return nn.Conv(4, (1, 1), name="logits")(nn.Conv(3, (1, 1), name="features")(x))


def test_logits_of_pixels_are_summed():
    net, x = Pixels(), random_input(2, 4, 3, 2)
    variables = filled(net, x)
    params = variables["params"]["features"]
    features = np.asarray(x) @ params["kernel"][0, 0] + params["bias"]
    kernel = variables["params"]["logits"]["kernel"][0, 0]
    maps = compile_activation(net, "features")(variables, x, jnp.array([1, 3]))
    expected = [np.maximum(features[b] @ kernel[:, c], 0) for b, c in enumerate((1, 3))]
    np.testing.assert_allclose(maps, expected, rtol=1e-5, atol=1e-6)


def small_resnet(conv):
    net = ResNet((1, 1), BasicBlock, num_classes=3, width=4, stem="small", conv=conv)
    x = random_input(2, 8, 8, 3)
    return net, filled(net, x), x


def test_maps_of_a_half_precision_network_are_in_float32():
    net, x = Linear(), random_input(1, 5, 3, 2, dtype=jnp.bfloat16)
    variables = filled(net, x, dtype=jnp.bfloat16)
    compute = compile_activation(net, "features")
    assert jax.eval_shape(compute, variables, x, jnp.array([0])).dtype == jnp.float32


def test_unusable_layers_are_errors():
    net, variables, x = small_resnet(nn.Conv)
    classes = jnp.array([0, 1])
    with pytest.raises(ValueError, match="did you mean 'stage1_block1'"):
        class_activation(net, variables, x, classes, layer="stage1_blok1")
    with pytest.raises(ValueError, match="one class for each"):
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
    shapes = layer_outputs(net, variables, x)
    outer = [name for name in shapes if "/" not in name]
    assert outer[:4] == ["stem_conv", "stem_norm", "stage1_block1", "stage2_block1"]
    assert outer[-1] == "head"
    names = list(shapes)
    assert names.index("stage1_block1/conv2") < names.index("stage1_block1")
    assert shapes["stage2_block1"] == (2, 4, 4, 8) and shapes["head"] == (2, 3)
    assert shapes == layer_outputs(net, *jax.eval_shape(lambda *args: args, variables, x))
