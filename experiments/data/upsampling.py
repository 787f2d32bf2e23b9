"""Repeats examples of rare classes."""

import numpy as np


def repeat_rare_classes(labels: np.ndarray, ratio: float) -> np.ndarray:
    """Returns positions of examples in order, those of rare classes several times.

    With n_c examples of class c, an example is repeated

        r = round(max over its classes of max(1, ratio * max_k n_k / n_c))

    times, once if it has no class.

    Args:
        labels: int `[N]`, or float `[N, C]`, 1 where an example has a class.
        ratio: 0 to 1; with 1 all classes become about as frequent as the most frequent one.

    Source: Gupta, Dollar, Girshick: LVIS, CVPR 2019, whose repeat factors have a square root.

    Example:
        >>> repeat_rare_classes(np.array([0, 0, 0, 0, 1, 2, 2]), ratio=1.0).tolist()
        [0, 1, 2, 3, 4, 4, 4, 4, 5, 5, 6, 6]
    """
    members = labels == 1 if labels.ndim == 2 else labels[:, None] == np.arange(labels.max() + 1)
    counts = members.sum(axis=0)
    factors = np.maximum(1.0, ratio * counts.max() / np.maximum(counts, 1))
    repeats = np.where(members, factors, 1.0).max(axis=1)
    return np.repeat(np.arange(len(labels)), np.rint(repeats).astype(int))
