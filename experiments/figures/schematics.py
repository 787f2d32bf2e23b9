"""Draws the pictures of the layers' pages: context, attention, mixture, and where the result is applied.

    python -m experiments.figures.schematics

writes `docs/layers/*.svg`. Each picture has the same four panels, so that layers can be compared panel by
panel; a colour stands for the same candidate, channel or position in all of them.
"""

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Polygon, Rectangle

from experiments.core import cli
from experiments.core.console import print_line
from experiments.core.files import write_text
from experiments.figures.style import FAINT, INK, LINE, PALETTE

FOLDER = Path(__file__).parents[2] / "docs" / "layers"
TITLES = ("context", "attention", "mixture", "applied")
BLUE, ORANGE, GREEN, RED, PINK = PALETTE[:5]
FOUR = (BLUE, ORANGE, GREEN, PINK)
OFF = "#e4e7ea"
SVG = {"svg.fonttype": "none", "svg.hashsalt": "dyn", "font.family": "sans-serif"}

METADATA = ("Creator", "Date", "Format", "Type")  # of which the files have none

Draw = Callable[[Axes], None]


class Panel(NamedTuple):
    """A drawing in a square from (0, 0) to (1, 1), and one or two lines of text below it."""

    draw: Draw
    text: str


# ---- Parts that several panels use. ----


def draw_square(axes: Axes, x: float, y: float, size: float, color: str, **style) -> None:
    """Draws a square with its lower left corner at (x, y)."""
    options = {"facecolor": color, "edgecolor": "white", "linewidth": 0.8, **style}
    axes.add_patch(Rectangle((x, y), size, size, **options))


def draw_grid(axes: Axes, colors: Sequence[Sequence[str]], x=0.1, y=0.1, size=0.8) -> None:
    """Draws rows of coloured cells, the first row at the top."""
    rows, columns = len(colors), len(colors[0])
    cell = size / max(rows, columns)
    for row, line in enumerate(colors):
        for column, color in enumerate(line):
            draw_square(axes, x + column * cell, y + (rows - 1 - row) * cell, cell, color)


def draw_kernel(axes: Axes, x: float, y: float, size: float, color: str, pattern: int = 0) -> None:
    """Draws a 3x3 kernel in shades of a colour; each pattern has other shades."""
    shades = np.random.default_rng(pattern).uniform(0.35, 1.0, 9)
    for tap, shade in enumerate(shades):
        row, column = divmod(tap, 3)
        place = (x + column * size / 3, y + (2 - row) * size / 3)
        draw_square(axes, *place, size / 3, color, alpha=shade)


def draw_arrow(axes: Axes, start, end, color: str = FAINT) -> None:
    """Draws an arrow from a point to a point."""
    style = {"arrowstyle": "-|>", "mutation_scale": 9, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, color=color, **style))


def write(axes: Axes, x: float, y: float, text: str, size: float = 11, **style) -> None:
    """Writes a text centred at (x, y)."""
    axes.text(x, y, text, ha="center", va="center", fontsize=size, **{"color": INK, **style})


# ---- Panels of the context. ----


def look_at(highlight: Callable[[int, int], bool], cells: int = 5) -> Draw:
    """Returns a drawing of an input with the cells that are looked at."""

    def draw(axes: Axes) -> None:
        rows = [["#7f93a8" if highlight(i, j) else OFF for j in range(cells)] for i in range(cells)]
        draw_grid(axes, rows)

    return draw


WHOLE = look_at(lambda i, j: True)
PIXEL = look_at(lambda i, j: (i, j) == (1, 2))
WINDOW = look_at(lambda i, j: i < 3 and 1 <= j <= 3)
ROW = look_at(lambda i, j: i == 1)
CROSS = look_at(lambda i, j: i == 1 or j == 2)


def show_nothing(axes: Axes) -> None:
    """Draws a dash: this step does not exist."""
    axes.plot([0.35, 0.65], [0.5, 0.5], color=LINE, linewidth=3, solid_capstyle="round")


def show_tokens(axes: Axes) -> None:
    """Draws a sequence of which one token is looked at."""
    for token in range(7):
        color = "#7f93a8" if token == 3 else OFF
        draw_square(axes, 0.03 + token * 0.135, 0.43, 0.125, color)


def show_states(axes: Axes) -> None:
    """Draws a state that is carried along the layers."""
    for layer, x in enumerate((0.12, 0.42, 0.72)):
        draw_square(axes, x, 0.12, 0.2, OFF)
        write(axes, x + 0.1, 0.22, f"x{layer + 1}", 8.5, color=FAINT)
        axes.add_patch(Circle((x + 0.1, 0.7), 0.1, facecolor=FOUR[layer], edgecolor="none"))
        write(axes, x + 0.1, 0.7, f"h{layer + 1}", 8.5, color="white")
        draw_arrow(axes, (x + 0.1, 0.35), (x + 0.1, 0.58))
        if layer:
            draw_arrow(axes, (x - 0.09, 0.7), (x - 0.01, 0.7))


# ---- Panels of attention. ----


def show_bars(
    heights: Sequence[float], colors: Sequence[str] = FOUR, left=0.12, width=0.76
) -> Draw:
    """Returns a drawing of weights as bars."""

    def draw(axes: Axes) -> None:
        step = width / len(heights)
        for place, height in enumerate(heights):
            corner = (left + place * step + 0.1 * step, 0.12)
            color = colors[place % len(colors)]
            axes.add_patch(Rectangle(corner, 0.8 * step, 0.76 * height, color=color, linewidth=0))
        axes.plot([left, left + width], [0.12, 0.12], color=FAINT, linewidth=1)

    return draw


SOFTMAX = show_bars((0.25, 0.9, 0.4, 0.15))
SIGMOIDS = show_bars((0.75, 0.95, 0.3, 0.6))
CHANNELS = show_bars((0.9, 0.35, 0.7, 0.2, 0.55, 0.8), (*FOUR, RED, PALETTE[5]))

NUMBERS = show_bars((0.3, 0.8, 0.5, 0.9, 0.4, 0.7, 0.2, 0.6, 0.5), (GREEN,))
TWO_FILTERS = show_bars((0.5, 0.9, 0.3, 0.6, 0.4, 0.8), (BLUE,) * 3 + (ORANGE,) * 3)
PATHS = show_bars((0.8, 0.2, 0.3, 0.7, 0.1, 0.9), (BLUE, ORANGE))


def show_four_attentions(axes: Axes) -> None:
    """Draws the four attentions of ODConv."""
    parts = (("kernels", (0.3, 0.9, 0.4, 0.2)), ("taps", (0.6, 0.4, 0.9, 0.5)))
    parts += (("channels", (0.8, 0.3, 0.6, 0.7)), ("filters", (0.5, 0.9, 0.7, 0.4)))
    for number, (name, heights) in enumerate(parts):
        x, y = 0.04 + 0.5 * (number % 2), 0.56 - 0.5 * (number // 2)
        colors = FOUR if name == "kernels" else ("#7f93a8",)
        for place, height in enumerate(heights):
            corner = (x + 0.1 * place, y + 0.08)
            color = colors[place % len(colors)]
            axes.add_patch(Rectangle(corner, 0.08, 0.32 * height, color=color, linewidth=0))
        write(axes, x + 0.19, y, name, 8.5, color=FAINT)


def show_switches(axes: Axes) -> None:
    """Draws gates, two of which are on."""
    for gate, (color, on) in enumerate(zip(FOUR, (1, 0, 1, 0), strict=True)):
        y = 0.74 - gate * 0.21
        bar = {"linewidth": 13, "solid_capstyle": "round"}
        axes.plot([0.4, 0.58], [y, y], color=color if on else OFF, **bar)
        axes.add_patch(Circle((0.6 if on else 0.38, y), 0.05, facecolor="white", zorder=3))
        write(axes, 0.8, y, "1" if on else "0", 9.5, color=FAINT)


def show_matrix(axes: Axes) -> None:
    """Draws a small dynamic matrix."""
    shades = np.random.default_rng(5).uniform(0.25, 1, (4, 4))
    for i, j in np.ndindex(4, 4):
        draw_square(axes, 0.26 + 0.12 * j, 0.26 + 0.12 * i, 0.12, ORANGE, alpha=shades[i, j])
    write(axes, 0.5, 0.86, "L x L", 9, color=FAINT)


def show_blocks(axes: Axes) -> None:
    """Draws weights of cells for each block of a kernel."""
    weights = np.random.default_rng(3).uniform(0.1, 1, (5, 4))
    for i, j in np.ndindex(5, 4):
        draw_square(axes, 0.22 + 0.14 * j, 0.14 + 0.14 * i, 0.14, FOUR[j], alpha=weights[i, j])


def show_offsets(axes: Axes) -> None:
    """Draws positions of a kernel and where they move."""
    for start, end in zip(regular_points(), moved_points(), strict=True):
        axes.plot(*start, "o", color=LINE, markersize=4)
        if np.hypot(*(np.subtract(end, start))) > 0.03:
            draw_arrow(axes, start, end, BLUE)


def show_two_axes(axes: Axes) -> None:
    """Draws weights along rows and along columns."""
    for place, weight in enumerate((0.9, 0.3, 0.6, 0.4, 0.8)):
        draw_square(axes, 0.12, 0.1 + place * 0.13, 0.12, BLUE, alpha=weight)
        draw_square(axes, 0.3 + place * 0.13, 0.79, 0.12, ORANGE, alpha=1.1 - weight)


def show_channels_then_positions(axes: Axes) -> None:
    """Draws a weight for each channel, and a map of weights for positions."""
    for place, height in enumerate((0.9, 0.4, 0.7)):
        axes.add_patch(Rectangle((0.06 + 0.1 * place, 0.3), 0.08, 0.42 * height, color=FOUR[place]))
    draw_arrow(axes, (0.4, 0.48), (0.5, 0.48))
    weights = np.random.default_rng(8).uniform(0.15, 1, (3, 3))
    for i, j in np.ndindex(3, 3):
        draw_square(axes, 0.54 + 0.14 * j, 0.27 + 0.14 * i, 0.14, "#51606f", alpha=weights[i, j])


def show_slopes(axes: Axes) -> None:
    """Draws the lines of which the largest is taken."""
    for slope, color in ((1.0, BLUE), (0.15, ORANGE)):
        axes.plot(
            [0.12, 0.88], [0.45 - 0.38 * slope, 0.45 + 0.38 * slope], color=color, linewidth=1.4
        )
    axes.plot([0.12, 0.88], [0.45, 0.45], color=LINE, linewidth=0.8)


def show_neighbours(axes: Axes) -> None:
    """Draws a convolution along the channels' means."""
    for channel in range(6):
        color = "#7f93a8" if channel in (1, 2, 3) else OFF
        draw_square(axes, 0.07 + 0.145 * channel, 0.18, 0.13, color)
        if channel in (1, 2, 3):
            draw_arrow(axes, (0.135 + 0.145 * channel, 0.34), (0.425, 0.62))
    draw_square(axes, 0.36, 0.66, 0.13, BLUE)


# ---- Panels of the mixture. ----


def mix_kernels(weights: Sequence[float], colors: Sequence[str] = FOUR, note: str = "+") -> Draw:
    """Returns a drawing of candidate kernels, faint by their weight, with a sign between them."""

    def draw(axes: Axes) -> None:
        for number, weight in enumerate(weights):
            x, y = 0.04 + 0.54 * (number % 2), 0.56 - 0.54 * (number // 2)
            if weight:
                draw_kernel(axes, x, y, 0.38, colors[number], pattern=number)
            else:
                draw_square(axes, x, y, 0.38, OFF)
        write(axes, 0.5, 0.48, note, 13, color=FAINT)

    return draw


MIXED = mix_kernels((1, 1, 1, 1))


def show_rotations(axes: Axes) -> None:
    """Draws one kernel in four orientations."""
    corners = np.array([[-1, -1], [0, -1], [0, 0], [-1, 0]])
    for number, color in enumerate(FOUR):
        x, y = 0.24 + 0.52 * (number % 2), 0.76 - 0.52 * (number // 2)
        angle = np.pi / 4 * number
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        for i, j in np.ndindex(3, 3):
            points = (corners + np.array([i - 0.5, j - 0.5])) * 0.115 @ turn.T + [x, y]
            shade = 1.0 if i == j else 0.3
            axes.add_patch(Polygon(points, facecolor=color, edgecolor="white", alpha=shade))


def show_normalised(axes: Axes) -> None:
    """Draws kernels divided by their largest singular values."""
    for number, color in enumerate(FOUR[:2]):
        y = 0.56 - 0.5 * number
        draw_kernel(axes, 0.08, y, 0.34, color, pattern=number)
        write(axes, 0.72, y + 0.17, f"/ σ(W{number + 1})", 11)


def show_static_and_matrix(axes: Axes) -> None:
    """Draws a static kernel, and the dynamic matrix between two static ones."""
    draw_kernel(axes, 0.3, 0.56, 0.4, "#51606f", pattern=1)
    write(axes, 0.5, 0.46, "+", 13, color=FAINT)
    axes.add_patch(Rectangle((0.12, 0.06), 0.14, 0.32, color=OFF))
    shades = np.random.default_rng(5).uniform(0.25, 1, (3, 3))
    for i, j in np.ndindex(3, 3):
        draw_square(axes, 0.37 + 0.09 * j, 0.08 + 0.09 * i, 0.09, ORANGE, alpha=shades[i, j])
    axes.add_patch(Rectangle((0.75, 0.06), 0.14, 0.32, color=OFF))
    for x, name in ((0.19, "P"), (0.82, "Q")):
        write(axes, x, 0.22, name, 10, color=FAINT)


def show_cells(axes: Axes) -> None:
    """Draws cells and the kernel that is assembled from them."""
    for cell, color in enumerate(FOUR):
        draw_square(axes, 0.13 + 0.2 * cell, 0.8, 0.14, color)
    draw_arrow(axes, (0.5, 0.76), (0.5, 0.62))
    choice = (0, 2, 1, 3, 0, 1, 2, 3, 0)
    for tap, cell in enumerate(choice):
        row, column = divmod(tap, 3)
        draw_square(axes, 0.26 + 0.16 * column, 0.06 + 0.16 * (2 - row), 0.16, FOUR[cell])


def show_spectrum(axes: Axes) -> None:
    """Draws one spectrum, whose rings are the candidates."""
    for ring, color in reversed(list(enumerate(FOUR))):
        axes.add_patch(Circle((0.5, 0.5), 0.1 + 0.1 * ring, facecolor=color, edgecolor="white"))
    write(axes, 0.5, 0.04, "low to high", 8.5, color=FAINT)


def show_shared_kernel(axes: Axes) -> None:
    """Draws one kernel of a position, for a group of channels."""
    for layer in range(3):
        draw_square(axes, 0.2 + 0.08 * layer, 0.2 + 0.08 * layer, 0.44, OFF, edgecolor="#b8c0c8")
    draw_kernel(axes, 0.36, 0.36, 0.44, GREEN, pattern=4)


def show_product(axes: Axes) -> None:
    """Draws a filter of a position times one of a channel."""
    draw_kernel(axes, 0.02, 0.31, 0.38, BLUE, pattern=2)
    write(axes, 0.5, 0.5, "×", 14, color=FAINT)
    draw_kernel(axes, 0.6, 0.31, 0.38, ORANGE, pattern=6)
    write(axes, 0.21, 0.2, "position", 8.5, color=FAINT)
    write(axes, 0.79, 0.2, "channel", 8.5, color=FAINT)


def show_taps(axes: Axes) -> None:
    """Draws the softmax kernels of three heads."""
    for head, color in enumerate(FOUR[:3]):
        weights = np.roll((0.2, 0.35, 1.0, 0.4, 0.15), head - 1)
        for tap, weight in enumerate(weights):
            draw_square(axes, 0.17 + 0.135 * tap, 0.68 - 0.25 * head, 0.125, color, alpha=weight)


def show_one_kernel(axes: Axes) -> None:
    """Draws one static kernel."""
    draw_kernel(axes, 0.24, 0.24, 0.52, "#51606f", pattern=1)


def show_dilations(axes: Axes) -> None:
    """Draws kernels of two reaches."""
    for number, (color, step) in enumerate(((BLUE, 1), (ORANGE, 2))):
        centre = np.array([0.24 + 0.5 * number, 0.5])
        for i, j in np.ndindex(3, 3):
            corner = centre + (np.array([i, j]) - 1) * 0.085 * step - 0.04
            draw_square(axes, *corner, 0.08, color)
    write(axes, 0.24, 0.2, "d = 1", 8.5, color=FAINT)
    write(axes, 0.74, 0.2, "d = 2", 8.5, color=FAINT)


def show_values(axes: Axes) -> None:
    """Draws values that are summed, without a kernel of weights."""
    for place, weight in enumerate((0.3, 0.9, 0.5, 0.7)):
        y = 0.74 - 0.2 * place
        draw_square(axes, 0.2, y, 0.14, BLUE, alpha=weight)
        write(axes, 0.68, y + 0.07, "× value", 10)


def show_activation(axes: Axes) -> None:
    """Draws the largest of two lines."""
    x = np.linspace(-1, 1, 21)
    axes.plot(0.5 + 0.38 * x, 0.45 + 0.38 * np.maximum(x, 0.15 * x), color=INK, linewidth=2)
    axes.plot([0.12, 0.88], [0.45, 0.45], color=LINE, linewidth=0.8)


# ---- Panels of where it is applied. ----


def regular_points() -> list[tuple[float, float]]:
    """Returns the positions of a 3x3 kernel in a panel."""
    return [(0.5 + 0.24 * j, 0.5 + 0.24 * i) for i in (-1, 0, 1) for j in (-1, 0, 1)]


def moved_points() -> list[tuple[float, float]]:
    """Returns these positions after they have moved."""
    moves = np.random.default_rng(11).uniform(-0.13, 0.13, (9, 2))
    return [(x + dx, y + dy) for (x, y), (dx, dy) in zip(regular_points(), moves, strict=True)]


def blend(weights: Sequence[float]) -> str:
    """Returns the mixture of the four colours."""
    rgb = np.array([matplotlib.colors.to_rgb(color) for color in FOUR])
    return matplotlib.colors.to_hex(np.asarray(weights) @ rgb / np.sum(weights))


def apply_everywhere(color: str) -> Draw:
    """Returns a drawing of an output made by one kernel."""
    return lambda axes: draw_grid(axes, [[color] * 5] * 5)


MIXTURE = apply_everywhere(blend((0.25, 0.9, 0.4, 0.15)))


def apply_by(rows: int, columns: int, seed: int = 1) -> Draw:
    """Returns a drawing of an output made by a different mixture in each of some rows and columns."""
    weights = np.random.default_rng(seed).dirichlet([0.5] * 4, (rows, columns))
    colors = [[blend(weights[i % rows, j % columns]) for j in range(5)] for i in range(5)]
    return lambda axes: draw_grid(axes, colors)


def apply_moved(axes: Axes) -> None:
    """Draws an input, and the moved positions that are read for one output."""
    draw_grid(axes, [[OFF] * 5] * 5)
    sizes = (5, 8, 6, 9, 10, 5, 8, 6, 7)
    for (x, y), size in zip(moved_points(), sizes, strict=True):
        axes.plot(x, y, "o", color=BLUE, markersize=size, markeredgewidth=0)


def apply_to_tokens(axes: Axes) -> None:
    """Draws a sequence with a different kernel at each token."""
    weights = np.random.default_rng(2).dirichlet([0.5] * 4, 7)
    for token in range(7):
        draw_square(axes, 0.03 + token * 0.135, 0.43, 0.125, blend(weights[token]))


def scale_channels(axes: Axes) -> None:
    """Draws the channels of an output, scaled by their weights."""
    for channel, weight in enumerate((0.9, 0.35, 0.7, 0.2)):
        place = (0.08 + 0.14 * channel, 0.5 - 0.14 * channel)
        draw_square(axes, *place, 0.42, FOUR[channel], alpha=0.25 + 0.75 * weight)


def scale_positions(axes: Axes) -> None:
    """Draws an output with scaled positions."""
    weights = np.random.default_rng(8).uniform(0.15, 1, (5, 5))
    for i, j in np.ndindex(5, 5):
        draw_square(axes, 0.1 + 0.16 * j, 0.1 + 0.16 * i, 0.16, BLUE, alpha=weights[i, j])


def scale_rows_and_columns(axes: Axes) -> None:
    """Draws an output with scaled rows and columns."""
    rows, columns = (0.9, 0.3, 0.6, 0.4, 0.8), (0.2, 0.8, 0.5, 0.7, 0.3)
    for i, j in np.ndindex(5, 5):
        draw_square(axes, 0.1 + 0.16 * j, 0.1 + 0.16 * i, 0.16, BLUE, alpha=rows[i] * columns[j])


def choose_channels(axes: Axes) -> None:
    """Draws the channels of an output, each from one path or the other."""
    for channel, color in enumerate((BLUE, ORANGE, ORANGE, BLUE)):
        draw_square(axes, 0.08 + 0.14 * channel, 0.5 - 0.14 * channel, 0.42, color)


def bend_numbers(axes: Axes) -> None:
    """Draws a different activation for each channel."""
    x = np.linspace(-1, 1, 21)
    for channel, (first, second) in enumerate(((1.0, 0.15), (0.7, -0.3), (1.4, 0.5))):
        y = 0.55 + 0.3 * np.maximum(first * x, second * x)
        axes.plot(0.5 + 0.38 * x, y - 0.08, color=FOUR[channel], linewidth=1.8)


ONCE = "one kernel\nfor each input"
MEAN = "mean of the input\nover space"
LAYERS: dict[str, tuple[Panel, Panel, Panel, Panel]] = {
    "concept": (
        Panel(WHOLE, "what is\nlooked at"),
        Panel(SOFTMAX, "weights that\nit determines"),
        Panel(MIXED, "what is\nweighted"),
        Panel(MIXTURE, "where the result\nis used"),
    ),
    "conv": (
        Panel(show_nothing, "nothing is\nlooked at"),
        Panel(show_nothing, "no weights"),
        Panel(show_one_kernel, "one static\nkernel"),
        Panel(apply_everywhere("#51606f"), "the same for\nevery input"),
    ),
    "odconv": (
        Panel(WHOLE, MEAN),
        Panel(show_four_attentions, "four attentions"),
        Panel(MIXED, "candidates, and their\ntaps, inputs, outputs"),
        Panel(MIXTURE, ONCE),
    ),
    "dynamicconv": (
        Panel(WHOLE, MEAN),
        Panel(SOFTMAX, "softmax over\nkernels"),
        Panel(MIXED, "weighted sum of\nkernels and biases"),
        Panel(MIXTURE, ONCE),
    ),
    "condconv": (
        Panel(WHOLE, "mean of the layer's\nor the block's input"),
        Panel(SIGMOIDS, "a sigmoid for\neach expert"),
        Panel(MIXED, "weighted sum of\nexperts"),
        Panel(apply_everywhere(blend((0.75, 0.95, 0.3, 0.6))), ONCE),
    ),
    "gatedconv": (
        Panel(WHOLE, MEAN),
        Panel(show_switches, "gates, exactly\n0 or 1"),
        Panel(mix_kernels((1, 0, 1, 0)), "sum of those\nthat are on"),
        Panel(apply_everywhere(blend((1, 0, 1, 0))), ONCE),
    ),
    "rotatedconv": (
        Panel(WHOLE, MEAN),
        Panel(SOFTMAX, "softmax over\norientations"),
        Panel(show_rotations, "rotations of\none kernel"),
        Panel(MIXTURE, "one kernel for each\ninput, or the strongest"),
    ),
    "spectralnormconv": (
        Panel(WHOLE, MEAN),
        Panel(show_bars((0.4, 0.9)), "softmax over\nkernels"),
        Panel(show_normalised, "kernels of\nnorm one"),
        Panel(apply_everywhere(blend((0.4, 0.9, 0, 0))), ONCE),
    ),
    "dcdconv": (
        Panel(WHOLE, "mean of the input\nin a few bins"),
        Panel(show_matrix, "a small matrix,\nand filter weights"),
        Panel(show_static_and_matrix, "static kernel +\nlatent matrix"),
        Panel(apply_everywhere("#9a7a3d"), ONCE),
    ),
    "warehouseconv": (
        Panel(WHOLE, MEAN),
        Panel(show_blocks, "weights of cells\nfor each block"),
        Panel(show_cells, "cells, shared\nby layers"),
        Panel(MIXTURE, ONCE),
    ),
    "fdconv": (
        Panel(WHOLE, MEAN),
        Panel(SIGMOIDS, "weights of groups\nof frequencies"),
        Panel(show_spectrum, "parts of one\nkernel's spectrum"),
        Panel(MIXTURE, "one kernel per input,\non weighted bands"),
    ),
    "pixeldynamicconv": (
        Panel(PIXEL, "features at\neach position"),
        Panel(SOFTMAX, "softmax over\nkernels"),
        Panel(MIXED, "weighted sum of\nkernels"),
        Panel(apply_by(5, 5), "a different mixture\nat each position"),
    ),
    "kernelrepresentation": (
        Panel(show_states, "a state, updated\nby each layer"),
        Panel(SOFTMAX, "attention of any\nlayer looks at it"),
        Panel(MIXED, "that layer's\ncandidates"),
        Panel(MIXTURE, "as in that layer"),
    ),
    "frequencydynamicconv": (
        Panel(ROW, "mean of each\nfrequency over time"),
        Panel(SOFTMAX, "softmax over\nkernels"),
        Panel(MIXED, "weighted sum of\nkernels"),
        Panel(apply_by(5, 1), "a different mixture\nat each frequency"),
    ),
    "deformableconv": (
        Panel(WINDOW, "neighbourhood of\neach position"),
        Panel(show_offsets, "offsets and\nweights of taps"),
        Panel(show_one_kernel, "one static\nkernel"),
        Panel(apply_moved, "reads moved\npositions"),
    ),
    "deformableaggregation": (
        Panel(PIXEL, "features at\neach position"),
        Panel(show_offsets, "offsets and\nweights of points"),
        Panel(show_values, "no kernel: the\nweights are all"),
        Panel(apply_moved, "sums values at\nmoved points"),
    ),
    "involution": (
        Panel(PIXEL, "features at\neach position"),
        Panel(NUMBERS, "they are made\ninto a kernel"),
        Panel(show_shared_kernel, "shared by a group\nof channels"),
        Panel(apply_by(5, 5, 3), "a different kernel\nat each position"),
    ),
    "decoupleddynamicfilter": (
        Panel(CROSS, "each position, and\nthe input's mean"),
        Panel(TWO_FILTERS, "two filters"),
        Panel(show_product, "their product"),
        Panel(apply_by(5, 5, 4), "a different filter at each\nposition and channel"),
    ),
    "sequencedynamicconv": (
        Panel(show_tokens, "each token"),
        Panel(show_bars((0.15, 0.35, 0.9, 0.4, 0.2), (BLUE,)), "softmax over\ntaps"),
        Panel(show_taps, "one kernel for\neach head"),
        Panel(apply_to_tokens, "a different kernel\nat each token"),
    ),
    "selectivekernel": (
        Panel(WHOLE, "mean of all\npaths over space"),
        Panel(PATHS, "softmax over paths,\nfor each channel"),
        Panel(show_dilations, "kernels of\nseveral reaches"),
        Panel(choose_channels, "channels from\ndifferent paths"),
    ),
    "squeezeexcite": (
        Panel(WHOLE, MEAN),
        Panel(CHANNELS, "a sigmoid for\neach channel"),
        Panel(show_nothing, "no kernel\nof its own"),
        Panel(scale_channels, "channels\nare scaled"),
    ),
    "efficientchannelattention": (
        Panel(WHOLE, MEAN),
        Panel(show_neighbours, "a convolution along\nthe channels"),
        Panel(show_nothing, "no kernel\nof its own"),
        Panel(scale_channels, "channels\nare scaled"),
    ),
    "cbam": (
        Panel(WHOLE, "mean and maximum\nof the input"),
        Panel(show_channels_then_positions, "channels, then\npositions"),
        Panel(show_nothing, "no kernel\nof its own"),
        Panel(scale_positions, "channels and positions\nare scaled"),
    ),
    "coordinateattention": (
        Panel(CROSS, "means of rows\nand of columns"),
        Panel(show_two_axes, "a sigmoid for each\nrow and column"),
        Panel(show_nothing, "no kernel\nof its own"),
        Panel(scale_rows_and_columns, "rows and columns\nare scaled"),
    ),
    "dynamicrelu": (
        Panel(WHOLE, MEAN),
        Panel(show_slopes, "slopes and\nintercepts of lines"),
        Panel(show_activation, "the largest\nof them"),
        Panel(bend_numbers, "a different activation for\neach input and channel"),
    ),
}  # fmt: skip


def main() -> None:
    """Writes all pictures, and prints their names."""
    for name in LAYERS:
        save_schematic(name, FOLDER / f"{name}.svg")
        print_line(f"docs/layers/{name}.svg")


def save_schematic(name: str, path: Path) -> None:
    """Writes the picture of a layer as SVG, the same bytes each time."""
    text = io.StringIO()
    with matplotlib.rc_context(SVG):
        draw_schematic(LAYERS[name]).savefig(text, format="svg", metadata=dict.fromkeys(METADATA))
    write_text(path, shorten_svg(text.getvalue()))


def shorten_svg(text: str) -> str:
    """Returns an SVG with numbers of one decimal, and without comments and indentation."""
    head, _, body = text.partition("<g id=")  # sizes and styles stay as they are
    body = re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), body)
    body = re.sub(r"<!--.*?-->| clip-path=\"[^\"]*\"", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="patch_\d+">\s*(<path [^>]*>)\s*</g>', r"\1", body)
    body = body.replace("; stroke-linejoin: miter", "")
    lines = (line.strip() for line in f"{head}<g id={body}".splitlines())
    return " ".join(line for line in lines if line).replace("> <", ">\n<") + "\n"


def draw_schematic(panels: Sequence[Panel]) -> Figure:
    """Returns a picture with four panels in a row and arrows between them."""
    figure = Figure(figsize=(7.2, 2.3), facecolor="white")
    FigureCanvasSVG(figure)
    for place, (title, panel) in enumerate(zip(TITLES, panels, strict=True)):
        axes = figure.add_axes((0.015 + 0.25 * place, 0.24, 0.22, 0.6))
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.axis("off")
        panel.draw(axes)
        middle = 0.125 + 0.25 * place
        figure.text(
            middle, 0.92, title, ha="center", va="center", fontsize=11, color=INK, weight="bold"
        )
        figure.text(middle, 0.11, panel.text, ha="center", va="center", fontsize=10, color=FAINT)
        if place:
            end = {"xycoords": "figure fraction", "textcoords": "figure fraction"}
            arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.2}
            axes.annotate(
                "",
                (0.265 + 0.25 * (place - 1), 0.54),
                (0.235 + 0.25 * (place - 1), 0.54),
                **end,
                arrowprops=arrow,
            )
    return figure


if __name__ == "__main__":
    cli.run_command(main, __doc__)
