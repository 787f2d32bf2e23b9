"""The look of all figures: colours, axes, names that fit; and the colours of segmentation masks."""

import math
import os
import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from experiments.core.escaping import escape_control
from experiments.core.files import replace_file

DPI = 130
# Okabe and Ito's colours, which colour-blind readers can tell apart; without their yellow, lost on white.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6d31")
TRAIN, VALIDATION, BEST, WRONG = "#8a94a6", "#0072b2", "#009e73", "#d55e00"
INK, FAINT, LINE = "#222222", "#666666", "#cccccc"
MOST_NUMBERED = 20  # with more classes, confusion matrices have no numbers in their cells


def new_figure(width: float, height: float, title: str, caption: str = "") -> Figure:
    """Returns a figure of `width` by `height` inches with a title above and a caption below."""
    # Figure and canvas by hand: pyplot would keep every figure and choose a backend for all.
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.08)
    figure.suptitle(escape(title), fontsize=12, fontweight="bold", color=INK)
    if caption:
        lines = textwrap.fill(escape(caption), int(width / 0.067))
        figure.supxlabel(lines, fontsize=8.5, color=FAINT)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure as PNG; an interrupted write leaves no broken file."""
    with replace_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def style_axes(
    axes: Axes, xlabel: str = "", ylabel: str = "", grid: bool = True, frame: bool = False
) -> None:
    """Gives a panel the common look: few lines, small grey numbers."""
    for side, spine in axes.spines.items():
        spine.set_color(LINE)
        spine.set_visible(frame or side in ("left", "bottom"))
    axes.tick_params(labelsize=8.5, colors=FAINT, length=2.5)
    axes.set_xlabel(xlabel, fontsize=9.5, color=INK)
    axes.set_ylabel(ylabel, fontsize=9.5, color=INK)
    if grid:
        axes.grid(color="#e8e8e8", linewidth=0.7)
        axes.set_axisbelow(True)


def make_grid(
    number: int, columns: int, width: float, height: float, title: str, caption: str
) -> tuple[Figure, list[Axes]]:
    """Returns a figure with a number of panels, at most `columns` in a row, and the panels.

    Width and height are those of a panel with its texts and margin, in inches.
    """
    columns = min(columns, number)
    rows = math.ceil(number / columns)
    # Wide enough for the title, too.
    total_width = max(columns * width + 0.2, 0.12 * len(title), 4.5)
    figure = new_figure(total_width, rows * height + 0.9, title, caption)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[number:]:
        axes.axis("off")
    return figure, list(panels[:number])


def add_colorbar(image: AxesImage, axes: Axes | Sequence[Axes], **options) -> Colorbar:
    """Adds a plain colour bar beside one panel or several; `options` are those of matplotlib."""
    bar = image.get_figure().colorbar(image, ax=axes, **options)
    bar.ax.tick_params(labelsize=8, colors=FAINT, length=2)
    bar.outline.set_visible(False)
    return bar


def label_steps(axes: Axes) -> None:
    """Labels the horizontal axis with steps: whole numbers in groups of three digits."""
    axes.set_xlabel("step", fontsize=9.5, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def set_class_ticks(axis: Axis, classes: Sequence[str], inches: float) -> None:
    """Writes class names along an axis of a length in inches, leaving out names that would overlap."""
    every = max(1, math.ceil(len(classes) / (inches / 0.135)))
    ticks = range(0, len(classes), every)
    axis.set_ticks(ticks, [shorten(classes[tick]) for tick in ticks])
    axis.set_tick_params(labelsize=9 if len(classes) <= MOST_NUMBERED and inches > 3 else 7)


def get_colormap(name: str) -> Colormap:
    """Returns a colour map that shows missing values (NaN) in grey."""
    return matplotlib.colormaps[name].with_extremes(bad="#dddddd")


def shorten(text: str, letters: int = 22, keep_end: bool = False) -> str:
    """Returns a text of at most `letters` letters, escaped for matplotlib, without its end or beginning."""
    text = str(text)
    if len(text) > letters:
        text = f"…{text[1 - letters :]}" if keep_end else f"{text[: letters - 1]}…"
    return escape(text)


def break_name(name: str, letters: int = 22) -> str:
    """Returns a config's name in lines of at most `letters` letters, broken at the commas of its settings."""
    lines: list[str] = []
    for part in name.split(","):
        if lines and len(lines[-1]) + len(part) + 2 <= letters:
            lines[-1] += f",{part}"
        else:
            lines.append(part)
    return ",\n".join(shorten(line, letters - 1) for line in lines)


def escape(text: str) -> str:
    """Returns a text in one line that matplotlib shows as it is.

    It would read what is between two dollars as a formula, and leave a name with an underscore before it
    out of a legend.
    """
    text = escape_control(text).replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text


def make_voc_palette() -> np.ndarray:
    """Returns Pascal VOC's colour of every class number, uint8 `[256, 3]`.

    The bits of a number go to red, green and blue in turn, the lowest first, and fill each colour from its
    highest bit down, so that near numbers have far colours. By the same rule 255, which marks the pixels
    that are not counted, becomes (224, 224, 192).

    Source: the development kit of the PASCAL VOC challenge.
    """
    number = np.arange(256)[:, None]
    channel = np.arange(3)
    colours = np.zeros((256, 3), np.int64)
    for turn in range(3):  # The third turn leaves only two bits: the blue one is 0.
        bit = (number >> (3 * turn + channel)) & 1
        colours |= bit << (7 - turn)
    return colours.astype(np.uint8)


def paint_mask(mask: np.ndarray) -> np.ndarray:
    """Returns class numbers `[..., H, W]` in their VOC colours, uint8 `[..., H, W, 3]`.

    Raises:
        ValueError: if a number is not an integer from 0 to 255.
    """
    mask = np.asarray(mask)
    if mask.dtype.kind not in "iu":
        raise ValueError(f"a mask holds integers, not {mask.dtype}")
    if mask.size and not (0 <= mask.min() and mask.max() <= 255):
        raise ValueError(f"class numbers are {mask.min()} to {mask.max()}, not within 0 to 255")
    return make_voc_palette()[mask]
