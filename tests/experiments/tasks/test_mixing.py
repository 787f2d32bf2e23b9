from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.tasks.classification import compute_accuracy
from experiments.tasks.mixing import cutmix, make_targets, mix_examples, mixup, smooth_targets


def settings(**fields):
    return ConfigDict({"mixup": 0.0, "cutmix": 0.0, **fields})


INPUTS = jnp.asarray(np.random.default_rng(0).standard_normal((4, 8, 6, 2)), jnp.float32)
LABELS = jnp.asarray([0, 2, 1, 2])


def test_even_targets_are_not_counted():
    logits = jnp.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 0.0, 5.0], [1.0, 0.0, 0.0]])
    targets = jnp.array([[0.6, 0.4, 0.0], [0.6, 0.4, 0.0], [1 / 3] * 3, [0.0, 0.0, 1.0]])
    assert float(compute_accuracy(logits, targets)) == pytest.approx(1 / 3)
    assert float(compute_accuracy(logits[2:3], targets[2:3])) == 0.0


def test_by_itself_nothing_is_mixed():
    targets = smooth_targets(make_targets(LABELS, 3), 0.0)
    inputs, targets = mix_examples(settings(), INPUTS, targets, jax.random.key(0))
    np.testing.assert_array_equal(inputs, INPUTS)
    np.testing.assert_array_equal(targets, np.eye(3)[LABELS])


def test_smoothing_gives_every_class_its_share():
    targets = smooth_targets(make_targets(LABELS, 3), 0.3)
    np.testing.assert_allclose(targets, 0.7 * np.eye(3)[LABELS] + 0.1, rtol=1e-6)


def test_mixup_weighs_inputs_and_targets_alike():
    targets = jax.nn.one_hot(LABELS, 3)
    mixed, blended = mixup(INPUTS, targets, 0.5, jax.random.key(3))
    w = np.asarray(mixed - INPUTS[::-1])[0] / np.asarray(INPUTS - INPUTS[::-1])[0]
    np.testing.assert_allclose(w, w.ravel()[0], rtol=1e-3)
    w = float(np.median(w))
    assert 0 < w < 1
    np.testing.assert_allclose(blended, w * targets + (1 - w) * targets[::-1], atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 8, 6, 2), (4, 9, 1)])
def test_cutmix_puts_a_box_of_the_other_example_in_and_weighs_by_what_is_left(shape):
    inputs = jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)
    targets = jax.nn.one_hot(LABELS, 3)
    shares = []
    for seed in range(20):
        mixed, blended = cutmix(inputs, targets, 1.0, jax.random.key(seed))
        foreign = np.asarray(mixed == inputs[::-1]).all(-1)
        own = np.asarray(mixed == inputs).all(-1)
        assert (foreign ^ own).all() and (foreign == foreign[0]).all()
        for axis in range(foreign.ndim - 1):  # a box: its rows and its columns are intervals
            line = foreign[0].any(tuple(a for a in range(foreign.ndim - 1) if a != axis))
            assert np.count_nonzero(np.diff(line.astype(int))) <= 2
        w = own[0].mean()
        np.testing.assert_allclose(blended, w * targets + (1 - w) * targets[::-1], atol=1e-5)
        shares.append(w)
    assert min(shares) < 0.6 < 0.8 < max(shares)


def test_both_ways_take_turns():
    mix = jax.jit(partial(mix_examples, settings(mixup=1.0, cutmix=1.0)))
    ways = set()
    for seed in range(10):
        inputs, targets = mix(INPUTS, jax.nn.one_hot(LABELS, 3), rng=jax.random.key(seed))
        np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-5)
        ways.add(bool(np.isin(np.asarray(inputs), np.asarray(INPUTS)).all()))
    assert ways == {True, False}
