"""GatedConv: hard gates, their gradient in closed form, the budget, the report and pruning."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from layer_cases import filled, init_shapes, random_input

from dyn.layers.gated_conv import GatedConv, density_loss, gate_report, hard_gate, prune_kernels
from dyn.schedules import set_temperature


def logits_by_numpy(variables, x, layer):
    """Computes the gates' logits, `[B, ...]`, slice after slice."""
    gates = variables["params"]["attention"]
    context = np.asarray(x).mean(tuple(range(1, x.ndim - 1)))

    def head(name):
        return context @ gates[name]["kernel"] + gates[name]["bias"]

    if layer.static:
        return np.broadcast_to(gates["gates"], (len(x), *gates["gates"].shape))
    if layer.granularity != "slice":
        return head(layer.granularity)
    filters, channels = head("filter"), head("channel")
    inputs = channels.shape[1] // layer.feature_group_count
    outputs = filters.shape[1] // layer.feature_group_count
    logits = np.zeros((len(x), inputs, filters.shape[1]))
    for o in range(filters.shape[1]):
        for i in range(inputs):
            logits[:, i, o] = filters[:, o] + channels[:, (o // outputs) * inputs + i]
    return logits


def by_definition(variables, x, gates, layer):
    """Convolves each sample with the kernel that its gates leave."""
    kernel, samples = np.asarray(variables["params"]["kernel"]), []
    geometry = dict(strides=layer.strides, feature_group_count=layer.feature_group_count)
    for sample, m in zip(x, gates, strict=True):
        if layer.granularity == "kernel":
            gated = np.tensordot(m, kernel, 1)
        else:
            gated = kernel[0] * m  # [O] or [i, O], the last axes of a kernel
        samples += [*numpy_oracle.convolve(sample[None], gated[None], **geometry)]
    return np.stack(samples) + variables["params"]["bias"]


FORMS = {
    "kernel": dict(granularity="kernel", num_kernels=5),
    "filter": dict(granularity="filter"),
    "slice": dict(granularity="slice"),
    "grouped slice": dict(granularity="slice", feature_group_count=2),
    "static kernel": dict(granularity="kernel", num_kernels=5, static=True),
    "static slice": dict(granularity="slice", static=True),
    "3 kernels": dict(granularity="kernel", num_kernels=5, active=3),
    "7 slices": dict(granularity="slice", active=7),
}


@pytest.mark.parametrize("name", FORMS)
def test_convolves_with_what_is_on(name):
    layer = GatedConv(6, (3, 2), 2, **FORMS[name], param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = random_input(4, 5, 4, 4, dtype=np.float64)
        variables = filled(layer, x, dtype=np.float64)
        apply = jax.jit(partial(layer.apply, mutable=["intermediates", "losses"]))
        y, state = apply(variables, x)
        logits = logits_by_numpy(variables, x, layer)
        if layer.active is None:
            want = (logits > 0).astype(float)
        else:
            flat = logits.reshape(4, -1)
            order = np.argsort(np.argsort(-flat, axis=1), axis=1)
            want = (order < layer.active).astype(float).reshape(logits.shape)
        gates = state["intermediates"]["attention"]["weights"][0][layer.granularity]
        np.testing.assert_array_equal(gates, want)
        assert 0 < want.mean() < 1
        np.testing.assert_allclose(y, by_definition(variables, x, want, layer), atol=1e-12)
    if layer.active is None:
        (loss,) = state["losses"]["attention"]["density"]
        np.testing.assert_allclose(loss, (want.mean() - 0.5) ** 2, rtol=1e-12)
    else:
        assert "losses" not in state


@pytest.mark.parametrize("active", [None, 2])
@pytest.mark.parametrize("t", [1.0, 0.3])
def test_straight_through_gradient_is_the_closed_form(active, t):
    with jax.enable_x64(True):
        a = jnp.array([-3.0, -0.2, 0.1, 0.7, 4.0])
        weights = jnp.array([0.3, -1.0, 2.0, 0.5, -0.7])
        gates = hard_gate(a, t, active)
        on = [0, 0, 0, 1, 1] if active else [0, 0, 1, 1, 1]
        np.testing.assert_array_equal(gates, on)
        got = jax.grad(lambda a, t: jnp.sum(weights * hard_gate(a, t, active)), (0, 1))(a, t)
        s = 1 / (1 + np.exp(-np.asarray(a) / t))
        np.testing.assert_allclose(got[0], weights * s * (1 - s) / t, rtol=1e-14)
        assert got[1] == 0


@pytest.mark.parametrize("name", ["kernel", "slice", "static slice"])
def test_gates_of_a_layer_learn_by_that_gradient(name):
    """dL/da = dL/dm sigma'(a / T) / T, through gates that are off too.

    dL/dm is taken by finite differences of the definition, in which m may be any number.
    """
    t = 0.7
    layer = GatedConv(4, (3,), **FORMS[name], density=None, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = random_input(2, 5, 4, dtype=np.float64)
        variables = set_temperature(filled(layer, x, dtype=np.float64), t)

        def loss(params):
            return jnp.sum(layer.apply({**variables, "params": params}, x) ** 2)

        gradient = jax.jit(jax.grad(loss))(variables["params"])["attention"]
        logits = logits_by_numpy(variables, x, layer)
        m, step = (logits > 0).astype(float), 1e-4
        dm = np.zeros_like(m)
        for index in np.ndindex(m.shape):
            nudge = np.zeros_like(m)
            nudge[index] = step
            up, down = (
                np.sum(by_definition(variables, x, gates, layer) ** 2)
                for gates in (m + nudge, m - nudge)
            )
            dm[index] = (up - down) / (2 * step)
    s = 1 / (1 + np.exp(-logits / t))
    da = dm * s * (1 - s) / t
    assert np.abs(da[m == 0]).max() > 1e-3
    if layer.static:
        got, want = gradient["gates"], da.sum(0)
    elif name == "slice":
        got, want = gradient["channel"]["bias"], da.sum((0, 2))
    else:
        got, want = gradient[layer.granularity]["bias"], da.sum(0)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_the_density_loss_pulls_the_gates_to_their_budget():
    layer = GatedConv(4, (3,), num_kernels=8, density=0.25, density_weight=3.0)
    x = random_input(16, 5, 4)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    assert set(variables) == {"params", "attention"}
    params = variables["params"]

    @jax.jit
    def step(params):
        def loss(params):
            _, state = layer.apply({"params": params}, x, mutable=["losses", "intermediates"])
            gates = state["intermediates"]["attention"]["weights"][0]["kernel"]
            return state["losses"]["attention"]["density"][0], gates

        (value, gates), g = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 2.0 * g, params, g), value, gates

    _, value, gates = step(params)
    assert gates.mean() == 1.0  # they begin on
    np.testing.assert_allclose(value, 3.0 * 0.75**2, rtol=1e-6)
    for _ in range(100):
        params, value, gates = step(params)
    assert abs(float(gates.mean()) - 0.25) < 0.05


def test_static_gates_begin_on_as_in_metadock():
    layer = GatedConv(4, (3, 3), granularity="slice", static=True)
    gates = layer.init(jax.random.key(0), jnp.ones((1, 5, 5, 6)))["params"]["attention"]["gates"]
    assert gates.shape == (6, 4) and gates.min() >= 0 and 0.008 < gates.max() < 0.01


def test_budget_of_a_whole_network_is_over_all_its_gates():
    gates = {"a": jnp.ones((2, 3)), "b": jnp.zeros((2, 9))}
    np.testing.assert_allclose(density_loss(gates, 0.5), (6 / 24 - 0.5) ** 2)


def test_an_empty_batch_has_no_density_loss():
    empty = {"a": jnp.ones((0, 3))}
    value, gradient = jax.value_and_grad(density_loss)(empty, 0.5)
    assert value == 0.0 and gradient["a"].shape == (0, 3)
    layer = GatedConv(4, (3,), density=0.5)
    variables = layer.init(jax.random.key(0), jnp.ones((2, 5, 4)))
    _, state = layer.apply(variables, jnp.ones((0, 5, 4)), mutable=["losses"])
    assert state["losses"]["attention"]["density"][0] == 0.0


def test_report():
    gates = np.ones((4, 2, 2))
    gates[:, 0, 1] = 0
    gates[1:, 1, 0] = 0
    report = gate_report(jnp.asarray(gates, jnp.float32))
    np.testing.assert_array_equal(report["always_on"], [[1, 0], [0, 1]])
    np.testing.assert_array_equal(report["always_off"], [[0, 1], [0, 0]])
    np.testing.assert_array_equal(report["input_dependent"], [[0, 0], [1, 0]])
    assert report["density"] == gates.mean()
    one = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    np.testing.assert_allclose(report["entropy"], one / 4, rtol=1e-6)


class TwoLayers(nn.Module):
    conv: type

    @nn.compact
    def __call__(self, x):
        return self.conv(5, (3,), name="a")(nn.relu(self.conv(6, (3,), name="b")(x)))


@pytest.mark.parametrize("form", [{}, dict(static=True, active=2)], ids=str)
def test_pruned_network_gives_equal_outputs(form):
    net = TwoLayers(partial(GatedConv, num_kernels=6, **form))
    x = random_input(8, 7, 4)
    variables = filled(net, x, seed=4)
    y, state = jax.jit(partial(net.apply, mutable=["intermediates"]))(variables, x)
    gates = {
        name: state["intermediates"][name]["attention"]["weights"][0]["kernel"] for name in "ab"
    }
    params = {name: prune_kernels(variables["params"][name], gates[name]) for name in "ab"}
    kept = {name: params[name]["kernel"].shape[0] for name in "ab"}
    assert kept == {n: 6 - int(gate_report(gates[n])["always_off"].sum()) for n in "ab"}
    assert all(1 <= k < 6 for k in kept.values())
    small = TwoLayers(partial(GatedConv, pruned=True, **form))
    got = jax.jit(small.apply)({**variables, "params": params}, x)
    np.testing.assert_allclose(got, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("gates", "kernels", "has_gates"),
    [
        # The first and the last are always on, the second never.
        ([[1, 0, 1, 1], [1, 0, 0, 1], [1, 0, 1, 1]], 2, True),
        ([[1, 0, 1, 1], [1, 0, 1, 1], [1, 0, 1, 1]], 1, False),
        ([[1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]], 2, True),
    ],
)
def test_kernels_that_are_always_on_become_one(gates, kernels, has_gates):
    layer, x = GatedConv(5, (3,), num_kernels=4), random_input(3, 6, 4)
    variables = filled(layer, x)
    # The means of the three samples are independent: logits can be any.
    means = np.asarray(x.mean(axis=1), np.float64)
    wanted = 2.0 * np.array(gates) - 1
    head = variables["params"]["attention"]["kernel"]
    head["kernel"] = jnp.asarray(np.linalg.pinv(means) @ wanted, jnp.float32)
    head["bias"] = jnp.zeros(4)
    y, state = layer.apply(variables, x, mutable=["intermediates"])
    (sown,) = state["intermediates"]["attention"]["weights"]
    np.testing.assert_array_equal(sown["kernel"], gates)
    params = prune_kernels(variables["params"], sown["kernel"], merge=True)
    assert len(params["kernel"]) == kernels and ("attention" in params) == has_gates
    pruned = layer.copy(pruned=True)
    np.testing.assert_allclose(pruned.apply({"params": params}, x), y, rtol=1e-5, atol=1e-5)


def test_a_layer_that_is_never_on_keeps_one_kernel():
    layer = GatedConv(5, (3,), num_kernels=3, static=True)
    x = random_input(2, 6, 4)
    params = filled(layer, x)["params"]
    params["attention"]["gates"] = -np.abs(params["attention"]["gates"])
    pruned = prune_kernels(params, jnp.zeros((2, 3)))
    assert pruned["kernel"].shape[0] == 1
    y = layer.copy(num_kernels=1).apply({"params": pruned}, x)
    np.testing.assert_array_equal(y, layer.apply({"params": params}, x))


def test_ties_switch_on_no_more_than_the_fixed_number():
    np.testing.assert_array_equal(hard_gate(jnp.ones((2, 4)), 1.0, 2).sum(-1), [2, 2])


def test_impossible_arguments_are_refused():
    x = jnp.ones((2, 6, 4))
    with pytest.raises(ValueError, match="leave context out"):
        init_shapes(GatedConv(6, (3,), static=True), x, jnp.ones((2, 5)))
    with pytest.raises(ValueError, match="granularity='kernel'"):
        layer = GatedConv(6, (3,), granularity="filter")
        prune_kernels(filled(layer, x)["params"], jnp.ones((2, 6)))
