"""What annotations say about the windows of a recording."""

from collections.abc import Sequence

import numpy as np

from experiments.audio.annotations import Annotation


def compute_targets(
    starts: np.ndarray,
    ends: np.ndarray,
    annotations: Sequence[Annotation],
    classes: Sequence[str],
    min_overlap: float = 0.25,
    min_fraction: float = 0.5,
    exhaustive: bool = False,
) -> np.ndarray:
    """What is known of the classes in each window of one recording.

    An annotation counts for the windows that share `min_overlap` seconds or more with it, or `min_fraction`
    of it or more; one that has none, for the window that shares most with it. Where annotations differ,
    positive goes before negative, and negative before uncertain.

    Args:
        starts, ends: of the windows in seconds, `[n]`.
        annotations: of this recording; those of other labels than `classes` are left out.
        classes: C labels.
        min_overlap: in seconds.
        min_fraction: of the annotation.
        exhaustive: whether what is not annotated is not there, rather than unknown.

    Returns:
        float32 `[n, C]`: 1 there, 0 not there, NaN unknown.

    Example:
        >>> call = Annotation("a.wav", start=1.9, end=3.0, label="wren")
        >>> starts, ends = np.array([0.0, 1.0, 2.0]), np.array([2.0, 3.0, 4.0])
        >>> compute_targets(starts, ends, [call], ["wren"], exhaustive=True)
        array([[0.],
               [1.],
               [1.]], dtype=float32)
    """
    starts, ends = np.asarray(starts, np.float64), np.asarray(ends, np.float64)
    found = np.full((len(starts), len(classes)), 0.0 if exhaustive else np.nan, np.float32)
    numbers = {label: number for number, label in enumerate(classes)}
    # Later ones overwrite earlier ones.
    for kind, value in ((None, np.nan), (False, 0.0), (True, 1.0)):
        for one in annotations:
            if one.positive is kind and one.label in numbers:
                here = _windows_of(one, starts, ends, min_overlap, min_fraction)
                found[here, numbers[one.label]] = value
    return found


def _windows_of(
    one: Annotation, starts: np.ndarray, ends: np.ndarray, min_overlap: float, min_fraction: float
) -> np.ndarray:
    """Which windows an annotation counts for, bool `[n]`."""
    shared = np.minimum(ends, one.end) - np.maximum(starts, one.start)
    # Times are decimals, and 0.3 - 0.05 is less than 0.25 by some bits.
    least = min(min_overlap, min_fraction * (one.end - one.start)) - 1e-9
    here = (shared >= least) & (shared > 0)
    if not here.any() and len(shared) and shared.max() > 0:
        here[shared.argmax()] = True
    return here
