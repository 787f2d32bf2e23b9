"""Norms folded into convolutions: the same numbers from fewer arrays, and what must not be folded."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fold_cases import assert_folds
from layer_cases import filled, random_input

from dyn import layers
from dyn.interop import fold_norms
from dyn.layers.norms import BatchNorm
from dyn.models import BasicBlock, ResNet
from dyn.schedules import set_temperature

PICTURES = random_input(2, 6, 6, 3)
SMALL = ResNet((1,), BasicBlock, num_classes=3, width=4, stem="small")


def test_the_scale_is_in_the_candidates_and_the_shift_is_left():
    net = nn.Sequential([layers.DynamicConv(4, (3, 3), num_kernels=2), BatchNorm(True)])
    variables = filled(net, PICTURES)
    folded = fold_norms(net, variables, PICTURES)
    conv, norm = variables["params"]["layers_0"], variables["params"]["layers_1"]
    statistics = variables["batch_stats"]["layers_1"]
    scale = norm["scale"] / np.sqrt(statistics["var"] + 1e-5)
    got = folded.variables["params"]
    np.testing.assert_allclose(got["layers_0"]["kernel"], conv["kernel"] * scale, rtol=1e-6)
    np.testing.assert_allclose(got["layers_0"]["bias"], conv["bias"] * scale, rtol=1e-6)
    np.testing.assert_array_equal(
        got["layers_0"]["attention"]["squeeze"]["kernel"], conv["attention"]["squeeze"]["kernel"]
    )
    shift = norm["bias"] - scale * statistics["mean"]
    np.testing.assert_allclose(got["layers_1"]["bias"], shift, rtol=1e-5)
    assert set(got["layers_1"]) == {"bias"} and not folded.variables["batch_stats"]
    assert folded.folded == ("layers_1",) and not folded.kept


@pytest.mark.parametrize("name", ["ODConv", "SpectralNormConv"])
def test_a_network_computes_the_same_at_any_temperature(name):
    net = SMALL.copy(conv=partial(getattr(layers, name), num_kernels=2))
    folded = assert_folds(net, PICTURES, 3)
    variables = filled(net, PICTURES)
    warm, other = (set_temperature(v, 5.0) for v in (variables, folded.variables))
    expected = jax.jit(net.apply)(warm, PICTURES)
    np.testing.assert_allclose(
        jax.jit(folded.network.apply)(other, PICTURES), expected, rtol=1e-5, atol=1e-5
    )
    assert "u" not in str(jax.tree_util.tree_structure(folded.variables["batch_stats"]))


class Odd(nn.Module):
    """Norms that must stay: shared, with a skip, of a stack, after no convolution, along an axis."""

    @nn.compact
    def __call__(self, x):
        conv, norm = nn.Conv(3, (3, 3), name="conv"), partial(BatchNorm, True)
        x = norm(name="plain")(conv(x)) + conv(x)
        y = nn.Conv(3, (1, 1), name="skipped")(x)
        y = y + norm(name="beside")(y)
        y = norm(name="first")(nn.relu(y))
        y = norm(axis=1, name="rows")(nn.Conv(3, (1, 1), name="before_rows")(y))
        y = norm(name="normed_norm")(nn.WeightNorm(nn.Conv(3, (1, 1)), name="normed")(y))
        y = norm(name="warehouse_norm")(layers.WarehouseConv(3, (1, 1), name="cells")(y))
        pooled = layers.RotatedConv(3, (3, 3), pooling="attention", name="rotated")
        y = norm(name="rotated_norm")(pooled(y))
        stack = nn.scan(
            Body,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=2,
        )
        return stack(name="stack")(y, None)[0]


class Body(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return BatchNorm(True, name="norm")(nn.Conv(3, (1, 1), name="conv")(x)), None


def test_what_cannot_be_folded_stays_and_is_listed():
    net = Odd()
    folded = assert_folds(net, PICTURES, 0)
    reasons = {
        "plain": "more than once",
        "beside": "more than once",
        "first": "does not follow",
        "rows": "axis 1",
        "normed_norm": "does not follow",
        "warehouse_norm": "WarehouseConv",
        "rotated_norm": "by attention",
        "stack/norm": "stack",
    }
    assert set(folded.kept) == set(reasons)
    for name, reason in reasons.items():
        assert reason in folded.kept[name]


def standardise(params):
    """Returns parameters whose kernels have mean 0 and deviation 1 for each feature."""

    def change(path, a):
        axes = tuple(range(a.ndim - 1))
        return (a - a.mean(axes)) / (a.std(axes) + 1e-5) if path[-1].key == "kernel" else a

    return jax.tree_util.tree_map_with_path(change, params)


MAP = partial(nn.map_variables, mapped_collections="params", trans_in_fn=standardise, init=True)


class Mapped(nn.Module):
    """Convolutions whose kernels are mapped: with the norm, alone, in a function; and one that is not."""

    @nn.compact
    def __call__(self, x):
        norm = partial(BatchNorm, True)
        x, _ = nn.remat(MAP(Body))(name="block")(x, None)
        x = norm(name="outside")(MAP(nn.Conv)(3, (3, 3), name="conv")(x))
        x = MAP(lambda body, x: body(x, None)[0])(Body(name="body"), x)
        return norm(name="free")(nn.Conv(3, (3, 3), name="free_conv")(x))


def test_kernels_that_are_mapped_are_left_alone():
    folded = assert_folds(Mapped(), PICTURES, 1)
    assert folded.folded == ("free",)
    assert set(folded.kept) == {"block/norm", "outside", "body/norm"}
    assert all("map_variables" in reason for reason in folded.kept.values())


class NormOfOne(BatchNorm):
    """A norm with the scale 1 + scale."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.zeros, x.shape[-1:])
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:]).value
        var = self.variable("batch_stats", "var", jnp.ones, x.shape[-1:]).value
        return (x - mean) * (1 + scale) / jnp.sqrt(var + self.epsilon)


class NormAndReLU(nn.BatchNorm):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.relu(super().__call__(x, not train))


def test_norms_with_a_formula_of_their_own_stay():
    norms = [NormOfOne(), NormAndReLU(), BatchNorm(True)]
    net = nn.Sequential([layer for norm in norms for layer in (nn.Conv(3, (1, 1)), norm)])
    folded = assert_folds(net, PICTURES, 1)
    assert folded.folded == ("layers_5",)
    assert "NormOfOne" in folded.kept["layers_1"]
    assert "NormAndReLU" in folded.kept["layers_3"]


def test_a_largest_response_is_folded_where_scales_are_positive():
    net = nn.Sequential([layers.RotatedConv(4, (3, 3), pooling="max"), BatchNorm(True)])
    assert_folds(net, PICTURES, 1)
    variables = filled(net, PICTURES)
    variables["params"]["layers_1"]["scale"][1] *= -1
    folded = fold_norms(net, variables, PICTURES)
    assert "by max" in folded.kept["layers_1"]


def test_training_is_refused_before_and_after():
    net = SMALL
    variables = filled(net, PICTURES)
    with pytest.raises(ValueError, match="train=False"):
        fold_norms(net, variables, PICTURES, train=True)
    folded = fold_norms(net, variables, PICTURES, train=False)
    with pytest.raises(ValueError, match="train the network that was folded"):
        jax.eval_shape(partial(folded.network.apply, train=True), folded.variables, PICTURES)


def test_convolutions_that_were_replaced_are_folded():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x))

    net = layers.replace_convs(Net(), partial(layers.ODConv, num_kernels=2))
    assert_folds(net, PICTURES, 1)


def test_norms_keep_their_dtype():
    net = SMALL.copy(dtype=jnp.bfloat16)
    variables = filled(net, PICTURES)
    x = PICTURES.astype(jnp.bfloat16)
    folded = fold_norms(net, variables, x)
    y, expected = folded.network.apply(folded.variables, x), net.apply(variables, x)
    assert y.dtype == expected.dtype
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(
        y.astype(np.float32), expected.astype(np.float32), rtol=0, atol=0.03 * scale
    )
