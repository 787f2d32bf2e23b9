"""Clusters codes and measures how well clusters agree with labels."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

MAX_CODES = 5_000
"""Maximum number of codes whose pairwise distances are all held in memory."""

DRAWS = 20
SHARE = 0.5
MAX_DRAWN = 1_000


class BCubed(NamedTuple):
    """B-cubed precision, recall and their harmonic mean."""

    precision: float
    recall: float
    f: float


def compute_b_cubed(labels: Sequence[Hashable], clusters: Sequence[Hashable]) -> BCubed:
    """Returns how far clusters have one label (precision) and labels are in one cluster (recall).

        P = mean_i |C(i) & L(i)| / |C(i)|,    R = mean_i |C(i) & L(i)| / |L(i)|,    F = 2PR / (P + R)

    C(i) are the items in the cluster of item i, and L(i) the items with its label.

    Args:
        labels: label of each of N items.
        clusters: cluster of each item.

    Raises:
        ValueError: if there are no items, or labels and clusters differ in number.

    Source:
        Bagga, Baldwin: Entity-based cross-document coreferencing using the vector space model. ACL 1998.

    Example:
        >>> [round(value, 4) for value in compute_b_cubed("001122", "000111")]
        [0.5556, 0.8333, 0.6667]
    """
    both = _count_items(labels, clusters)
    items = both.sum()
    precision = float((both**2 / both.sum(axis=0, keepdims=True)).sum() / items)
    recall = float((both**2 / both.sum(axis=1, keepdims=True)).sum() / items)
    return BCubed(precision, recall, 2 * precision * recall / (precision + recall))


def compute_purity(labels: Sequence[Hashable], clusters: Sequence[Hashable]) -> float:
    """Returns the share of items that have the most frequent label of their cluster.

        purity = sum_c max_l |c & l| / N

    Arguments as for `compute_b_cubed`.

    Example:
        >>> round(compute_purity("001122", "000111"), 4)
        0.6667
    """
    both = _count_items(labels, clusters)
    return float(both.max(axis=0).sum() / both.sum())


def _count_items(labels: Sequence[Hashable], clusters: Sequence[Hashable]) -> np.ndarray:
    """Returns the number of items per label and cluster, float64 `[labels, clusters]`."""
    from sklearn.metrics.cluster import contingency_matrix

    if len(labels) != len(clusters) or not len(labels):
        raise ValueError(f"{len(labels)} labels, but {len(clusters)} clusters")
    return contingency_matrix(list(labels), list(clusters), dtype=np.float64)


def standardise(codes: np.ndarray) -> np.ndarray:
    """Returns features with mean 0 and standard deviation 1; constant features become 0.

    Indices have different units (decibels, shares, events per second): without this the largest numbers
    would dominate.
    """
    codes = codes.astype(np.float64)
    codes = codes - codes.mean(axis=0)
    deviation = codes.std(axis=0)
    constant = deviation <= 1e-12 * np.abs(codes).max(axis=0, initial=1.0)
    return np.where(constant, 0.0, codes / np.where(constant, 1.0, deviation))


def cluster_codes(codes: np.ndarray, number: int, seed: int = 0) -> np.ndarray:
    """Returns the cluster of each code, int `[N]`, by Ward's method on standardised features.

    Of more than 5,000 codes, a random 5,000 are clustered; the others join the cluster with the nearest mean.

    Args:
        codes: floats `[N, D]`.
        number: number of clusters; at most the number of codes, and 5,000.
        seed: decides the random choice.
    """
    from sklearn.cluster import AgglomerativeClustering

    number = min(number, len(codes), MAX_CODES)
    if number < 2:
        return np.zeros(len(codes), int)
    codes = standardise(codes)
    drawn = np.arange(len(codes))
    if len(codes) > MAX_CODES:
        drawn = np.random.default_rng(seed).choice(len(codes), MAX_CODES, replace=False)
    clusters = AgglomerativeClustering(number, linkage="ward").fit_predict(codes[drawn])
    if len(drawn) == len(codes):
        return clusters
    means = np.stack([codes[drawn][clusters == cluster].mean(axis=0) for cluster in range(number)])
    # |a - b|^2 without |a|^2, which is equal for all clusters.
    nearest = (np.sum(means**2, axis=1) - 2 * codes @ means.T).argmin(axis=1)
    nearest[drawn] = clusters
    return nearest


def score_subsets(labels: Sequence[Hashable], codes: np.ndarray) -> dict[str, tuple[float, float]]:
    """Returns mean and standard deviation of B-cubed and purity over clusterings of random subsets.

    Each draw takes half of the items, at most 1,000, without replacement; `cluster_codes` makes as many
    clusters of them as they have labels. The draws depend only on the number of items, so that different
    kinds of codes, floats `[N, D]`, are compared on the same items.
    """
    rng, scores = np.random.default_rng(0), []
    size = min(max(round(SHARE * len(labels)), 2), MAX_DRAWN, len(labels))
    for _ in range(DRAWS):
        drawn = rng.choice(len(labels), size, replace=False)
        names = [labels[index] for index in drawn]
        clusters = cluster_codes(codes[drawn], len(set(names)))
        scores.append((*compute_b_cubed(names, clusters), compute_purity(names, clusters)))
    means, deviations = np.mean(scores, axis=0), np.std(scores, axis=0)
    measures = ("precision", "recall", "f", "purity")
    return {
        name: (float(mean), float(deviation))
        for name, mean, deviation in zip(measures, means, deviations, strict=True)
    }
