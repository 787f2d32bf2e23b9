"""Mean scores of classes over groups of recordings, such as the hours of the day."""

import os
from collections.abc import Sequence

import numpy as np

from experiments.figures import style

_MOST_CLASSES, _MOST_GROUPS = 60, 80


def draw_activity(
    means: np.ndarray,
    groups: Sequence[str],
    classes: Sequence[str],
    kind: str,
    path: str | os.PathLike,
) -> None:
    """Draws mean scores `[G, C]` of classes in G groups of recordings; NaN where a group has none.

    Of more than 60 classes the most active are shown, and of more than 80 groups the first.
    """
    shown = np.arange(len(classes))
    if len(classes) > _MOST_CLASSES:
        best = np.nan_to_num(means).max(axis=0, initial=0.0)
        shown = np.sort(np.argsort(-best, kind="stable")[:_MOST_CLASSES])
    means, groups = means[:_MOST_GROUPS, shown].T, list(groups)[:_MOST_GROUPS]
    caption = "The mean score of all windows, with or without a detection."
    if np.isnan(means).any():
        caption += " Grey: no recordings."
    width = min(max(0.3 * len(groups), 4.5), 16.0) + 2.2
    height = min(0.26 * len(shown), 14.0) + 2.2
    figure = style.new_figure(width, height, f"Scores by {kind}", caption)
    axes = figure.subplots()
    top = float(np.nanmax(means, initial=0.0)) or 1.0
    image = axes.imshow(means, aspect="auto", cmap=style.get_colormap("viridis"), vmin=0, vmax=top)
    style.style_axes(axes, xlabel=kind, grid=False)
    style.set_class_ticks(axes.yaxis, [classes[number] for number in shown], height - 1.6)
    style.set_class_ticks(axes.xaxis, groups, width - 2.2)
    axes.tick_params(axis="x", rotation=90 if max(map(len, groups)) > 3 else 0)
    style.add_colorbar(image, axes, shrink=0.9)
    style.save_figure(figure, path)
