"""Dynamic networks that start as trained static ones: the same function, and attention that learns."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from layer_cases import EVERYWHERE, filled, init_shapes, random_input, shapes_of
from warm_starts import assert_same, initialised

from dyn import layers
from dyn.interop import candidate_kernels, warm_start
from dyn.models import BasicBlock, Net1, Net2, ResNet
from dyn.schedules import set_temperature

KEY = jax.random.key(5)
Small = {"num_classes": 3, "features": 4, "kernel_size": 5}
SERIES = random_input(3, 20, 1)


def warm_series_net(conv, noise, network=Net1, *, awake=False):
    static = network(**Small)
    net = static.copy(conv=partial(conv, num_kernels=4), context="series", bins=4)
    trained = filled(static, SERIES)
    fresh = initialised(net, SERIES)
    return net, warm_start(fresh, trained, awake=awake, noise=noise, key=KEY), trained


@pytest.mark.parametrize("awake", [True, False])
@pytest.mark.parametrize("conv", [layers.DynamicConv, layers.ODConv])
def test_computes_the_same_at_any_temperature(conv, awake):
    net, variables, trained = warm_series_net(conv, 0.5, Net2, awake=awake)
    assert shapes_of(variables) == shapes_of(init_shapes(net, SERIES))
    expected = jax.jit(Net2(**Small).apply)(trained, SERIES)
    apply = jax.jit(net.apply)
    for temperature in (0.1, 1.0, 30.0):
        assert_same(apply(set_temperature(variables, temperature), SERIES), expected)


STATIC = ResNet((1,), BasicBlock, num_classes=3, width=4, stem="small")
PICTURES = random_input(4, 8, 8, 2)


class ConvNorm(nn.Module):
    """A convolution and a norm, whose name and fields are given."""

    name_of_norm: str = "norm1"
    fields: Mapping[str, Any] = flax.core.FrozenDict()
    conv: Any = nn.Conv

    @nn.compact
    def __call__(self, x, train=False):
        x = self.conv(4, (3, 3), name="conv1")(x)
        return nn.BatchNorm(not train, **self.fields, name=self.name_of_norm)(x)


SPECTRAL = partial(layers.SpectralNormConv, num_kernels=2)


@pytest.mark.parametrize("name", ["norm1", "conv1_norm"])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
def test_a_spectral_norm_is_undone_whatever_the_norms_epsilon(name, epsilon):
    x = random_input(2, 6, 6, 3)
    static = ConvNorm(name, flax.core.FrozenDict({"epsilon": epsilon}))
    trained = filled(static, x)
    trained["batch_stats"][name]["var"] *= 1e-2
    net = static.copy(conv=SPECTRAL)
    variables = warm_start(net.init(KEY, x), trained, key=KEY, norm_epsilon=epsilon)
    np.testing.assert_allclose(net.apply(variables, x), static.apply(trained, x), 1e-4, 1e-4)


@pytest.mark.parametrize(("name", "fields"), [("bn", {}), ("norm1", {"use_scale": False})])
def test_a_spectral_norm_that_nothing_undoes_is_an_error(name, fields):
    x = random_input(2, 6, 6, 3)
    static = ConvNorm(name, flax.core.FrozenDict(fields))
    net = static.copy(conv=SPECTRAL)
    with pytest.raises(ValueError, match=r"conv1 is a SpectralNormConv.*norm1 or conv1_norm"):
        warm_start(net.init(KEY, x), static.init(KEY, x), key=KEY)


def test_the_mean_of_candidates_is_the_kernel_of_a_network_in_bfloat16():
    x = random_input(2, 6, 6, 3)
    static, net = nn.Conv(4, (3, 3)), layers.DynamicConv(4, (3, 3), num_kernels=4)
    trained = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), static.init(KEY, x))
    kernels = warm_start(net.init(KEY, x), trained, key=KEY)["params"]["kernel"]
    expected = trained["params"]["kernel"].astype(jnp.float32)
    np.testing.assert_allclose(kernels.mean(axis=0), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["CBAM", "SpectralNormConv", "shared WarehouseConv"])
def test_networks_with_adjusted_layers_compute_the_same(name):
    warehouses = None
    if name == "CBAM":
        net = STATIC.copy(attention=partial(layers.CBAM, reduction=0.5))
    elif name == "SpectralNormConv":
        net = STATIC.copy(conv=partial(layers.SpectralNormConv, num_kernels=2))
    else:
        net = layers.share_kernels(
            lambda conv: STATIC.copy(conv=conv), PICTURES, cell_ratio=2.5, in_ratio=0.5
        )
        warehouses = net.conv
    trained = filled(STATIC, PICTURES)
    fresh = initialised(net, PICTURES)
    variables = warm_start(fresh, trained, noise=0.3, key=KEY, warehouses=warehouses)
    y, expected = jax.jit(lambda v, t: (net.apply(v, PICTURES), STATIC.apply(t, PICTURES)))(
        variables, trained
    )
    assert_same(y, expected)


def test_copies_statistics_and_layers_that_stay_static():
    net = STATIC.copy(conv=partial(layers.ODConv, num_kernels=2))
    trained = filled(STATIC, PICTURES)
    variables = warm_start(initialised(net, PICTURES), trained, noise=0.3, key=KEY)
    flat = flatten_dict(variables)
    for path, value in flatten_dict(trained).items():
        if not path[-2].startswith("conv"):
            np.testing.assert_array_equal(flat[path], value)

    # Also in training, where norms use the statistics of the batch.
    @jax.jit
    def train(variables, trained):
        training = {"train": True, "mutable": ["batch_stats"]}
        return net.apply(variables, PICTURES, **training), STATIC.apply(
            trained, PICTURES, **training
        )

    (y, changed), (expected, moved) = train(variables, trained)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    ours, theirs = changed["batch_stats"]["stem_norm"], moved["batch_stats"]["stem_norm"]
    np.testing.assert_allclose(ours["mean"], theirs["mean"], rtol=1e-5)


@pytest.mark.parametrize("awake", [True, False])
def test_only_the_heads_of_the_attention_change(awake):
    static = Net1(**Small)
    fresh = filled(static.copy(conv=layers.ODConv), SERIES)  # another number everywhere
    variables = warm_start(fresh, filled(static, SERIES, seed=7), awake=awake, noise=0)
    before = flatten_dict(fresh, sep="/")
    heads = ("channel/kernel", "filter/kernel", "spatial/kernel")
    if not awake:
        heads += ("attention/kernel/kernel",)
    for path, value in flatten_dict(variables, sep="/").items():
        if path.endswith(heads):
            assert not value.any()
        else:
            assert np.array_equal(value, before[path]) == ("attention/" in path), path


def test_candidates_lie_around_the_kernel_at_the_distance_of_the_noise():
    x = random_input(2, 16, 32)
    trained, fresh = (
        filled(nn.Conv(8, (9,)), x),
        filled(layers.DynamicConv(8, (9,), num_kernels=4), x),
    )
    trained["params"]["kernel"] = trained["params"]["kernel"] * np.float32([*range(8)])
    start = partial(warm_start, fresh, trained, awake=False, noise=0.2)
    variables = start(key=KEY)
    kernel, candidates = trained["params"]["kernel"], variables["params"]["kernel"]
    np.testing.assert_allclose(candidates.mean(0), kernel, rtol=1e-5, atol=1e-5)
    distance = np.sqrt(np.mean((candidates - kernel) ** 2, axis=(1, 2)))  # [K, O]
    size = np.sqrt(np.mean(kernel**2, axis=(0, 1)))
    np.testing.assert_allclose(distance, np.broadcast_to(0.2 * size, (4, 8)), rtol=0.15)
    bias = np.broadcast_to(trained["params"]["bias"], (4, 8))
    np.testing.assert_array_equal(variables["params"]["bias"], bias)
    np.testing.assert_array_equal(candidates, start(key=KEY)["params"]["kernel"])
    other = start(key=jax.random.key(6))["params"]["kernel"]
    assert not np.allclose(candidates, other)


def test_layers_of_one_shape_get_different_noise():
    x = random_input(2, 16, 4)
    static = Net2(**Small)
    trained = filled(static, x)
    trained["params"]["conv2"] = trained["params"]["conv1"]
    fresh = filled(static.copy(conv=layers.DynamicConv), x)
    params = warm_start(fresh, trained, awake=False, key=KEY)["params"]
    assert not np.allclose(params["conv1"]["kernel"], params["conv2"]["kernel"], atol=1e-3)


def gradient_of(net):
    """A compiled function from parameters and variables to the gradient of a loss."""

    @jax.jit
    @jax.grad
    def gradient(params, variables):
        logits = net.apply({**variables, "params": params}, SERIES)
        return jnp.sum(logits * jnp.cos(jnp.arange(9, dtype=logits.dtype)).reshape(3, 3))

    return gradient


def test_neutral_attention_learns_only_from_different_candidates():
    """Ten steps of descent: without noise the layer is still a static convolution, unless it is awake."""
    net, _, _ = warm_series_net(layers.DynamicConv, 0.0)
    gradient = gradient_of(net)
    apply = jax.jit(partial(net.apply, mutable=["intermediates"]))

    def spread_after_training(noise, **awake):
        _, variables, _ = warm_series_net(layers.DynamicConv, noise, **awake)
        params = variables["params"]
        head = gradient(params, variables)["conv1"]["attention"]["kernel"]["kernel"]
        for _ in range(10):
            grads = gradient(params, variables)
            params = jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)
        moved = params["conv1"]["kernel"] - variables["params"]["conv1"]["kernel"]
        assert float(jnp.abs(moved).max()) > 0.1
        _, state = apply({**variables, "params": params}, SERIES)
        weights = state["intermediates"]["conv1"]["attention"]["weights"][0]["kernel"]
        spreads = jnp.abs(head), jnp.ptp(moved, axis=0), jnp.ptp(weights, axis=0)
        return [float(spread.max()) for spread in spreads]

    assert max(spread_after_training(0.0)) < 1e-5
    assert min(spread_after_training(0.5)) > 1e-4
    head, moved, weights = spread_after_training(0.0, awake=True)
    # The weights of equal candidates have no gradient, but the candidates learn from different inputs.
    assert head < 1e-5 and min(moved, weights) > 1e-4


@pytest.mark.parametrize("num_kernels", [2, 3])
def test_experts_in_pairs_are_awake(num_kernels):
    static, net = nn.Conv(4, (5,)), layers.CondConv(4, (5,), num_kernels=num_kernels)
    trained, fresh = filled(static, SERIES), net.init(KEY, SERIES)
    variables = warm_start(fresh, trained)
    y, state = net.apply(variables, SERIES, mutable=["intermediates"])
    assert_same(y, static.apply(trained, SERIES))
    weights = state["intermediates"]["attention"]["weights"][0]["kernel"]
    np.testing.assert_allclose(weights.sum(axis=1), num_kernels / 2, rtol=1e-6)
    assert np.ptp(weights[:, :2], axis=0).min() > 1e-3
    assert np.ptp(variables["params"]["kernel"], axis=0).max() == 0  # and no key was needed


def test_odconv_learns_with_frozen_candidates_and_without_noise():
    net, variables, _ = warm_series_net(layers.ODConv, 0.0)
    params, gradient = variables["params"], gradient_of(net)
    assert (
        float(jnp.abs(gradient(params, variables)["conv1"]["attention"]["kernel"]["kernel"]).max())
        < 1e-5
    )
    frozen = candidate_kernels(params)
    freeze = optax.masked(optax.set_to_zero(), candidate_kernels)
    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.01), freeze)

    @jax.jit
    def step(params):
        updates, _ = optimizer.update(gradient(params, variables), optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    params = step(step(params))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), params, variables["params"])
    for path, stays in flatten_dict(frozen, sep="/").items():
        assert not (stays and flatten_dict(moved, sep="/")[path]), path
    assert moved["head"]["kernel"] and moved["conv1"]["attention"]["squeeze"]["kernel"]
    for name in ("channel", "filter", "spatial"):
        assert moved["conv1"]["attention"][name]["kernel"]
    # The labels of optax.multi_transform do, too.
    optax.multi_transform({True: optax.set_to_zero(), False: optax.sgd(0.1)}, frozen).init(params)


@pytest.mark.parametrize(
    ("conv", "kernel"),
    [
        *(
            (conv, "kernel")
            for conv in (
                layers.DynamicConv,
                layers.ODConv,
                layers.CondConv,
                layers.PixelDynamicConv,
                layers.FrequencyDynamicConv,
            )
        ),
        *((conv, "kernel") for conv in (layers.GatedConv, layers.DCDConv)),
        (partial(layers.FDConv, num_kernels=2, **EVERYWHERE), "spectrum"),
    ],
)
def test_candidate_kernels_are_those_of_dynamic_layers(conv, kernel):
    x = jax.ShapeDtypeStruct((2, 20, 3), jnp.float32)
    params = init_shapes(Net2(**Small, conv=conv), x)["params"]
    marked = flatten_dict(candidate_kernels(params), sep="/")
    assert marked.keys() == shapes_of(params).keys()
    assert {path for path, frozen in marked.items() if frozen} == {
        f"conv{layer}/{name}" for layer in (1, 2) for name in (kernel, "bias")
    }


def test_static_layers_and_dynamic_classifiers_are_no_candidates():
    # `attention` is also the name of a block's last layer, here next to a static conv1.
    net = STATIC.copy(dense=layers.DCDDense, attention=lambda name: nn.Dense(4, name=name))
    params = init_shapes(net, PICTURES)["params"]
    assert {"attention", "conv1"} < set(params["stage1_block1"]) and "attention" in params["head"]
    assert not any(jax.tree.leaves(candidate_kernels(params)))


def test_takes_frozen_dicts_and_empty_collections():
    trained, fresh = (
        filled(Net1(**Small), SERIES),
        filled(Net1(**Small, conv=layers.DynamicConv), SERIES),
    )
    plain = warm_start(fresh, trained, noise=0)
    wrapped = warm_start(
        flax.core.freeze({**fresh, "batch_stats": {}}),
        flax.core.freeze({**trained, "batch_stats": {}, "attention": {}}),
        noise=0,
    )
    assert wrapped["batch_stats"] == {}
    jax.tree.map(np.testing.assert_array_equal, plain["params"], wrapped["params"])


def test_can_be_compiled():
    _, variables, trained = warm_series_net(layers.ODConv, 0.2)
    compiled = jax.jit(partial(warm_start, awake=False, noise=0.2))(variables, trained, key=KEY)
    for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(compiled), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# Errors


class RoutedElsewhere(nn.Module):
    """A block that routes for its convolution."""

    @nn.compact
    def __call__(self, x):
        router = nn.Dense(3, name="router")
        return layers.CondConv(4, (3,), num_kernels=3, router=router, name="conv1")(x)


class Static(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Conv(4, (3,), name="conv1")(x)


@pytest.mark.parametrize(
    ("dynamic", "static", "message"),
    [
        (
            Net1(**Small, conv=layers.DynamicConv),
            Net2(**Small),
            "params/conv2/bias.* not in the dynamic",
        ),
        (
            Net1(**Small, conv=layers.DynamicConv),
            Net1(**Small | {"kernel_size": 3}),
            r"conv1/kernel has shape \(3, 1, 4\) .* params/conv1/kernel of shape \(4, 5, 1, 4\)",
        ),
        (
            Net1(**Small, conv=partial(layers.FDConv, num_kernels=2, **EVERYWHERE)),
            Net1(**Small | {"kernel_size": 3}),
            r"conv1/kernel has shape \(3, 1, 4\) .* params/conv1/spectrum of shape \(4, 3, 2\)",
        ),
        (
            Net1(**Small, conv=partial(layers.WarehouseConv, cell_ratio=0.5)),
            Net1(**Small),
            "conv1/warehouse/cells has 2 cells, too few for the 5 blocks",
        ),
        (RoutedElsewhere(), Static(), "conv1/bias has 3 candidates .* another layer"),
    ],
)
def test_variables_that_do_not_fit_are_errors(dynamic, static, message):
    with pytest.raises(ValueError, match=message):
        warm_start(filled(dynamic, SERIES), filled(static, SERIES), noise=0)


def test_missing_layers_keys_and_variables_are_errors():
    dynamic, static = (
        filled(Net2(**Small, conv=layers.ODConv), SERIES),
        filled(Net2(**Small), SERIES),
    )
    warm_start(dynamic, static)  # equal candidates have no noise
    with pytest.raises(ValueError, match="needs a key"):
        warm_start(dynamic, static, awake=False)
    with pytest.raises(ValueError, match="noise=-1"):
        warm_start(dynamic, static, noise=-1, key=KEY)
    with pytest.raises(ValueError, match="variables of both"):
        warm_start(dynamic["params"], static["params"], noise=0)
    del static["params"]["conv2"]
    with pytest.raises(ValueError, match=r"conv2, .* \(4, 5, 4, 4\), is not in the static"):
        warm_start(dynamic, static, noise=0)


def test_stacked_layers_are_started_one_by_one():
    """There are as many layers as candidates, for which they could be taken."""

    def make_stack(layer):
        variables = {"params": {"conv": filled(layer, jnp.ones((2, 5, 3)))["params"]}}
        return jax.tree.map(lambda leaf: np.stack([leaf] * 2), variables)

    static = make_stack(nn.Conv(4, (3,)))
    dynamic = make_stack(layers.ODConv(4, (3,), num_kernels=2))
    with pytest.raises(ValueError, match=r"several layers.*jax\.vmap"):
        warm_start(dynamic, static, noise=0)
    started = jax.vmap(partial(warm_start, noise=0))(dynamic, static)
    assert jax.tree.map(jnp.shape, started) == jax.tree.map(jnp.shape, dynamic)
