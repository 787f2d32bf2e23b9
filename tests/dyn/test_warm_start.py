"""A dynamic network that starts as a trained static one: same function, and what can learn from there."""

from functools import partial

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from layer_cases import filled, random_input, shapes_of

from dyn.interop import candidate_kernels, warm_start
from dyn.layers import (
    CondConv,
    DCDConv,
    DCDDense,
    DynamicConv,
    FDConv,
    GatedConv,
    ODConv,
    PixelDynamicConv,
    WarehouseConv,
)
from dyn.models import BasicBlock, Net1, Net2, ResNet
from dyn.schedules import set_temperature

KEY = jax.random.key(5)
Small = {"num_classes": 3, "features": 4, "kernel_size": 5}


def new(net, x, seed=0):
    """What `init` makes, and for the norms and biases of attention too: nothing is made up."""
    return jax.jit(net.init)(jax.random.key(seed), x)


def assert_same(y, expected):
    """To float32 precision, compared with the largest output."""
    assert float(jnp.abs(expected).mean()) > 0.1
    tolerance = 2e-5 * float(jnp.abs(expected).max())
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("conv", [DynamicConv, ODConv])
@pytest.mark.parametrize("network", [Net1, Net2])
def test_a_warm_started_network_is_the_static_one_at_any_temperature(network, conv, noise):
    x = random_input(3, 20, 2)
    static = network(**Small)
    trained = filled(static, x)
    net = static.copy(conv=partial(conv, num_kernels=4), context="series", bins=4)
    fresh = new(net, x)
    assert not np.allclose(net.apply(fresh, x), static.apply(trained, x), atol=0.1)
    variables = warm_start(fresh, trained, noise=noise, key=KEY)
    assert shapes_of(variables) == shapes_of(fresh)
    expected = static.apply(trained, x)
    apply = jax.jit(net.apply)
    for temperature in (0.1, 1.0, 30.0):
        assert_same(apply(set_temperature(variables, temperature), x), expected)


@pytest.mark.parametrize(
    "layer",
    [
        partial(DynamicConv, num_kernels=3),
        partial(DynamicConv, num_kernels=1),
        partial(DynamicConv, num_kernels=3, use_bias=False),
        partial(ODConv, num_kernels=3),
        partial(ODConv, num_kernels=1, attention_norm="layer", use_bias=False),
        partial(ODConv, kernel_size=(1, 1)),  # without attention over positions
        partial(ODConv, features=6, feature_group_count=6),  # without attention over filters
        partial(ODConv, feature_group_count=2, attention_norm="none"),
        partial(PixelDynamicConv, num_kernels=3),
        partial(CondConv, num_kernels=3),
        partial(GatedConv, num_kernels=3),
        partial(GatedConv, num_kernels=3, static=True),
        partial(GatedConv, granularity="filter"),
        partial(GatedConv, granularity="slice"),
        DCDConv,
        partial(FDConv, num_kernels=3),
        partial(FDConv, num_kernels=3, local=False),
    ],
)
def test_every_method_begins_as_the_static_convolution(layer):
    x = random_input(3, 7, 8, 6)
    layer = partial(layer)
    fields = {"features": 4, "kernel_size": (3, 2)} | layer.keywords
    net = layer(**{k: fields[k] for k in ("features", "kernel_size")})
    shared = ("features", "kernel_size", "feature_group_count", "use_bias")
    static = nn.Conv(**{k: fields[k] for k in shared if k in fields})
    trained = filled(static, x)
    variables = warm_start(new(net, x), trained, noise=0.3, key=KEY)
    assert_same(jax.jit(net.apply)(variables, x), jax.jit(static.apply)(trained, x))


def test_statistics_and_layers_that_stay_static_are_taken_over():
    x = random_input(4, 8, 8, 2)
    static = ResNet((1, 1), BasicBlock, num_classes=3, width=4, stem="small")
    trained = filled(static, x)
    net = static.copy(conv=partial(ODConv, num_kernels=2))
    fresh = new(net, x)
    variables = warm_start(fresh, trained, noise=0.3, key=KEY)
    assert_same(jax.jit(net.apply)(variables, x), jax.jit(static.apply)(trained, x))
    flat = flax.traverse_util.flatten_dict(variables)
    for path, value in flax.traverse_util.flatten_dict(trained).items():
        if not path[-2].startswith("conv"):
            np.testing.assert_array_equal(flat[path], value)
    # Also in training, where norms use the statistics of the batch.
    train = {"train": True, "mutable": ["batch_stats"]}
    y, changed = jax.jit(partial(net.apply, **train))(variables, x)
    expected, moved = jax.jit(partial(static.apply, **train))(trained, x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    ours, theirs = changed["batch_stats"]["stem_norm"], moved["batch_stats"]["stem_norm"]
    np.testing.assert_allclose(ours["mean"], theirs["mean"], rtol=1e-5)


def test_what_only_the_dynamic_network_has_stays_as_it_was_but_for_the_heads():
    x = random_input(3, 20, 1)
    static = Net1(**Small)
    net = static.copy(conv=ODConv)
    fresh = filled(net, x)  # a number of its own for everything
    variables = warm_start(fresh, filled(static, x, seed=7), noise=0)
    before = flax.traverse_util.flatten_dict(fresh, sep="/")
    for path, value in flax.traverse_util.flatten_dict(variables, sep="/").items():
        if path.endswith(
            ("channel/kernel", "filter/kernel", "spatial/kernel", "attention/kernel/kernel")
        ):
            assert not value.any()
        elif "/attention/" in path:
            np.testing.assert_array_equal(value, before[path])
        else:
            assert value.shape != before[path].shape or not np.array_equal(value, before[path])


def test_candidates_lie_as_far_from_the_kernel_as_the_noise_says_and_around_it():
    x = random_input(2, 16, 32)
    static, net = nn.Conv(8, (9,)), DynamicConv(8, (9,), num_kernels=4)
    trained = filled(static, x)
    trained["params"]["kernel"] = trained["params"]["kernel"] * np.float32([*range(8)])
    variables = warm_start(new(net, x), trained, noise=0.2, key=KEY)
    kernel, candidates = trained["params"]["kernel"], variables["params"]["kernel"]
    np.testing.assert_allclose(candidates.mean(0), kernel, rtol=1e-5, atol=1e-5)
    distance = np.sqrt(np.mean((candidates - kernel) ** 2, axis=(1, 2)))  # [K, O]
    size = np.sqrt(np.mean(kernel**2, axis=(0, 1)))
    np.testing.assert_allclose(distance, np.broadcast_to(0.2 * size, (4, 8)), rtol=0.15)
    np.testing.assert_array_equal(
        variables["params"]["bias"], np.broadcast_to(trained["params"]["bias"], (4, 8))
    )
    again = warm_start(new(net, x), trained, noise=0.2, key=KEY)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, variables, again)))
    other = warm_start(new(net, x), trained, noise=0.2, key=jax.random.key(6))
    assert not np.allclose(candidates, other["params"]["kernel"])


def test_layers_of_one_shape_get_noise_of_their_own():
    x = random_input(2, 16, 4)
    static = Net2(**Small)
    trained = filled(static, x)
    trained["params"]["conv2"] = trained["params"]["conv1"]
    params = warm_start(new(static.copy(conv=DynamicConv), x), trained, key=KEY)["params"]
    assert not np.allclose(params["conv1"]["kernel"], params["conv2"]["kernel"], atol=1e-3)


def gradient(net, variables, x):
    """A compiled function from parameters to the gradient of some loss."""

    @jax.jit
    @jax.grad
    def of(params):
        logits = net.apply({**variables, "params": params}, x)
        return jnp.sum(
            logits * jnp.cos(jnp.arange(logits.size, dtype=logits.dtype)).reshape(logits.shape)
        )

    return of


def warm_series_net(conv, noise):
    x = random_input(3, 20, 1)
    static = Net1(**Small)
    net = static.copy(conv=partial(conv, num_kernels=4), context="series", bins=4)
    return net, warm_start(new(net, x), filled(static, x), noise=noise, key=KEY), x


def test_a_mixture_of_equal_candidates_has_no_gradient_and_one_of_different_ones_has():
    largest = {}
    for noise in (0.0, 0.1):
        net, variables, x = warm_series_net(DynamicConv, noise)
        head = gradient(net, variables, x)(variables["params"])["conv1"]["attention"]["kernel"][
            "kernel"
        ]
        largest[noise] = float(jnp.abs(head).max())
    assert largest[0.0] < 1e-5 < 1e-3 < largest[0.1]


def test_equal_candidates_stay_equal_and_different_ones_part():
    """Ten steps of descent: without noise the layer is still a static convolution."""

    def parted(noise):
        net, variables, x = warm_series_net(DynamicConv, noise)
        params, step = variables["params"], gradient(net, variables, x)
        for _ in range(10):
            params = jax.tree.map(lambda p, g: p - 0.05 * g, params, step(params))
        moved = params["conv1"]["kernel"] - variables["params"]["conv1"]["kernel"]
        assert float(jnp.abs(moved).max()) > 0.1
        _, state = net.apply({**variables, "params": params}, x, mutable=["intermediates"])
        weights = state["intermediates"]["conv1"]["attention"]["weights"][0]["kernel"]
        # How differently candidates have moved, and how differently series weigh them.
        return float(jnp.ptp(moved, axis=0).max()), float(jnp.ptp(weights, axis=0).max())

    moves, weights = parted(0.0)
    assert moves < 1e-5 and weights < 1e-6
    moves, weights = parted(0.5)
    assert moves > 1e-4 and weights > 1e-4


def test_the_sigmoids_of_odconv_learn_without_noise_too():
    net, variables, x = warm_series_net(ODConv, 0.0)
    attention = gradient(net, variables, x)(variables["params"])["conv1"]["attention"]
    for name in ("channel", "filter", "spatial"):
        assert float(jnp.abs(attention[name]["kernel"]).max()) > 1e-3
    assert float(jnp.abs(attention["kernel"]["kernel"]).max()) < 1e-5


@pytest.mark.parametrize(
    "conv",
    [
        DynamicConv,
        ODConv,
        CondConv,
        PixelDynamicConv,
        GatedConv,
        DCDConv,
        partial(FDConv, num_kernels=2),
    ],
)
def test_candidate_kernels_are_the_kernels_and_biases_of_the_dynamic_layers(conv):
    net = Net2(**Small, conv=conv)
    x = jax.ShapeDtypeStruct((2, 20, 3), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
    marked = flax.traverse_util.flatten_dict(candidate_kernels(params), sep="/")
    kernel = "spectrum" if isinstance(conv, partial) else "kernel"
    assert marked.keys() == shapes_of(params).keys()
    assert {path for path, frozen in marked.items() if frozen} == {
        f"conv{layer}/{name}" for layer in (1, 2) for name in (kernel, "bias")
    }


def test_nothing_static_is_a_candidate_nor_is_a_dynamic_classifier():
    net = ResNet((1,), BasicBlock, num_classes=3, width=4, dense=DCDDense, attention=nn.Dense)
    net = net.copy(attention=lambda name: nn.Dense(4, name=name))  # beside conv1, but not theirs
    x = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
    assert {"attention", "conv1"} < set(params["stage1_block1"]) and "attention" in params["head"]
    assert not any(jax.tree.leaves(candidate_kernels(params)))


def test_frozen_with_optax_the_candidates_stay_and_the_rest_learns():
    net, variables, x = warm_series_net(ODConv, 0.2)
    frozen = candidate_kernels(variables["params"])
    optimizer = optax.chain(
        optax.adamw(0.01, weight_decay=0.1), optax.masked(optax.set_to_zero(), candidate_kernels)
    )
    params, state = variables["params"], optimizer.init(variables["params"])
    step = gradient(net, variables, x)
    for _ in range(3):
        with jax.numpy_dtype_promotion("standard"):  # as optax needs
            updates, state = jax.jit(optimizer.update)(step(params), state, params)
        params = optax.apply_updates(params, updates)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), params, variables["params"])
    for path, stays in flax.traverse_util.flatten_dict(frozen, sep="/").items():
        if stays:
            assert not flax.traverse_util.flatten_dict(moved, sep="/")[path], path
    assert moved["head"]["kernel"] and moved["conv1"]["attention"]["spatial"]["kernel"]
    assert moved["conv1"]["attention"]["squeeze"]["kernel"]
    # The labels of optax.multi_transform do, too.
    optax.multi_transform({True: optax.set_to_zero(), False: optax.sgd(0.1)}, frozen).init(params)


def test_frozen_dicts_and_empty_collections_are_understood():
    x = random_input(2, 20, 1)
    static, net = Net1(**Small), Net1(**Small, conv=DynamicConv)
    trained = filled(static, x)
    fresh = new(net, x)
    plain = warm_start(fresh, trained, noise=0)
    wrapped = warm_start(
        flax.core.freeze({**fresh, "batch_stats": {}}),
        flax.core.freeze({**trained, "batch_stats": {}, "attention": {}}),
        noise=0,
    )
    assert wrapped["batch_stats"] == {}
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, plain["params"], wrapped["params"])))


def test_can_be_compiled():
    _, variables, x = warm_series_net(ODConv, 0.2)
    trained = filled(Net1(**Small), x)
    eager = warm_start(variables, trained, noise=0.2, key=KEY)
    compiled = jax.jit(partial(warm_start, noise=0.2))(variables, trained, key=KEY)
    for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(compiled), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def shapes(net, *shape):
    x = jnp.zeros(shape)
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), jax.eval_shape(net.init, KEY, x))


class SharedRouting(nn.Module):
    """A block that routes for its convolution."""

    conv: type = CondConv

    @nn.compact
    def __call__(self, x):
        return self.conv(4, (3,), num_kernels=3, router=nn.Dense(3, name="router"), name="conv1")(x)


class Static(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Conv(4, (3,), name="conv1")(x)


@pytest.mark.parametrize(
    ("dynamic", "static", "message"),
    [
        (
            Net1(**Small, conv=DynamicConv),
            Net2(**Small),
            r"params/conv2/bias, of shape \(4,\) in the static network, is not in the dynamic one",
        ),
        (
            Net1(**Small, conv=DynamicConv),
            Net1(**Small | {"kernel_size": 3}),
            r"params/conv1/kernel has shape \(3, 1, 4\) .* params/conv1/kernel \(4, 5, 1, 4\)",
        ),
        (
            Net1(**Small, conv=partial(FDConv, num_kernels=2)),
            Net1(**Small | {"kernel_size": 3}),
            r"params/conv1/kernel has shape \(3, 1, 4\) .* params/conv1/spectrum \(4, 3, 2\)",
        ),
        (
            Net1(**Small, conv=DynamicConv),
            Net1(**Small | {"num_classes": 5}),
            r"params/head/bias has shape \(5,\) in the static network, and params/head/bias \(3,\)",
        ),
        (
            Net1(**Small, conv=partial(WarehouseConv, cell_ratio=0.5)),
            Net1(**Small),
            r"params/conv1/warehouse/cells has 2 cells for the 5 blocks of trained kernels",
        ),
        (
            SharedRouting(),
            Static(),
            "params/conv1/bias has 3 candidates, but .* no attention of its own",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_both_shapes(dynamic, static, message):
    with pytest.raises(ValueError, match=message):
        warm_start(shapes(dynamic, 2, 20, 1), shapes(static, 2, 20, 1), noise=0)


def test_a_dynamic_layer_that_the_static_network_has_not_is_named():
    dynamic, static = (shapes(net, 2, 20, 1) for net in (Net2(**Small, conv=ODConv), Net2(**Small)))
    del static["params"]["conv2"]
    with pytest.raises(
        ValueError, match=r"params/conv2, with a kernel of shape \(4, 5, 4, 4\), is not"
    ):
        warm_start(dynamic, static, noise=0)


def test_noise_needs_a_key_and_networks_need_their_variables():
    dynamic, static = (shapes(net, 2, 20, 1) for net in (Net1(**Small, conv=ODConv), Net1(**Small)))
    with pytest.raises(ValueError, match=r"noise=0.1 .* key=jax.random.key\(0\)"):
        warm_start(dynamic, static)
    with pytest.raises(ValueError, match="noise=-1"):
        warm_start(dynamic, static, noise=-1, key=KEY)
    with pytest.raises(ValueError, match="not parameters alone"):
        warm_start(dynamic["params"], static["params"], noise=0)
