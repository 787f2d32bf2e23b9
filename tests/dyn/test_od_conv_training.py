"""ODConv in training: norms, bfloat16, transformations, and other people's models."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads
from layer_cases import filled, random_input, shapes_of
from od_conv_oracle import attention_by_numpy, od_conv_by_definition

from dyn.layers import ODConv
from dyn.ops import LOWERINGS
from dyn.schedules import set_temperature

# Training and inference.


def test_statistics_are_the_batch_s_exactly_when_they_can_be_updated():
    x = random_input(5, 5, 5, 4)
    layer = ODConv(6, (3, 3), num_kernels=2)
    variables = filled(layer, x)
    context = np.asarray(x).mean((1, 2))
    running = od_conv_by_definition(
        variables, x, attention_by_numpy(variables, context, (3, 3), statistics="running")
    )
    batch = od_conv_by_definition(
        variables, x, attention_by_numpy(variables, context, (3, 3), statistics="batch")
    )
    assert np.abs(running - batch).max() > 0.01

    def train(layer):
        return jax.jit(partial(layer.apply, mutable=["batch_stats"]))(variables, x)

    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), running, rtol=1e-4, atol=1e-5)
    y, state = train(layer)
    np.testing.assert_allclose(y, batch, rtol=1e-4, atol=1e-5)
    # torch's momentum 0.1 is flax's 0.9.
    z = context @ np.asarray(variables["params"]["attention"]["squeeze"]["kernel"])
    before = variables["batch_stats"]["attention"]["norm"]
    after = state["batch_stats"]["attention"]["norm"]
    for name, now in (("mean", z.mean(0)), ("var", z.var(0))):
        np.testing.assert_allclose(after[name], 0.9 * before[name] + 0.1 * now, rtol=1e-4)

    frozen = ODConv(6, (3, 3), num_kernels=2, use_running_average=True)
    y, state = train(frozen)
    np.testing.assert_allclose(y, running, rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])

    updating = ODConv(6, (3, 3), num_kernels=2, use_running_average=False)
    y, _ = train(updating)
    np.testing.assert_allclose(y, batch, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 5, 5, 4), (5, 5, 4), (1, 1, 5, 5, 4)])
def test_a_batch_of_one_needs_another_norm_to_train(shape):
    x = random_input(*shape)
    layer = ODConv(6, (3, 3), num_kernels=2)
    variables = filled(layer, x)  # initialising is possible
    with pytest.raises(ValueError, match="two or more samples, use attention_norm='layer'"):
        jax.eval_shape(partial(layer.apply, mutable=["batch_stats"]), variables, x)
    out = (*shape[:-1], 6)
    assert jax.eval_shape(layer.apply, variables, x).shape == out  # inference
    for other in (dict(attention_norm="layer"), dict(use_running_average=True)):
        other = ODConv(6, (3, 3), num_kernels=2, **other)
        step = partial(other.apply, mutable=["batch_stats"])
        assert jax.eval_shape(step, filled(other, x), x)[0].shape == out


def test_layer_norm_attention_of_a_sample_is_its_own_and_still_looks_at_it():
    x = random_input(3, 5, 5, 4)
    layer = ODConv(6, (3, 3), num_kernels=3, attention_norm="layer")
    variables = filled(layer, x)
    apply = jax.jit(partial(layer.apply, mutable=["batch_stats", "intermediates"]))
    y, state = apply(variables, x)
    alone, _ = apply(variables, x[1:2])
    np.testing.assert_allclose(alone, y[1:2], rtol=1e-5, atol=1e-6)
    mix = state["intermediates"]["attention"]["weights"][0]["kernel"]
    assert np.abs(mix[0] - mix[1]).max() > 1e-3


def test_what_attention_decided_is_sown():
    x = random_input(3, 6, 5, 4)
    layer = ODConv(6, (3, 2), num_kernels=4)
    _, state = jax.jit(partial(layer.apply, mutable=["intermediates"]))(filled(layer, x), x)
    (weights,) = state["intermediates"]["attention"]["weights"]
    shapes = {name: w.shape for name, w in weights.items()}
    assert shapes == {"channel": (3, 4), "filter": (3, 6), "spatial": (3, 3, 2), "kernel": (3, 4)}
    np.testing.assert_allclose(weights["kernel"].sum(-1), 1.0, rtol=1e-6)
    for w in jax.tree.leaves(weights):
        assert ((w > 0) & (w < 1)).all()


def test_sown_weights_are_only_those_of_the_heads_that_exist():
    x = random_input(3, 5, 5, 4)
    layer = ODConv(4, (1, 1), num_kernels=1)
    step = partial(layer.apply, mutable=["intermediates"])
    _, state = jax.eval_shape(step, filled(layer, x), x)
    assert set(state["intermediates"]["attention"]["weights"][0]) == {"channel", "filter"}


# bfloat16.


def test_parameters_in_bfloat16_are_mixed_in_float32():
    x = random_input(3, 6, 5, 8)
    # Without a norm, for flax's do not take such parameters under strict promotion.
    exact = ODConv(6, (3, 3), num_kernels=3, attention_norm="none")
    layer = exact.copy(param_dtype=jnp.bfloat16, dtype=jnp.float32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(shapes["params"])}
    assert dtypes == {jnp.dtype(jnp.bfloat16)}
    variables = filled(layer, x)
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), variables["params"])
    rounded = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    want = jax.jit(exact.apply)({**variables, "params": rounded}, x)
    got = jax.jit(layer.apply)({**variables, "params": params}, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("input_dtype", [jnp.float32, jnp.bfloat16])
def test_bfloat16_is_for_the_convolution_and_not_for_attention(input_dtype):
    x = random_input(3, 6, 5, 8).astype(input_dtype)
    layer = ODConv(6, (3, 3), num_kernels=3, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}

    exact_x = x.astype(jnp.float32)
    variables = filled(layer, exact_x)
    apply = jax.jit(partial(layer.apply, mutable=["intermediates"]))
    y, state = apply(variables, x)
    assert y.dtype == jnp.bfloat16
    weights = state["intermediates"]["attention"]["weights"][0]
    assert {w.dtype for w in weights.values()} == {jnp.dtype(jnp.float32)}

    exact = ODConv(6, (3, 3), num_kernels=3)
    want, state = jax.jit(partial(exact.apply, mutable=["intermediates"]))(variables, exact_x)
    # The same attention to float32's precision, as it is computed from the same numbers.
    for name, w in state["intermediates"]["attention"]["weights"][0].items():
        np.testing.assert_allclose(weights[name], w, rtol=1e-5)
    # bfloat16 has 8 bits: each of 72 products is off by up to 2^-8 of its size, with signs at random.
    np.testing.assert_allclose(y.astype(jnp.float32), want, atol=0.02 * np.abs(want).max())


def test_bfloat16_inputs_promote_with_float32_parameters_as_in_flax_conv():
    x = jax.ShapeDtypeStruct((2, 5, 5, 4), jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        layers = (nn.Conv(6, (3, 3)), ODConv(6, (3, 3)))
        static, dynamic = (
            jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0] for layer in layers
        )
    assert dynamic.dtype == static.dtype == jnp.float32


# Transformations.


def test_the_same_input_gives_exactly_the_same_output():
    x = random_input(3, 5, 5, 4)
    layer = ODConv(6, (3, 3), num_kernels=2)
    variables = filled(layer, x)
    apply = jax.jit(layer.apply)
    first = apply(variables, x)
    np.testing.assert_array_equal(apply(variables, x), first)


def test_every_parameter_has_a_finite_gradient_that_is_not_zero():
    x = random_input(4, 5, 5, 4)
    layer = ODConv(6, (3, 3), num_kernels=3)
    variables = filled(layer, x)
    params = variables.pop("params")

    @jax.jit
    def gradient(params, x):
        def loss(params):
            y, _ = layer.apply({"params": params, **variables}, x, mutable=["batch_stats"])
            return jnp.sum(y**2)

        return jax.grad(loss)(params)

    for path, g in jax.tree_util.tree_leaves_with_path(gradient(params, x)):
        assert np.isfinite(g).all() and np.abs(g).max() > 0, jax.tree_util.keystr(path)
    # Blank pictures have no variance for the batch norm to divide by.
    for g in jax.tree.leaves(gradient(params, jnp.zeros_like(x))):
        assert np.isfinite(g).all()


def smooth(variables):
    """Keeps every squeezed number far from the kink of ReLU, where finite differences are wrong."""
    norm = variables["params"]["attention"]["norm"]
    norm["bias"] = jnp.full_like(norm["bias"], 8.0)
    return variables


@pytest.mark.parametrize(
    "fields",
    [
        dict(kernel_size=(3, 2), num_kernels=2, strides=2),
        dict(kernel_size=(3, 3), num_kernels=1),
        dict(kernel_size=(1, 1), num_kernels=3),
    ],
)
def test_gradients_by_finite_differences(fields):
    layer = ODConv(3, **fields, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = random_input(2, 4, 3, 2, dtype=np.float64)
        variables = smooth(filled(layer, x, dtype=np.float64))
        params = variables.pop("params")

        @jax.jit
        def function(params, x):
            return layer.apply({"params": params, **variables}, x)

        check_grads(function, (params, x), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_vmap_is_one_more_batch_axis():
    x = random_input(2, 3, 5, 5, 4)
    layer = ODConv(6, (3, 3), num_kernels=2)
    variables = filled(layer, x)
    got = jax.jit(jax.vmap(layer.apply, in_axes=(None, 0)))(variables, x)
    np.testing.assert_allclose(got, jax.jit(layer.apply)(variables, x), rtol=1e-5, atol=1e-6)


def test_vmap_over_parameters_is_an_ensemble():
    x = random_input(3, 5, 5, 4)
    layer = ODConv(6, (3, 3), num_kernels=2)
    members = [filled(layer, x, seed=seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    got = jax.jit(jax.vmap(layer.apply, in_axes=(0, None)))(stacked, x)
    apply = jax.jit(layer.apply)
    for y, variables in zip(got, members, strict=True):
        np.testing.assert_allclose(y, apply(variables, x), rtol=1e-5, atol=1e-6)


def test_remat_changes_neither_names_nor_numbers():
    x = random_input(3, 5, 5, 4)
    plain = ODConv(6, (3, 3), num_kernels=2)
    again = nn.remat(ODConv)(6, (3, 3), num_kernels=2)
    variables = filled(plain, x)
    assert shapes_of(jax.eval_shape(again.init, jax.random.key(0), x)) == shapes_of(variables)

    def value_and_gradient(layer):
        def loss(variables):
            y, state = layer.apply(variables, x, mutable=["batch_stats"])
            return jnp.sum(y**2), state

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        value_and_gradient(again),
        value_and_gradient(plain),
    )


LOWERED = {
    "usual": dict(kernel_size=(3, 2), num_kernels=3, strides=2),
    "one kernel": dict(kernel_size=(3, 3), num_kernels=1),
    "pointwise": dict(kernel_size=(1, 1), num_kernels=3),
}


@functools.cache
def lowered_by_definition(name):
    x = random_input(3, 5, 5, 4)
    layer = ODConv(6, **LOWERED[name])
    variables = filled(layer, x)
    weights = attention_by_numpy(variables, np.asarray(x).mean((1, 2)), layer.kernel_size)
    return variables, x, od_conv_by_definition(variables, x, weights, strides=layer.strides)


# `outputs` cannot do tap attention, and says so: see the errors.
@pytest.mark.parametrize(
    ("name", "lowering"),
    [
        (name, lowering)
        for name in LOWERED
        for lowering in [*LOWERINGS, "auto"]
        if lowering != "outputs" or name == "pointwise"
    ],
)
def test_every_lowering_gives_the_same_numbers(name, lowering):
    variables, x, want = lowered_by_definition(name)
    got = jax.jit(ODConv(6, **LOWERED[name], lowering=lowering).apply)(variables, x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


# Inside other people's models.


def linen_variables(model):
    """The variables of a layer that `ToNNX` made, as linen has them."""
    collections = {nnx.Param: "params", nnx.BatchStat: "batch_stats"}
    variables = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if path[0].startswith("to_nnx"):
            continue  # the streams of random numbers
        at = variables.setdefault(collections.get(type(variable), "attention"), {})
        for key in path[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = variable.get_value()
    return variables


def test_as_a_layer_of_nnx_it_gives_the_same_output_and_trains():
    x = random_input(4, 5, 5, 3)
    layer = ODConv(4, (3, 3), num_kernels=2, lowering="shared")
    model = nnx.bridge.ToNNX(layer, rngs=nnx.Rngs(0)).lazy_init(x)
    variables = linen_variables(model)
    assert shapes_of(variables) == shapes_of(jax.eval_shape(layer.init, jax.random.key(0), x))
    # One is compiled and the other is not.
    want = jax.jit(layer.apply)(variables, x)
    np.testing.assert_allclose(model(x), want, rtol=1e-5, atol=1e-6)

    @nnx.jit
    def train_step(model):
        def loss(model):
            return jnp.mean((model(x, mutable=["batch_stats"]) - 1.0) ** 2)

        value, gradient = nnx.value_and_grad(loss)(model)
        params = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient))
        return value

    first, second = float(train_step(model)), float(train_step(model))
    assert second < first
    after = linen_variables(model)
    assert set(after) == set(variables)
    moved = after["batch_stats"]["attention"]["norm"]["mean"]
    assert np.abs(moved).max() > 0


class ResNetBlock(nn.Module):
    """The block of flax's own ImageNet example, which knows nothing of dynamic convolutions."""

    filters: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x):
        residual = x
        y = self.conv(self.filters, (3, 3), self.strides)(x)
        y = nn.relu(self.norm()(y))
        y = self.conv(self.filters, (3, 3))(y)
        y = self.norm(scale_init=nn.initializers.zeros_init())(y)
        if residual.shape != y.shape:
            residual = self.conv(self.filters, (1, 1), self.strides, name="conv_proj")(residual)
            residual = self.norm(name="norm_proj")(residual)
        return nn.relu(residual + y)


class ResNet(nn.Module):
    """Stem, one block and classifier, in the pattern of flax's ImageNet example."""

    conv: Callable[..., nn.Module] = nn.Conv
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = True):
        conv = partial(self.conv, use_bias=False, dtype=self.dtype)
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        x = conv(8, (3, 3), (2, 2), padding=[(1, 1), (1, 1)], name="conv_init")(x)
        x = nn.relu(norm(name="bn_init")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        x = ResNetBlock(16, strides=(2, 2), conv=conv, norm=norm)(x)
        x = nn.Dense(5, dtype=self.dtype)(jnp.mean(x, axis=(1, 2)))
        return jnp.asarray(x, self.dtype)


def test_trains_inside_flax_s_own_resnet():
    x = random_input(4, 16, 16, 3).astype(jnp.bfloat16)
    # The lowering that compiles quickest.
    conv = partial(ODConv, num_kernels=2, lowering="shared")
    net = ResNet(conv=conv, dtype=jnp.bfloat16)
    variables = filled(net, x)
    convolutions = {"conv_init", "ODConv_0", "ODConv_1", "conv_proj"}
    found = {p.split("/")[-2] for p in shapes_of(variables["params"]) if p.count("attention") == 0}
    assert convolutions < found

    @jax.jit
    def train_step(variables):
        def loss(params):
            logits, state = net.apply(
                {**variables, "params": params}, x, mutable=["batch_stats", "intermediates"]
            )
            return jnp.mean(nn.log_softmax(logits.astype(jnp.float32))[:, 0]), state

        return jax.grad(loss, has_aux=True)(variables["params"])

    # flax's BatchNorm does not run in bfloat16 under strict promotion (see `filled`).
    with jax.numpy_dtype_promotion("standard"):
        gradients, state = train_step(variables)
        logits = jax.eval_shape(partial(net.apply, train=False), variables, x)
    assert logits.dtype == jnp.bfloat16
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    # The layers took batch statistics although nobody told them that this is training.
    after, before = (v["batch_stats"]["conv_init"]["attention"]["norm"] for v in (state, variables))
    assert not np.array_equal(after["mean"], before["mean"])


def test_variables_survive_serialization():
    x = random_input(2, 5, 5, 4)
    layer = ODConv(6, (3, 3), num_kernels=2)
    variables = set_temperature(filled(layer, x), 7.0)
    blank = jax.tree.map(jnp.zeros_like, variables)
    restored = flax.serialization.from_bytes(blank, flax.serialization.to_bytes(variables))
    jax.tree.map(np.testing.assert_array_equal, restored, variables)
    assert restored["attention"]["attention"]["temperature"] == 7.0
