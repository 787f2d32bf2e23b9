"""The training step as a function: on a network of two layers, without a whole program."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.train.loss_scale import make_loss_scale
from experiments.train.optimizer import StepCounts, reset_state_at
from experiments.train.sharding import ParameterSharding, shardings_of, with_shards
from experiments.train.step import (
    StepSettings,
    accumulate_gradients,
    create_state,
    eval_step,
    inspect_step,
    loss_fn,
    statistics_step,
    train_step,
)

pytestmark = pytest.mark.usefixtures("standard_promotion")

BATCH, FEATURES, CLASSES = 8, 4, 3
STEPS = StepCounts(per_epoch=10, total=100, annealing=4, auxiliary_ramp=10)
RATE = 0.1


class Network(nn.Module):
    """A body with a temperature and an auxiliary loss, and a head."""

    width: int = 8
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Dense(self.width, dtype=self.dtype, name="body")(x))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5, name="norm")(x)
        temperature = self.variable("attention", "temperature", lambda: jnp.ones(()))
        self.sow("losses", "size", jnp.mean(x**2))
        return nn.Dense(CLASSES, dtype=self.dtype, name="head")(x / temperature.value)


class LeastSquares:
    """The part of a task that a step needs."""

    def compute_loss(self, model, variables, batch, rng, head_only=False):
        outputs, changed = model.apply(
            variables, batch["inputs"], train=True, mutable=["batch_stats", "losses"]
        )
        loss = jnp.mean((outputs.astype(jnp.float32) - batch["label"]) ** 2)
        return loss, ({"loss": loss}, dict(changed))

    def sum_metrics(self, model, variables, batch):
        errors = (model.apply(variables, batch["inputs"]) - batch["label"]) ** 2
        return {"loss": jnp.sum(errors.mean(-1) * batch["mask"]), "count": jnp.sum(batch["mask"])}

    def inspect_batch(self, model, variables, batch):
        return {"outputs": model.apply(variables, batch["inputs"])}


def settings_of(**changes):
    return StepSettings(
        **{"schedule": lambda step: RATE, "steps": STEPS, "start_temperature": 5.0} | changes
    )


def make(settings=None, width=8, dtype=jnp.float32, **options):
    """Returns a state, and the compiled step."""
    settings = settings or settings_of()
    parts = {
        "model": Network(width, dtype),
        "optimizer": optax.sgd(lambda step: RATE),
        "settings": settings,
    }
    plateau = optax.contrib.reduce_on_plateau()
    state = create_state(0, jnp.zeros((BATCH, FEATURES)), plateau=plateau, **parts)
    return state, jax.jit(partial(train_step, task=LeastSquares(), **parts, **options))


def batch(step=0):
    rng = np.random.default_rng(step)
    inputs, label = rng.normal(size=(BATCH, FEATURES)), rng.normal(size=(BATCH, CLASSES))
    return {"inputs": inputs.astype(np.float32), "label": label.astype(np.float32)}


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other)


def test_a_step_follows_the_gradient_of_the_loss():
    state, step = make()
    variables = {**state.variables, "attention": {"temperature": jnp.float32(4.0)}}
    gradient = jax.grad(loss_fn, has_aux=True)
    expected, (_, batch_stats) = gradient(
        state.params,
        variables,
        batch(),
        jax.random.key(0),
        model=Network(),
        task=LeastSquares(),
        auxiliary_weight=0.0,  # it begins there
    )
    after, metrics = step(state, batch())
    assert_close(after.params, jax.tree.map(lambda p, g: p - RATE * g, state.params, expected))
    assert_close(after.batch_stats, batch_stats)
    assert int(after.step) == 1 and not after.failed
    assert metrics["temperature"] == after.attention["temperature"] == 4.0
    assert float(metrics["learning_rate"]) == pytest.approx(RATE) and "blend" not in metrics


def test_the_loss_of_layers_is_added_with_its_weight():
    state, _ = make()
    loss = partial(loss_fn, model=Network(), task=LeastSquares())
    arguments = state.params, state.variables, batch(), jax.random.key(0)
    (plain, (metrics, _)), (doubled, _) = (
        loss(*arguments, auxiliary_weight=weight) for weight in (0.0, 2.0)
    )
    auxiliary = float(metrics["auxiliary"])
    assert float(doubled - plain) == pytest.approx(2 * auxiliary, rel=1e-5)
    assert auxiliary > 0 and metrics["loss"] == plain


def test_the_head_alone_learns_first_and_then_everything():
    steps = StepCounts(per_epoch=1, total=4, annealing=0, auxiliary_ramp=0, head_only=2)
    state, step = make(settings_of(steps=steps))
    for number in range(4):
        after, _ = step(state, batch(number))
        moved = {
            name: not np.array_equal(after.params[name]["bias"], state.params[name]["bias"])
            for name in ("body", "head")
        }
        assert moved == {"body": number >= 2, "head": True}
        state = after


def test_steps_that_the_loss_scale_skips_are_no_part_of_a_phase():
    steps = StepCounts(per_epoch=1, total=9, annealing=0, auxiliary_ramp=0, head_only=2)
    rates = optax.piecewise_constant_schedule(RATE, {2: 0.5})
    settings = settings_of(steps=steps, schedule=rates, start_scale=2.0**127, grow_scale_every=100)
    rule = reset_state_at(optax.scale_by_adam(), step=2)
    optimizer = optax.chain(rule, optax.scale_by_learning_rate(rates))
    parts = {"model": Network(8), "optimizer": optimizer, "settings": settings}
    plateau = optax.contrib.reduce_on_plateau()
    state = create_state(0, jnp.zeros((BATCH, FEATURES)), plateau=plateau, **parts)
    step, moved, seen = jax.jit(partial(train_step, task=LeastSquares(), **parts)), [], []
    while len(moved) < 4:
        after, metrics = step(state, batch())
        names = [
            n
            for n in ("body", "head")
            if (after.params[n]["bias"] != state.params[n]["bias"]).any()
        ]
        if names:
            moved.append(names)
            seen.append(float(metrics["learning_rate"]))
        state = after
    assert int(state.step) > 4 and not state.failed  # some have been skipped
    assert moved == [["head"]] * 2 + [["body", "head"]] * 2
    np.testing.assert_allclose(seen, [RATE, RATE, RATE / 2, RATE / 2])


def test_microbatches_accumulate_to_the_gradient_of_the_batch(rng):
    """The gradient of least squares in float64, which NumPy can differentiate."""
    x, y, w = rng.normal(size=(24, 5)), rng.normal(size=24), rng.normal(size=5)

    def compute(w, seen, batch, key):
        def loss(w):
            return jnp.mean((batch["x"] @ w - batch["y"]) ** 2)

        value, gradients = jax.value_and_grad(loss)(w)
        return gradients, (
            {"loss": value, "draw": jax.random.uniform(key)},
            0.5 * seen + jnp.sum(batch["y"]),
        )

    def run(number):
        return jax.jit(accumulate_gradients, static_argnums=(0, 5))(
            compute, w, jnp.zeros(()), {"x": x, "y": y}, jax.random.key(0), number
        )

    with jax.enable_x64(True):
        for number in (1, 2, 4, 24):
            gradients, (metrics, seen) = run(number)
            np.testing.assert_allclose(gradients, 2 * x.T @ (x @ w - y) / 24, rtol=1e-12)
            np.testing.assert_allclose(metrics["loss"], np.mean((x @ w - y) ** 2), rtol=1e-12)
            expected = 0.0
            for part in range(number):
                expected = 0.5 * expected + y[part::number].sum()
            np.testing.assert_allclose(seen, expected, rtol=1e-12)
        keys = [jax.random.fold_in(jax.random.key(0), part) for part in range(4)]
        draws = [float(jax.random.uniform(key)) for key in keys]
        assert len(set(draws)) == 4
        np.testing.assert_allclose(run(4)[1][0]["draw"], np.mean(draws), rtol=1e-12)


def test_the_average_follows_the_parameters():
    state, step = make(settings_of(average_decay=0.999))
    after, _ = step(state, batch())
    # Its first decay is 1 / 10.
    expected = jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, state.params, after.params)
    assert_close(after.average["params"], expected)
    assert after.eval_variables == after.variables | after.average


def test_averaged_parameters_have_statistics_of_their_own():
    state, step = make(settings_of(average_decay=0.999))
    after, _ = step(state, batch())
    # A step leaves them alone.
    assert_equal(after.average["batch_stats"], state.batch_stats)
    parts = {"model": Network(), "task": LeastSquares()}
    measure = jax.jit(partial(statistics_step, **parts))
    variables, body = after.eval_variables, after.average["params"]["body"]
    seen = []
    for number in range(3):
        found = measure(variables, batch(number), after.rng, after.step, number)
        variables = variables | {"batch_stats": found}
        x = np.maximum(batch(number)["inputs"] @ body["kernel"] + body["bias"], 0)
        seen.append((x.mean(0), x.var(0)))
        # Nothing is left of the 0 and 1 that they began with, though the momentum is 0.5.
        mean, var = np.mean(seen, axis=0)
        assert_close(found, {"norm": {"mean": mean, "var": var}})


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_a_step_that_is_not_finite_changes_nothing_and_neither_do_later_ones(num_microbatches):
    state, step = make(settings_of(num_microbatches=num_microbatches))
    state, _ = step(state, batch())
    broken = batch(1)
    broken["inputs"][0, 0] = np.inf
    after, _ = step(state, broken)
    after, _ = step(after, batch(2))
    assert after.failed and int(after.step) == 1
    assert_equal(after.replace(rng=None, failed=None), state.replace(rng=None, failed=None))


def test_gradients_that_overflow_skip_the_step_and_halve_the_scale():
    settings = settings_of(start_scale=2.0**40, grow_scale_every=2)
    state, step = make(settings, dtype=jnp.float16)
    after, metrics = step(state, batch())
    assert not after.failed and int(after.step) == 1
    assert metrics["loss_scale"] == 2.0**40 and after.loss_scale.factor == 2.0**39
    assert_equal(after.params, state.params)
    # Without a scale that can fall, they end the run.
    state, step = make(settings_of(start_scale=2.0**40), dtype=jnp.float16)
    assert step(state, batch())[0].failed


def test_a_loss_scale_does_not_change_float32():
    settings = settings_of(grow_scale_every=2)
    state, step = make(settings)
    plain, _ = step(state, batch())
    scaled, _ = step(state.replace(loss_scale=make_loss_scale(1024.0)), batch())
    assert_equal(scaled.params, plain.params)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_parameters_give_the_same_step(axis_type):
    width = 2048  # the smallest that is sharded: 2 * 4096 / 4
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axis_type,))
    state, step = make(width=width)
    params = with_shards(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.params), mesh
    )
    assert any(leaf.sharding.spec != P() for leaf in jax.tree.leaves(params))
    sharding = ParameterSharding(NamedSharding(mesh, P()), shardings_of(params))
    _, sharded_step = make(width=width, sharding=sharding)
    whole, _ = step(state, batch())
    sharded, _ = sharded_step(
        state.replace(params=jax.device_put(state.params, shardings_of(params))), batch()
    )
    assert sharded.params["body"]["kernel"].sharding == params["body"]["kernel"].sharding
    assert_close(sharded.params, whole.params)


def test_evaluation_leaves_masked_examples_out():
    state, _ = make()
    parts = {"model": Network(), "task": LeastSquares()}
    masked = {**batch(), "mask": np.float32([1] * 6 + [0] * 2)}
    sums = eval_step(state.eval_variables, masked, **parts)
    first = {name: values[:6] for name, values in masked.items()}
    assert_close(sums, eval_step(state.eval_variables, first, **parts))
    assert sums["count"] == 6
    inspected = inspect_step(state.eval_variables, masked, **parts)
    assert inspected["outputs"].shape == (BATCH, CLASSES) and inspected["mask"].sum() == 6
