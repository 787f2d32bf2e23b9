"""Scores of clusters against the definition, item by item; periods and labels from names."""

import datetime

import numpy as np
import pytest

from experiments.audio import clusters as clustering
from experiments.audio.clusters import (
    cluster_codes,
    compute_b_cubed,
    compute_purity,
    score_subsets,
    standardise,
)
from experiments.audio.times import get_period


def by_items(labels, clusters):
    """B-cubed as it is defined, a pair of items at a time."""
    same_label = np.array(labels)[:, None] == np.array(labels)
    same_cluster = np.array(clusters)[:, None] == np.array(clusters)
    both = (same_label & same_cluster).sum(axis=1)
    precision = np.mean(both / same_cluster.sum(axis=1))
    recall = np.mean(both / same_label.sum(axis=1))
    return precision, recall, 2 * precision * recall / (precision + recall)


def test_scores_match_the_definition(rng):
    for _ in range(5):
        labels, clusters = rng.integers(0, 4, 30), rng.integers(0, 6, 30)
        np.testing.assert_allclose(compute_b_cubed(labels, clusters), by_items(labels, clusters))
        shares = [np.bincount(labels[clusters == c]).max() for c in set(clusters.tolist())]
        assert compute_purity(labels, clusters) == pytest.approx(sum(shares) / 30)


def test_perfect_and_trivial_clusters():
    assert (
        compute_b_cubed("aabb", [1, 1, 7, 7]) == (1, 1, 1)
        and compute_purity("aabb", [1, 1, 7, 7]) == 1
    )
    assert compute_b_cubed("aabb", "xxxx")[:2] == (0.5, 1) and compute_b_cubed("aabb", "wxyz")[
        :2
    ] == (1, 0.5)
    with pytest.raises(ValueError, match="2 labels, but 1 clusters"):
        compute_b_cubed("ab", "x")
    with pytest.raises(ValueError, match="0 labels"):
        compute_purity([], [])


def groups(rng, items=60, scale=(1.0, 1000.0, 0.0)):
    """Three groups, of features of very different sizes, one of which is the same for all."""
    labels = np.repeat(np.arange(3), items // 3)
    centres = np.array([[0, 0, 5], [6, 0, 5], [0, 6, 5]])
    return labels, (centres[labels] + rng.normal(0, 0.3, (len(labels), 3))) * scale


def test_clusters_do_not_depend_on_scale(rng, monkeypatch):
    labels, codes = groups(rng)
    assert compute_b_cubed(labels, cluster_codes(codes, 3)).f == 1
    # A draw of the many is clustered, and the others join it.
    monkeypatch.setattr(clustering, "MAX_CODES", 20)
    many = cluster_codes(np.random.default_rng(0).standard_normal((30, 2)), 25)
    assert len(many) == 30 and set(many) == set(range(20))  # of those drawn there are no more
    assert compute_b_cubed(labels, cluster_codes(codes, 3)).f == 1
    assert cluster_codes(codes[:1], 3).tolist() == [0]


def test_standardise():
    found = standardise(np.array([[1.0, 7.0, 1e6], [3.0, 7.0, 1e6 + 2]], np.float32))
    np.testing.assert_allclose(found, [[-1, 0, -1], [1, 0, 1]])


def test_score_subsets(rng):
    labels, codes = groups(rng)
    good, noise = score_subsets(labels, codes), score_subsets(labels, rng.normal(size=codes.shape))
    assert good == score_subsets(labels, codes)
    assert good["f"] == (1.0, 0.0) and good["purity"] == (1.0, 0.0)
    assert noise["f"][0] < 0.7 and noise["f"][1] > 0


def test_get_period():
    hours = [get_period(datetime.datetime(2019, 5, 22, hour)) for hour in range(24)]
    assert [hours[hour] for hour in (0, 4, 5, 7, 12, 17, 19, 21, 22, 23)] == [
        *("night", "night", "dawn", "morning", "afternoon", "dusk", "evening", "evening"),
        *("night", "night"),
    ]
    assert set(hours) == {"night", "dawn", "morning", "afternoon", "dusk", "evening"}
