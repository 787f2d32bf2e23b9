"""Grouped convolutions on meshes of several axes, where XLA multiplies the gradient of their kernels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from layer_cases import random_input
from sharded_steps import make_mesh

from dyn.ops import dynamic_conv

pytestmark = pytest.mark.matrix

# Groups, input and output features: depthwise, with two filters for each input, and wide groups.
GROUPS = [(4, 4, 4), (4, 4, 8), (2, 8, 4)]
BATCH = PartitionSpec("data")


def make_arrays(groups, in_features, out_features, kernels=1):
    x = random_input(4, 6, 4, in_features)
    w = random_input(kernels, 3, 3, in_features // groups, out_features, seed=2)
    return x, w, random_input(len(x), kernels, seed=3)


def convolve_with_xla(x, w, mix, feature_group_count, lowering):
    del mix, lowering
    axes = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w[0], (1, 1), "SAME", None, None, axes, feature_group_count)


def differentiate(convolve, groups, lowering):
    def loss(x, w, mix):
        y = convolve(x, w, mix, feature_group_count=groups, lowering=lowering)
        return jnp.sum(jnp.sin(y))

    return jax.grad(loss, (0, 1, 2))


def compute_on_mesh(gradient, mesh, x, w, mix, batch=BATCH):
    sharding, replicated = NamedSharding(mesh, batch), NamedSharding(mesh, PartitionSpec())
    placed = jax.device_put(x, sharding), jax.device_put(w, replicated)
    return jax.jit(gradient)(*placed, jax.device_put(mix, replicated))


def assert_all_close(got, want):
    for mine, other in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)


def test_xla_doubles_the_gradient():
    """The control: if it fails, XLA is mended, and `may_use_several_mesh_axes` is not needed any more."""
    arrays, gradient = make_arrays(4, 4, 4), differentiate(convolve_with_xla, 4, "")
    got = compute_on_mesh(gradient, make_mesh((2, 2), "auto"), *arrays)
    np.testing.assert_allclose(got[1], 2 * gradient(*arrays)[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lowering", ["auto", "outputs", "shared", "patches", "taps", "reference"])
@pytest.mark.parametrize("axes", ["auto", "explicit", "explicit, auto"])
def test_every_lowering_has_the_gradient_of_one_device(axes, lowering):
    arrays, gradient = make_arrays(4, 4, 4), differentiate(dynamic_conv, 4, lowering)
    got = compute_on_mesh(gradient, make_mesh((2, 2), axes), *arrays)
    assert_all_close(got, jax.jit(differentiate(dynamic_conv, 4, "reference"))(*arrays))


@pytest.mark.parametrize("kernels", [1, 2])
@pytest.mark.parametrize("case", GROUPS)
@pytest.mark.parametrize("lowering", ["outputs", "reference"])
def test_groups_of_any_width(lowering, case, kernels):
    arrays = make_arrays(*case, kernels)
    got = compute_on_mesh(
        differentiate(dynamic_conv, case[0], lowering), make_mesh((2, 2), "auto"), *arrays
    )
    assert_all_close(got, jax.jit(differentiate(dynamic_conv, case[0], "reference"))(*arrays))


@pytest.mark.parametrize("batch", [PartitionSpec(None, "data"), PartitionSpec("data", "model")])
def test_sharded_space(batch):
    arrays = make_arrays(4, 4, 4)
    gradient = differentiate(dynamic_conv, 4, "outputs")
    got = compute_on_mesh(gradient, make_mesh((2, 2), "auto"), *arrays, batch)
    assert_all_close(got, jax.jit(differentiate(dynamic_conv, 4, "reference"))(*arrays))


def test_shardings_that_only_the_compiler_knows():
    """Shapes and `in_shardings` say nothing to the function that is traced."""
    arrays, gradient = make_arrays(4, 4, 4), differentiate(dynamic_conv, 4, "outputs")
    mesh = make_mesh((2, 2), "auto")
    batch, replicated = (NamedSharding(mesh, spec) for spec in (BATCH, PartitionSpec()))
    compiled = jax.jit(gradient, in_shardings=(batch, replicated, replicated))
    got = compiled.lower(*jax.eval_shape(lambda *a: a, *arrays)).compile()(*arrays)
    assert_all_close(got, jax.jit(differentiate(dynamic_conv, 4, "reference"))(*arrays))


@pytest.mark.parametrize("axes", ["data", "model"])
def test_one_axis_of_several_devices_keeps_the_convolution(axes):
    shape = (4, 1) if axes == "data" else (1, 4)
    x, w, mix = make_arrays(4, 4, 4)
    x = jax.device_put(x, NamedSharding(make_mesh(shape, "auto"), PartitionSpec(axes)))
    convolve = partial(dynamic_conv, feature_group_count=4, lowering="outputs")
    assert "conv_general_dilated" in str(jax.make_jaxpr(convolve)(x, w, mix))
    got = jax.jit(differentiate(dynamic_conv, 4, "outputs"))(x, w, mix)
    here = jax.device_get(x)
    assert_all_close(got, jax.jit(differentiate(dynamic_conv, 4, "reference"))(here, w, mix))


def test_the_manual_axis_of_shard_map_does_not_count():
    x, w, mix = make_arrays(4, 4, 4)
    mesh = make_mesh((2, 2), "auto")
    convolve = partial(dynamic_conv, feature_group_count=4, lowering="outputs")
    specs = (BATCH, PartitionSpec(), BATCH)
    mapped = jax.shard_map(
        convolve, mesh=mesh, in_specs=specs, out_specs=BATCH, axis_names={"data"}
    )
    assert "conv_general_dilated" in str(jax.make_jaxpr(jax.jit(mapped))(x, w, mix))
