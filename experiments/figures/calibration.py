"""Calibration: how often predictions of about one probability are right."""

import os
from typing import Protocol

import numpy as np

from experiments.core.words import count_noun
from experiments.figures import style


class Bins(Protocol):
    """Bins of predictions by probability; see `experiments.tasks.ranking.Calibration`."""

    @property
    def edges(self) -> np.ndarray:
        """Of the bins, `[bins + 1]`."""

    @property
    def counts(self) -> np.ndarray:
        """Number of predictions in each."""

    @property
    def predicted(self) -> np.ndarray:
        """Mean probability of each."""

    @property
    def observed(self) -> np.ndarray:
        """Share of each that is right."""

    @property
    def error(self) -> float:
        """Expected calibration error."""


def draw_calibration(bins: Bins, path: str | os.PathLike) -> None:
    """Draws a reliability diagram: the share that is right over the probability, and the number of each."""
    total = int(bins.counts.sum())
    title = f"Calibration: expected error {bins.error:.3f} over {count_noun(total, 'prediction')}"
    caption = (
        "On the dashed line, predictions of 80 % are right in 80 % of cases; below it they are too sure. "
        "Right of the points: the number of predictions, if fewer than 20."
    )
    figure = style.new_figure(5.6, 6.2, title, caption)
    upper, lower = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    upper.plot([0, 1], [0, 1], linestyle="--", color=style.FAINT, linewidth=1)
    some = bins.counts > 0
    x, y, counts = bins.predicted[some], bins.observed[some], bins.counts[some]
    upper.plot(x, y, marker="o", color=style.VALIDATION, linewidth=1.4)
    for at, share, count in zip(x, y, counts, strict=True):
        if count < 20:
            place = {"xytext": (5, -3), "textcoords": "offset points", "fontsize": 8}
            upper.annotate(str(int(count)), (at, share), color=style.FAINT, **place)
    upper.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    style.style_axes(upper, ylabel="share that is right")
    widths = np.diff(bins.edges)
    lower.bar(
        bins.edges[:-1], bins.counts, widths, align="edge", color=style.TRAIN, edgecolor="white"
    )
    lower.set_yscale("symlog", linthresh=1)
    style.style_axes(lower, xlabel="probability", ylabel="predictions")
    style.save_figure(figure, path)
