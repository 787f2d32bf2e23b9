"""Training targets of windows, and of moments in them, from annotations."""

from collections.abc import Sequence

import numpy as np

from experiments.audio.annotations import Annotation

_WHOLE = 0.95  # Times in tables are rounded.


def compute_targets(
    starts: np.ndarray,
    ends: np.ndarray,
    annotations: Sequence[Annotation],
    classes: Sequence[str],
    min_overlap: float = 0.25,
    min_fraction: float = 0.5,
    exhaustive: bool = False,
) -> np.ndarray:
    """Returns the known labels of each window of one recording.

    An annotation counts for the windows that overlap it by at least `min_overlap` seconds, or by at least
    `min_fraction` of its length; without any such window, for the one that overlaps it most. The label of a
    clip (`Annotation.is_clip`) counts for the windows in it, and a positive one for those around it: what is
    in a part of it is not known. Where two annotations disagree, positive takes precedence over negative, and
    negative over uncertain.

    Args:
        starts, ends: of the windows in seconds, `[n]`.
        annotations: annotations of this recording; labels that are not in `classes` are ignored.
        classes: C labels.
        min_overlap: in seconds.
        min_fraction: share of the annotation.
        exhaustive: whether a class without an annotation is absent rather than unknown.

    Returns:
        float32 `[n, C]`: 1 present, 0 absent, NaN unknown.

    Example:
        >>> call = Annotation("a.wav", start=1.9, end=3.0, label="wren")
        >>> starts, ends = np.array([0.0, 1.0, 2.0]), np.array([2.0, 3.0, 4.0])
        >>> compute_targets(starts, ends, [call], ["wren"], exhaustive=True)
        array([[0.],
               [1.],
               [1.]], dtype=float32)
    """
    starts, ends = np.asarray(starts, np.float64), np.asarray(ends, np.float64)
    targets = np.full((len(starts), len(classes)), 0.0 if exhaustive else np.nan, np.float32)
    numbers = {label: number for number, label in enumerate(classes)}
    # Later values overwrite earlier ones.
    for kind, value in ((None, np.nan), (False, 0.0), (True, 1.0)):
        for annotation in annotations:
            if annotation.positive is kind and annotation.label in numbers:
                overlapping = _find_windows(annotation, starts, ends, min_overlap, min_fraction)
                targets[overlapping, numbers[annotation.label]] = value
    return targets


def _find_windows(
    annotation: Annotation,
    starts: np.ndarray,
    ends: np.ndarray,
    min_overlap: float,
    min_fraction: float,
) -> np.ndarray:
    """Returns the windows that an annotation counts for, bool `[n]`."""
    overlap = np.minimum(ends, annotation.end) - np.maximum(starts, annotation.start)
    length = annotation.end - annotation.start
    if annotation.is_clip:
        counts = overlap >= _WHOLE * (ends - starts)
        if not annotation.positive:
            return counts
        counts |= overlap >= _WHOLE * length
    else:
        # The tolerance is for decimal times: 0.3 - 0.05 is slightly less than 0.25.
        needed = min(min_overlap, min_fraction * length) - 1e-9
        counts = (overlap >= needed) & (overlap > 0)
    if not counts.any() and len(overlap) and overlap.max() > 0:
        counts[overlap.argmax()] = True
    return counts


def mark_moments(
    times: np.ndarray,
    annotations: Sequence[Annotation],
    classes: Sequence[str],
    exhaustive: bool = False,
) -> np.ndarray:
    """Returns the known labels of moments of one recording.

    An annotation counts for the moments from its start to its end; without any, for the nearest one if that
    is no farther than the next moment. What a positive label of a clip (`Annotation.is_clip`) says of a
    moment in it is unknown. Precedence is as in `compute_targets`.

    Args:
        times: the moments in seconds, `[n]`, ascending in equal steps.
        annotations: annotations of this recording; labels that are not in `classes` are ignored.
        classes: C labels.
        exhaustive: whether a class without an annotation is absent rather than unknown.

    Returns:
        float32 `[n, C]`: 1 present, 0 absent, NaN unknown.

    Example:
        >>> call = Annotation("a.wav", start=0.9, end=2.2, label="wren")
        >>> mark_moments(np.array([0.0, 1.0, 2.0, 3.0]), [call], ["wren"], exhaustive=True).ravel()
        array([0., 1., 1., 0.], dtype=float32)
    """
    times = np.asarray(times, np.float64)
    step = times[1] - times[0] if len(times) > 1 else np.inf
    targets = np.full((len(times), len(classes)), 0.0 if exhaustive else np.nan, np.float32)
    numbers = {label: number for number, label in enumerate(classes)}
    # Later values overwrite earlier ones: clips come first, because other annotations say more.
    ordered = sorted(annotations, key=lambda one: not one.is_clip)
    for kind, value in ((None, np.nan), (False, 0.0), (True, 1.0)):
        for annotation in ordered:
            if annotation.positive is not kind or annotation.label not in numbers:
                continue
            first, last = np.searchsorted(times, [annotation.start, annotation.end])
            if first == last:
                middle = (annotation.start + annotation.end) / 2
                nearest = int(np.abs(times - middle).argmin())
                if abs(times[nearest] - middle) <= step / 2:
                    first, last = nearest, nearest + 1
            known = np.nan if kind and annotation.is_clip else value
            targets[first:last, numbers[annotation.label]] = known
    return targets
