"""Tagging: the masked loss and the metrics by plain oracles."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score
from small_runs import change

from experiments.configs import species_multilabel
from experiments.core.errors import UserError
from experiments.tasks import make_task, tagging
from experiments.tasks.tagging_metrics import compute_masked_loss, compute_scores
from experiments.train.validate import resolve_config

pytestmark = pytest.mark.usefixtures("standard_promotion")


def entries(rng, n=64, c=5):
    """Labels of which a third is not known, and logits."""
    labels = rng.integers(0, 2, (n, c)).astype(np.float32)
    labels[rng.random((n, c)) < 1 / 3] = np.nan
    return labels, rng.normal(0, 4, (n, c)).astype(np.float32)


def formula(labels, logits):
    """The paper's, in float64: the sum, and how many are known."""
    m = ~np.isnan(labels)
    t, z = np.where(m, labels, 0).astype(np.float64), logits.astype(np.float64)
    losses = np.maximum(z, 0) - z * t + np.log1p(np.exp(-np.abs(z)))
    return np.where(m, losses, 0).sum(), m.sum()


def test_the_loss_is_a_mean_over_all_entries_or_the_known_ones(rng):
    labels, logits = entries(rng)
    logits[0, :2] = 200, -200  # which overflow in probabilities
    total, known = formula(labels, logits)
    for norm, wanted in (("all", total / labels.size), ("known", total / known)):
        got = tagging.compute_masked_cross_entropy(jnp.asarray(logits), jnp.asarray(labels), norm)
        assert float(got) == pytest.approx(wanted, rel=1e-6)
        assert compute_masked_loss(labels, logits, norm) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("norm", ("all", "known"))
def test_unknown_labels_have_no_gradient(rng, norm):
    labels, logits = entries(rng)
    gradient = np.asarray(
        jax.grad(tagging.compute_masked_cross_entropy)(
            jnp.asarray(logits), jnp.asarray(labels), norm
        )
    )
    known = ~np.isnan(labels)
    assert (gradient[~known] == 0).all()
    share = labels.size if norm == "all" else known.sum()
    wanted = (expit(logits) - labels)[known] / share
    np.testing.assert_allclose(gradient[known], wanted, rtol=1e-4, atol=1e-9)


def test_without_known_labels_loss_and_gradient_are_zero():
    nothing = jnp.full((2, 3), jnp.nan)
    for norm in ("all", "known"):
        value, gradient = jax.value_and_grad(tagging.compute_masked_cross_entropy)(
            jnp.ones((2, 3)), nothing, norm
        )
        assert float(value) == 0 and not gradient.any()


def test_average_precision_is_that_of_scikit_learn(rng):
    labels, logits = entries(rng)
    labels[:, 3] = np.where(np.isnan(labels[:, 3]), np.nan, 0)  # never there
    labels[5:15] = 0  # examples with no label at all
    found = compute_scores(labels, expit(logits.astype(np.float64)), list("abcde"), 0.5)
    known = ~np.isnan(labels)
    wanted = {
        name: average_precision_score(labels[known[:, i], i], logits[known[:, i], i])
        for i, name in enumerate("abcde")
        if name != "d"
    }
    assert found["ap"].pop("d") is None
    assert found["ap"] == pytest.approx(wanted)
    assert found["map"] == pytest.approx(np.mean(list(wanted.values())))
    assert found["total_ap"] == pytest.approx(average_precision_score(labels[known], logits[known]))


def test_precision_and_recall_are_counted_by_hand():
    nan = np.nan
    labels = np.array([[1, 0], [1, nan], [0, 1], [0, 0], [nan, 0]])
    probabilities = np.array([[0.9, 0.8], [0.2, 0.9], [0.6, 0.7], [0.1, 0.1], [0.99, 0.0]])
    found = compute_scores(labels, probabilities, ["a", "b"], threshold=0.5)
    # a: one of two is found, beside one mistake. b: the one is found, beside one mistake.
    assert (found["precision"], found["recall"]) == (0.5, 0.75)
    assert found["total_precision"] == pytest.approx(2 / 4)
    assert found["total_recall"] == pytest.approx(2 / 3)
    # a: all above 0.2, F1 0.8. b: all from 0.7, F1 2/3.
    best = found["at_best_f1"]
    assert best["f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert best["recall"] == 1 and best["precision"] == pytest.approx(7 / 12)
    # All together: three of the five from 0.2 on.
    assert best["total_recall"] == 1 and best["total_precision"] == pytest.approx(3 / 5)
    assert compute_scores(labels, probabilities, ["a", "b"], 0.95)["total_recall"] == 0


def test_scores_without_examples_are_numbers():
    found = compute_scores(np.zeros((4, 2)), np.full((4, 2), np.nan), ["a", "b"], 0.5)
    assert found.pop("ap") == {"a": None, "b": None}
    assert all(value == 0 for value in (*found.pop("at_best_f1").values(), *found.values()))


def small(**changes):
    config = species_multilabel.get_config("digits,smoke")
    settings = {"model.width": 4, "model.stem": "small", "optimizer.learning_rate": 1e-2}
    return change(config, settings | changes)


def test_one_label_per_example_becomes_one_hot():
    labels = tagging.make_targets(jnp.array([2, 0]), 3)
    np.testing.assert_array_equal(labels, [[0, 0, 1], [1, 0, 0]])


def test_the_head_alone_changes_no_statistics():
    config = small()
    model = make_task(config).make_model(4, spatial_axes=2)
    x, label = jnp.zeros((4, 8, 8, 1)), jnp.zeros((4, 4))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))

    def loss(head_only, variables):
        batch, rng = {"inputs": x, "label": label}, jax.random.key(1)
        return make_task(config).compute_loss(model, variables, batch, rng, head_only)[1]

    metrics, changed = jax.eval_shape(partial(loss, False), variables)
    alone, untouched = jax.eval_shape(partial(loss, True), variables)
    assert metrics == alone and "batch_stats" in changed and "batch_stats" not in untouched


def test_networks_and_labels_of_other_tasks_are_refused():
    with pytest.raises(UserError, match="net1 is for the classification of series"):
        resolve_config(small(**{"model.network": "net1"}))
    config = species_multilabel.get_config("audio")
    resolve_config(config)
    config.audio.labels = "class"
    with pytest.raises(UserError, match="labels=class: the task tagging takes multi"):
        resolve_config(config)
