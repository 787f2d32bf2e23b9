"""How well clusters agree with labels, and clusters of codes."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

MOST = 5_000  # codes whose distances to each other are all held at once
DRAWS = 20
SHARE = 0.5
MOST_DRAWN = 1_000


class BCubed(NamedTuple):
    """Precision, recall and their harmonic mean."""

    precision: float
    recall: float
    f: float


def compute_b_cubed(labels: Sequence[Hashable], clusters: Sequence[Hashable]) -> BCubed:
    """How far the items of a cluster have one label, and the items of a label are in one cluster.

        P = mean_i |C(i) & L(i)| / |C(i)|,    R = mean_i |C(i) & L(i)| / |L(i)|,    F = 2PR / (P + R)

    C(i) is the cluster of item i, and L(i) all items of its label.

    Args:
        labels: of N items.
        clusters: of the same items.

    Raises:
        ValueError: if there are no items, or not as many of one as of the other.

    Source:
        Bagga, Baldwin: Entity-based cross-document coreferencing using the vector space model. ACL 1998.

    Example:
        >>> [round(value, 4) for value in compute_b_cubed("001122", "000111")]
        [0.5556, 0.8333, 0.6667]
    """
    both = _counts(labels, clusters)
    items = both.sum()
    precision = float((both**2 / both.sum(axis=0, keepdims=True)).sum() / items)
    recall = float((both**2 / both.sum(axis=1, keepdims=True)).sum() / items)
    return BCubed(precision, recall, 2 * precision * recall / (precision + recall))


def compute_purity(labels: Sequence[Hashable], clusters: Sequence[Hashable]) -> float:
    """The share of items that have the most frequent label of their cluster.

        purity = sum_c max_l |c & l| / N

    Args:
        labels: of N items.
        clusters: of the same items.

    Raises:
        ValueError: if there are no items, or not as many of one as of the other.

    Example:
        >>> round(compute_purity("001122", "000111"), 4)
        0.6667
    """
    both = _counts(labels, clusters)
    return float(both.max(axis=0).sum() / both.sum())


def _counts(labels: Sequence[Hashable], clusters: Sequence[Hashable]) -> np.ndarray:
    """How many items have each label and are in each cluster, float64 `[labels, clusters]`."""
    if len(labels) != len(clusters) or not len(labels):
        raise ValueError(f"{len(labels)} labels, but {len(clusters)} clusters")
    rows, columns = (_numbered(names) for names in (labels, clusters))
    both = np.zeros((max(rows) + 1, max(columns) + 1))
    np.add.at(both, (rows, columns), 1)
    return both


def _numbered(names: Sequence[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]


def standardise(codes: np.ndarray) -> np.ndarray:
    """Each feature with mean 0 and standard deviation 1; those that are the same for all, 0.

    Indices are counted in decibels, shares and events a second: without this the largest numbers would
    decide alone.
    """
    codes = codes.astype(np.float64)
    codes = codes - codes.mean(axis=0)
    spread = codes.std(axis=0)
    alike = spread <= 1e-12 * np.abs(codes).max(axis=0, initial=1.0)
    return np.where(alike, 0.0, codes / np.where(alike, 1.0, spread))


def cluster_codes(codes: np.ndarray, number: int, seed: int = 0) -> np.ndarray:
    """Which cluster each code is in, int `[N]`: Ward's method on standardised features.

    Of more than 5,000 codes so many are drawn and clustered; the others join the nearest mean.

    Args:
        codes: floats `[N, D]`.
        number: of clusters; at most as many as there are codes, and 5,000.
        seed: decides the draw.
    """
    from sklearn.cluster import AgglomerativeClustering

    number = min(number, len(codes), MOST)
    if number < 2:
        return np.zeros(len(codes), int)
    codes = standardise(codes)
    drawn = np.arange(len(codes))
    if len(codes) > MOST:
        drawn = np.random.default_rng(seed).choice(len(codes), MOST, replace=False)
    found = AgglomerativeClustering(number, linkage="ward").fit_predict(codes[drawn])
    if len(drawn) == len(codes):
        return found
    means = np.stack([codes[drawn][found == cluster].mean(axis=0) for cluster in range(number)])
    # |a - b|^2 without |a|^2, which is the same for all clusters.
    nearest = (np.sum(means**2, axis=1) - 2 * codes @ means.T).argmin(axis=1)
    nearest[drawn] = found
    return nearest


def score_subsets(
    labels: Sequence[Hashable], codes: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """B-cubed and purity of clusters of random subsets: each measure's (mean, standard deviation).

    Each draw takes half of the items, 1,000 at most, without replacement; they are clustered by
    `cluster_codes` into as many clusters as they have labels. The draws depend on the seed and
    on the number of items alone, so that codes of several kinds are compared on the same ones.

    Args:
        labels: of N items.
        codes: floats `[N, D]`.
        draws: how many subsets.
        seed: decides which.
    """
    rng, found = np.random.default_rng(seed), []
    size = min(max(round(SHARE * len(labels)), 2), MOST_DRAWN, len(labels))
    for _ in range(draws):
        drawn = rng.choice(len(labels), size, replace=False)
        names = [labels[index] for index in drawn]
        clusters = cluster_codes(codes[drawn], len(set(names)))
        found.append((*compute_b_cubed(names, clusters), compute_purity(names, clusters)))
    means, spreads = np.mean(found, axis=0), np.std(found, axis=0)
    measures = ("precision", "recall", "f", "purity")
    return {
        name: (float(mean), float(spread))
        for name, mean, spread in zip(measures, means, spreads, strict=True)
    }
