"""The confusion matrix of a classifier."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import PercentFormatter

from experiments.core.words import count_noun
from experiments.figures import style


def draw_confusion(matrix: np.ndarray, classes: Sequence[str], path: str | os.PathLike) -> None:
    """Draws a confusion matrix `[C, C]` of the test split; rows are the truth, columns the predictions.

    Up to 20 classes have their counts in the cells; with more classes, the pairs that are confused most
    often are listed beside the matrix. scikit-learn's display does not shorten names, and needs pyplot.
    """
    matrix = np.asarray(matrix)
    number = len(classes)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, matrix / np.maximum(totals, 1), np.nan)
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    title = f"Confusion matrix: test accuracy {accuracy:.2%} of {count_noun(int(matrix.sum()), 'example')}"
    caption = "Colour: share of a row, that is of the examples of one true class."
    if (totals == 0).any():
        caption += " Grey rows: classes without an example."
    numbered = number <= style.MOST_NUMBERED
    if numbered:
        size = max(4.6, 0.42 * number + 1.6)
        figure = style.new_figure(size + 0.9, size + 0.3, title, caption)
        axes = figure.subplots()
    else:
        size, beside = 7.6, 3.9
        figure = style.new_figure(size + 0.9 + beside, size + 0.3, title, caption)
        axes, right = figure.subplots(1, 2, width_ratios=[size, beside])
        _list_worst_pairs(right, matrix, classes)
    # With many classes the mistakes are faint: the root lifts them.
    norm = PowerNorm(1.0 if numbered else 0.5, vmin=0, vmax=1)
    image = axes.imshow(
        shares, cmap=style.get_colormap("Blues"), norm=norm, interpolation="nearest"
    )
    style.style_axes(axes, xlabel="prediction", ylabel="truth", grid=False, frame=True)
    style.set_class_ticks(axes.yaxis, classes, size - 1.6)
    style.set_class_ticks(axes.xaxis, classes, size - 1.6)
    longest = max(len(style.shorten(name)) for name in classes)
    fits_horizontally = numbered and longest * 0.08 < (size - 1.6) / number
    axes.tick_params(axis="x", rotation=0 if fits_horizontally else 90)
    bar = style.add_colorbar(image, axes, fraction=0.04, pad=0.02, aspect=30)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1] if numbered else [0, 0.05, 0.25, 0.5, 1])
    if numbered:
        _write_counts(axes, matrix, shares)
    style.save_figure(figure, path)


def _write_counts(axes: Axes, matrix: np.ndarray, shares: np.ndarray) -> None:
    """Writes the counts into the cells that are not zero."""
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            text = f"{int(count)}"
            colour = "white" if shares[row, column] > 0.5 else style.INK
            size = 9 if len(text) < 4 else 7
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)


def _list_worst_pairs(axes: Axes, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Lists the most frequent mistakes and the classes with the lowest recall."""
    axes.axis("off")
    mistakes = matrix.copy()
    np.fill_diagonal(mistakes, 0)
    totals = matrix.sum(axis=1)
    heading, pairs = "Most confused pairs (truth → prediction)", []
    for flat in np.argsort(-mistakes, axis=None, kind="stable")[:14]:
        truth, guess = np.unravel_index(flat, mistakes.shape)
        if mistakes[truth, guess]:
            count = f"{int(mistakes[truth, guess])} of {int(totals[truth])}"
            names = f"{style.shorten(classes[truth], 20)} → {style.shorten(classes[guess], 20)}"
            pairs.append(f"{count:>9}   {names}")
    present = np.flatnonzero(totals)
    recalls = np.diag(matrix)[present] / totals[present]
    hardest = [
        f"{recalls[index]:>9.0%}   {style.shorten(classes[present[index]], 34)}"
        for index in np.argsort(recalls, kind="stable")[:10]
    ]
    headings = {heading, "Classes recognised least"}
    lines = [heading, *(pairs or ["none"]), "", "Classes recognised least", *hardest]
    step = 1 / max(len(lines), 28)
    for position, text in enumerate(lines):
        look = {"fontsize": 8}
        if text in headings:
            look = {"fontsize": 9, "fontweight": "bold"}
        place = (0.0, 1 - position * step)
        axes.text(*place, text, transform=axes.transAxes, va="top", color=style.INK, **look)
