"""Focal losses against the formula in float64, and repetitions of rare classes against a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.data.upsampling import repeat_rare_classes
from experiments.tasks.classification import compute_cross_entropy
from experiments.tasks.tagging import compute_masked_cross_entropy


def test_focal_loss_of_several_labels(rng):
    logits = rng.normal(0, 3, (6, 4)).astype(np.float32)
    labels = rng.integers(0, 2, (6, 4)).astype(np.float32)
    found = compute_masked_cross_entropy(jnp.asarray(logits), jnp.asarray(labels), "all", 2.0)
    expected = optax.losses.sigmoid_focal_loss(jnp.asarray(logits), jnp.asarray(labels), gamma=2.0)
    np.testing.assert_allclose(found, expected.mean(), rtol=1e-5)
    labels[0] = np.nan
    of = jax.value_and_grad(compute_masked_cross_entropy)
    value, gradient = of(jnp.asarray(logits), jnp.asarray(labels), "known", 0.5)
    p = 1 / (1 + np.exp(-logits[1:].astype(np.float64)))
    right = np.where(labels[1:] == 1, p, 1 - p)
    np.testing.assert_allclose(value, (-np.sqrt(1 - right) * np.log(right)).mean(), rtol=1e-5)
    assert np.isfinite(gradient).all() and not gradient[0].any()


def test_focal_loss_of_one_label(rng):
    logits = rng.normal(0, 3, (6, 4)).astype(np.float32)
    targets = rng.dirichlet(np.ones(4), 6).astype(np.float32)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    for focal in (0.0, 0.5, 2.0):
        expected = -(targets * (1 - p) ** focal * np.log(p)).sum(axis=1).mean()
        found = compute_cross_entropy(jnp.asarray(logits), jnp.asarray(targets), focal)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    sure = jnp.array([[100.0, 0.0]])
    gradient = jax.grad(compute_cross_entropy)(sure, jnp.array([[1.0, 0.0]]), 0.5)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_rare_classes_are_repeated(rng, ratio):
    labels = (rng.random((200, 4)) < (0.5, 0.2, 0.05, 0.01)).astype(np.float32)
    labels[3, 2], labels[5] = np.nan, 0
    counts = np.nansum(labels, axis=0)
    expected = []
    for at, row in enumerate(labels):
        factor = max([1.0, *(ratio * max(counts) / counts[c] for c in range(4) if row[c] == 1)])
        expected += [at] * round(factor)
    assert repeat_rare_classes(labels, ratio).tolist() == expected
    assert len(expected) > 200
