"""Precision over recall, class by class."""

import dataclasses
import math
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from experiments.core.words import agree, count_noun
from experiments.figures import style

COLOURS = (*style.PALETTE, style.TRAIN)  # of the classes that are named; the others are grey


@dataclasses.dataclass(frozen=True, eq=False)
class PRCurve:
    """Precision and recall as the threshold rises.

    Attributes:
        precision: at each threshold; one value more than thresholds, the last is 1.
        recall: likewise, the last is 0.
        thresholds: rising; examples that score as much or more are predicted.
        average_precision: sum over the thresholds of (R_n - R_(n-1)) P_n.
    """

    precision: np.ndarray
    recall: np.ndarray
    thresholds: np.ndarray
    average_precision: float


def draw_pr_curves(
    classes: Sequence[str],
    curves: Sequence[PRCurve | None],
    pooled: PRCurve | None,
    path: str | os.PathLike,
) -> None:
    """Draws precision over recall of each class, and of all decisions taken together.

    Args:
        classes: C names.
        curves: of each class; None for a class without examples.
        pooled: the micro-averaged curve; None leaves it out.
        path: the PNG to write. With more than 8 classes, all but the best and the worst are grey.
    """
    order = [number for number, curve in enumerate(curves) if curve is not None]
    order.sort(key=lambda number: -curves[number].average_precision)
    named = order
    caption = "AP: average precision, the area below the curve."
    if len(order) > len(COLOURS):
        half = len(COLOURS) // 2
        named = [*order[:half], *order[-half:]]
        caption += f" Grey: the other {count_noun(len(order) - len(named), 'class', 'classes')}."
    if empty := len(curves) - len(order):
        caption += (
            f" {empty} of {len(curves)} classes {agree(empty, 'has', 'have')} no example here."
        )
    mean = np.mean([curves[number].average_precision for number in order]) if order else math.nan
    title = f"Precision and recall: mean average precision {mean:.3f}"
    figure = style.new_figure(8.4, 5.6, title, caption)
    axes = figure.subplots()
    style.style_axes(axes, xlabel="recall", ylabel="precision")
    if pooled:
        label = f"all together: AP {pooled.average_precision:.3f}"
        _plot_curve(axes, pooled, color=style.INK, linewidth=2.2, label=label, zorder=3)
    for number in order:
        if number not in named:
            _plot_curve(axes, curves[number], color=style.LINE, linewidth=0.6, zorder=1)
    for colour, number in zip(COLOURS, named, strict=False):
        label = f"{style.shorten(classes[number])}: AP {curves[number].average_precision:.3f}"
        _plot_curve(axes, curves[number], color=colour, linewidth=1.2, label=label, zorder=2)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02))
    if order:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False)
    style.save_figure(figure, path)


def _plot_curve(axes: Axes, curve: PRCurve, **options) -> None:
    """Plots at most a thousand points of a curve: no more can be told apart."""
    at = np.unique(np.linspace(0, curve.recall.size - 1, 1000).round().astype(int))
    axes.plot(curve.recall[at], curve.precision[at], drawstyle="steps-post", **options)
