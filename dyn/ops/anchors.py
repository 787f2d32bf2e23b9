"""Anchors: boxes at every position of every level of a feature pyramid, relative to which boxes are coded."""

from collections.abc import Sequence

import numpy as np


def make_anchors(
    size: Sequence[int],
    feature_sizes: Sequence[Sequence[int]],
    scales: Sequence[float],
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
) -> tuple[np.ndarray, ...]:
    """Returns the anchors of each level of a pyramid.

    At position (i, j) of a level of h x w positions they are centred at (j W // w, i H // h), the upper left
    corner of what the position covers. For scale s and ratio r the height is s sqrt(r), the width
    s / sqrt(r), and half of each is rounded to whole pixels (torchvision's anchors).

    Args:
        size: `(H, W)` of the picture, padding included.
        feature_sizes: `(h, w)` of each level.
        scales: side of the square anchor of each level, in pixels.
        ratios: height divided by width of the anchors at each position.

    Returns:
        For each level `[h w R, 4]` in float32: by row, column and ratio. They are constants of a program.

    Raises:
        ValueError: if there are not as many scales as levels.

    Example:
        >>> from dyn.ops import make_anchors
        >>> coarse, = make_anchors((64, 128), [(1, 2)], scales=(32,))
        >>> coarse.astype(int).tolist()[:4]
        [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23], [41, -11, 87, 11]]
    """
    if len(scales) != len(feature_sizes):
        raise ValueError(
            f"scales={tuple(scales)} are {len(scales)}, and the pyramid has {len(feature_sizes)} levels: "
            "write one for each level."
        )
    roots = np.sqrt(np.asarray(ratios, np.float64))
    levels = []
    for (h, w), scale in zip(feature_sizes, scales, strict=True):
        half = np.stack([scale / roots, scale * roots], axis=-1) / 2
        cell = np.round(np.concatenate([-half, half], axis=-1))
        rows, columns = np.arange(h) * (size[0] // h), np.arange(w) * (size[1] // w)
        corners = np.stack(np.meshgrid(columns, rows), axis=-1)
        anchors = np.tile(corners, 2)[:, :, None] + cell
        levels.append(anchors.reshape(-1, 4).astype(np.float32))
    return tuple(levels)
