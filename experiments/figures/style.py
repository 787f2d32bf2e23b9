"""The look of all figures: colours, ticks, names that fit, and files written whole or not at all."""

import math
import os
import textwrap
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from experiments.core.files import replace_file

DPI = 130
# Okabe and Ito's colours, which colour-blind readers tell apart too.
TRAIN, VALIDATION, BEST, WRONG = "#8a94a6", "#0072b2", "#009e73", "#d55e00"
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6d31")
"""Colours of curves, kernels and classes: Okabe and Ito's, without the yellow, which is lost on white."""
INK, FAINT, LINE = "#222222", "#666666", "#cccccc"
NUMBERED = 20  # up to so many classes, every cell of a confusion matrix has its number


def new_figure(width: float, height: float, title: str, caption: str = "") -> Figure:
    """A figure of `width` by `height` inches with a title above and a caption below."""
    # Figure and canvas by hand: pyplot would keep every figure and choose a backend for all.
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.08)
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK)
    if caption:
        figure.supxlabel(textwrap.fill(caption, int(width / 0.067)), fontsize=8.5, color=FAINT)
    return figure


def style_axes(
    axes: Axes, xlabel: str = "", ylabel: str = "", grid: bool = True, frame: bool = False
) -> None:
    """The look of every panel: few lines, small grey numbers."""
    for side, spine in axes.spines.items():
        spine.set_color(LINE)
        spine.set_visible(frame or side in ("left", "bottom"))
    axes.tick_params(labelsize=8.5, colors=FAINT, length=2.5)
    axes.set_xlabel(xlabel, fontsize=9.5, color=INK)
    axes.set_ylabel(ylabel, fontsize=9.5, color=INK)
    if grid:
        axes.grid(color="#e8e8e8", linewidth=0.7)
        axes.set_axisbelow(True)


def class_ticks(axis, classes: Sequence[str], inches: float) -> None:
    """Class names along an axis of so many inches, thinned until they do not touch."""
    every = max(1, math.ceil(len(classes) / (inches / 0.135)))
    ticks = range(0, len(classes), every)
    axis.set_ticks(ticks, [short(classes[tick]) for tick in ticks])
    axis.set_tick_params(labelsize=9 if len(classes) <= NUMBERED and inches > 3 else 7)


def colormap(name: str) -> Colormap:
    """A colour map that shows what was not measured (NaN) in grey."""
    return matplotlib.colormaps[name].with_extremes(bad="#dddddd")


def class_name(classes: Sequence[str], index: int) -> str:
    """The name of a class, for a figure."""
    return str(classes[int(index)])


def short(name: str, letters: int = 22) -> str:
    """A class name that fits."""
    name = str(name)
    return escape(name if len(name) <= letters else f"{name[: letters - 1]}…")


def escape(text: str) -> str:
    """Dollars as dollars: matplotlib would read a pair of them as a formula."""
    return text.replace("$", r"\$")


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes the PNG."""
    with replace_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
