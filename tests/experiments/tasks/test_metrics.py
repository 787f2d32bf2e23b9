import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from experiments.tasks.metrics import (
    compute_means,
    compute_precision_recall_f1,
    sum_classification,
)


def _sums(logits, labels, mask=None):
    logits = jnp.asarray(logits, jnp.float32)
    mask = jnp.ones(len(labels), bool) if mask is None else jnp.asarray(mask)
    return jax.jit(sum_classification)(logits, jnp.asarray(labels, jnp.int32), mask)


def test_sums_equal_numpys():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(64, 11)).astype(np.float32)
    labels = rng.integers(0, 11, 64)
    mask = rng.random(64) < 0.7
    sums = jax.device_get(_sums(logits, labels, mask))

    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
    np.testing.assert_allclose(sums["loss"], -log_p[np.arange(64), labels][mask].sum(), rtol=1e-5)
    assert sums["correct"] == (best[:, 0] == labels)[mask].sum()
    assert sums["correct5"] == (best == labels[:, None]).any(-1)[mask].sum()
    assert sums["count"] == mask.sum()
    assert {value.dtype for value in sums.values()} == {jnp.dtype("float32")}
    assert compute_means(sums)["accuracy"] == sums["correct"] / sums["count"]
    found = compute_means(sums)
    assert found["top1_error"] == pytest.approx(1 - found["accuracy"])
    assert found["top5_error"] == pytest.approx(1 - found["top5"])


@pytest.mark.parametrize("absent", [(), (3,), (0, 10)])
def test_precision_recall_and_f1_are_scikit_learns_over_the_classes_that_there_are(rng, absent):
    logits = rng.normal(size=(90, 11)).astype(np.float32)
    logits[:, 5] = -9  # never predicted
    mask = rng.random(90) < 0.8
    present = [number for number in range(11) if number not in absent]
    labels = rng.choice(present, 90)
    # A batch and a half.
    parts = [
        jax.device_get(_sums(logits[at], labels[at], mask[at]))
        for at in np.split(np.arange(90), [60])
    ]
    found = compute_means({name: parts[0][name] + parts[1][name] for name in parts[0]})
    seen = np.unique(labels[mask])
    expected = precision_recall_fscore_support(
        labels[mask], logits[mask].argmax(-1), labels=seen, average="macro", zero_division=0
    )[:3]
    np.testing.assert_allclose(
        [found[n] for n in ("precision", "recall", "f1")], expected, rtol=1e-6
    )
    each = compute_precision_recall_f1([0, 3, 0], [0, 6, 2], [4, 4, 0])
    np.testing.assert_allclose(each["precision"], [0, 0.5, np.nan])
    np.testing.assert_allclose(each["recall"], [0, 0.75, np.nan])
    np.testing.assert_allclose(each["f1"], [0, 0.6, np.nan])


def test_of_equal_logits_the_lower_index_is_better():
    # All ten equal: the first is predicted, the first five are among the best five.
    sums = [_sums(np.zeros((1, 10)), [label]) for label in range(10)]
    assert [int(s["correct"]) for s in sums] == [1] + [0] * 9
    assert [int(s["correct5"]) for s in sums] == [1] * 5 + [0] * 5


def test_top5_of_few_classes_is_always_right():
    assert _sums([[3.0, 1.0, 2.0]], [1])["correct5"] == 1


def test_padding_may_hold_anything():
    sums = _sums([[2.0, 1.0], [np.nan, np.inf]], [0, -1], mask=[1.0, 0.0])
    assert np.isfinite(sums["loss"])
    assert (sums["correct"], sums["count"]) == (1, 1)


def test_nan_is_wrong():
    sums = _sums([[np.nan, np.nan], [np.nan, 1.0]], [0, 1])
    assert (sums["correct"], sums["correct5"]) == (0, 0)
    assert np.isnan(sums["loss"])
