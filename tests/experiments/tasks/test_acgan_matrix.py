"""A GAN through the loop, stopped and continued; its step against two networks that are trained in turns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from small_runs import assert_same_run, interrupted_before

from dyn.models import ACGAN
from experiments.tasks import make_task
from experiments.train.loop import train
from experiments.train.optimizer import count_steps, make_optimizer, make_schedule
from tests.experiments.tasks.test_acgan import tiny

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("compiled_once")]

FIGURES = {"curves.png", "gan.png", "samples.png", "samples_000004.png", "samples_000008.png"}


@pytest.fixture(scope="module")
def programs(compiled_once):
    """Compiled programs, shared by the runs."""
    return {}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, programs):
    """An uninterrupted run: (workdir, summary)."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    return workdir, train(tiny(), workdir, programs)


def test_a_run_leaves_samples_curves_and_metrics(finished):
    workdir, summary = finished
    assert {p.name for p in (workdir / "figures").iterdir()} == FIGURES
    for name in FIGURES:
        Image.open(workdir / "figures" / name).verify()
    names = {"loss", "g", "d", "d_real", "d_fake", "aux_real", "aux_fake"}
    assert set(summary["test"]) == names and summary["metric"] is None
    assert summary["best"]["step"] == 8  # none ranks: the last one
    assert abs(summary["test"]["loss"] - summary["test"]["g"] - summary["test"]["d"]) < 1e-6


def test_a_continued_run_is_the_uninterrupted_one(finished, programs, tmp_path):
    with interrupted_before(7):
        train(tiny(), tmp_path / "run", programs)
    train(tiny(), tmp_path / "run", programs)
    assert_same_run(tmp_path / "run", finished[0])


def test_a_step_is_that_of_two_optimizers_in_the_published_order():
    """G and then D, each with its own gradient and its own Adam, against the task and the one optimizer."""
    config = tiny(**{"gan.discriminator_rate": 0.25})
    config.optimizer.learning_rate = 2e-4
    with jax.enable_x64(True):
        net = ACGAN(3, latent=6, widths=(8, 4, 4, 4))
        rng = np.random.default_rng(0)
        real = jnp.asarray(rng.uniform(-1, 1, (4, 16, 16, 1)))
        labels = jnp.array([0, 2, 1, 1])
        shapes = jax.eval_shape(net.init, jax.random.key(0), real)
        # To compile what draws the first parameters would take longer than all else.
        variables = jax.tree.map_with_path(
            lambda path, leaf: jnp.asarray(
                0.1 * rng.standard_normal(leaf.shape) + (path[-1].key in ("var", "scale"))
            ),
            shapes,
        )

        one = make_optimizer(config, make_schedule(config, count_steps(config, 64)))
        rates = 2e-4, 2e-4 * config.gan.discriminator_rate
        of_g, of_d = (optax.adam(rate, 0.5, 0.999) for rate in rates)

        def both(variables, state, key):
            def value(params):
                seen = {**variables, "params": params}
                batch = {"inputs": real, "label": labels}
                return make_task(config).compute_loss(net, seen, batch, key, False)

            gradients, (metrics, changed) = jax.grad(value, has_aux=True)(variables["params"])
            updates, state = one.update(gradients, state, variables["params"])
            params = optax.apply_updates(variables["params"], updates)
            return {"params": params, "batch_stats": changed["batch_stats"]}, state, metrics

        def in_turns(variables, states, key):
            draws = jax.random.split(key, 5)
            noise = jax.random.normal(draws[0], (4, 6), jnp.float64)
            wanted = jax.random.randint(draws[1], (4,), 0, 3)
            params = variables["params"]

            def run(g, d, batch_stats, *args, method):
                seen = {"params": {"generator": g, "discriminator": d}, "batch_stats": batch_stats}
                out, kept = net.apply(
                    seen, *args, train=True, method=method, mutable=["batch_stats"]
                )
                return out, kept["batch_stats"]

            def bce(logits, target):
                return -jnp.mean(jax.nn.log_sigmoid(logits if target else -logits))

            def ce(logits, y):
                return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(4), y])

            def of_generator(g):
                d, stats = params["discriminator"], variables["batch_stats"]
                fake, stats = run(g, d, stats, noise, wanted, (16, 16, 1), method="generate")
                (valid, named), stats = run(g, d, stats, fake, method="discriminate")
                return (bce(valid, 1) + ce(named, wanted)) / 2, (fake, stats)

            gradient, (fake, stats) = jax.grad(of_generator, has_aux=True)(params["generator"])
            update, states[0] = of_g.update(gradient, states[0])
            new = {"generator": optax.apply_updates(params["generator"], update)}

            def of_discriminator(d):
                g = new["generator"]  # updated already: nothing of it is looked at
                (valid, named), bs1 = run(g, d, stats, real, method="discriminate")
                of_real = (bce(valid, 1) + ce(named, labels)) / 2
                (valid, named), bs2 = run(g, d, bs1, fake, method="discriminate")
                of_fake = bce(valid, 0) + ce(named, wanted)
                return (of_real + of_fake / 2) / 2, bs2

            gradient, stats = jax.grad(of_discriminator, has_aux=True)(params["discriminator"])
            update, states[1] = of_d.update(gradient, states[1])
            new["discriminator"] = optax.apply_updates(params["discriminator"], update)
            return {"params": new, "batch_stats": stats}, states

        def begin(params):
            alone = [of_g.init(params["generator"]), of_d.init(params["discriminator"])]
            return one.init(params), alone

        mine = theirs = variables
        state, states = jax.jit(begin)(variables["params"])
        both, in_turns = jax.jit(both), jax.jit(in_turns)
        with jax.numpy_dtype_promotion("standard"):
            for step in range(3):
                key = jax.random.key(step)
                mine, state, metrics = both(mine, state, key)
                theirs, states = in_turns(theirs, states, key)
        # Three steps of Adam move a number by up to 6e-4.
        for ours, other in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(ours, other, rtol=0, atol=1e-10)
        linear = [tree["params"]["generator"]["linear"]["kernel"] for tree in (mine, variables)]
        assert np.abs(np.asarray(linear[0]) - np.asarray(linear[1])).min() > 1e-6
        assert set(metrics) == {"loss", "g", "d", "d_real", "d_fake", "aux_real", "aux_fake"}
