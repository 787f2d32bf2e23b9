"""Calibration: how often predictions of about one probability are right."""

import os

import numpy as np

from experiments.core.words import count_noun
from experiments.figures import style


def draw_calibration(
    edges: np.ndarray,
    counts: np.ndarray,
    predicted: np.ndarray,
    observed: np.ndarray,
    error: float,
    path: str | os.PathLike,
) -> None:
    """Draws a reliability diagram: the share that is right over the probability, and the number of each.

    The arguments are those of `experiments.tasks.ranking.Calibration`.
    """
    total = int(counts.sum())
    title = f"Calibration: expected error {error:.3f} over {count_noun(total, 'prediction')}"
    caption = (
        "On the dashed line, predictions of 80 % are right in 80 % of cases; below it they are too sure. "
        "Right of the points: the number of predictions, if fewer than 20."
    )
    figure = style.new_figure(5.6, 6.2, title, caption)
    upper, lower = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    upper.plot([0, 1], [0, 1], linestyle="--", color=style.FAINT, linewidth=1)
    some = counts > 0
    x, y = predicted[some], observed[some]
    upper.plot(x, y, marker="o", color=style.VALIDATION, linewidth=1.4)
    for at, share, count in zip(x, y, counts[some], strict=True):
        if count < 20:
            place = {"xytext": (5, -3), "textcoords": "offset points", "fontsize": 8}
            upper.annotate(str(int(count)), (at, share), color=style.FAINT, **place)
    upper.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    style.style_axes(upper, ylabel="share that is right")
    widths = np.diff(edges)
    lower.bar(edges[:-1], counts, widths, align="edge", color=style.TRAIN, edgecolor="white")
    lower.set_yscale("symlog", linthresh=1)
    style.style_axes(lower, xlabel="probability", ylabel="predictions")
    style.save_figure(figure, path)
