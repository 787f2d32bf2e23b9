"""Figures of a comparison: accuracy against cost, curves, every run; each written whole or not at all."""

import itertools
import math
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, StrMethodFormatter
from matplotlib.transforms import Bbox

from experiments.core.errors import UserError
from experiments.figures.classification import frame_losses
from experiments.figures.style import FAINT, INK, escape, new_figure, save, short, style_axes
from experiments.reports.comparison import PERCENT, Comparison, Row
from experiments.reports.tables import engineering, metric_name, scaled, spread, unit

# The first is the baseline's; Okabe and Ito's but for their yellow, which is lost on white.
COLOURS = ("#444444", "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6d31")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))


def looks(number: int) -> list[tuple[str, object]]:
    """Colours and line styles of so many configs: all colours, then all with dashes."""
    every = itertools.cycle((colour, dash) for dash in DASHES for colour in COLOURS)
    return list(itertools.islice(every, number))


def accuracy_against_macs(comparison: Comparison, path: str | os.PathLike) -> bool:
    """Draws the metric that counts most against the multiply-adds of one example.

    Args:
      comparison: the configs.
      path: the PNG to write.

    Returns:
      Whether it was drawn: not where no config's multiply-adds are known.
    """
    metric = comparison.metric
    rows = [row for row in comparison.rows if (row.costs["macs"] or 0) > 0]
    if not rows:
        return False
    name = metric_name(metric, metric)
    figure = new_figure(
        7.2,
        4.6,
        f"{_capital(name)} against multiply-adds: {escape(comparison.dataset)}",
        f"Points: mean over {comparison.over} of the test {name}. Bars: standard deviation, where there "
        "are two runs or more.",
    )
    axes = figure.subplots()
    style_axes(axes, "multiply-adds of one example", f"test {name}{unit(metric)}")
    axes.set_xscale("log")
    every = {row.config: look[0] for row, look in zip(comparison.rows, looks(99), strict=False)}
    factor = 100 if metric in PERCENT else 1
    points = []
    for row in rows:
        found = row.metrics[metric]
        x, y, sd = row.costs["macs"], factor * found.mean, factor * (found.sd or 0)
        axes.errorbar(
            x, y, yerr=sd if found.sd is not None else None, fmt="o", color=every[row.config],
            markersize=7, capsize=3, elinewidth=1.2,
        )  # fmt: skip
        points.append((x, y, sd))
    low, high = min(x for x, *_ in points), max(x for x, *_ in points)
    room = max(high / low, 1.2) ** 0.2
    axes.set_xlim(low / room, high * room)
    axes.margins(y=0.14)
    # Within a decade round numbers are better than powers of ten.
    wide = high / low > 10
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: engineering(value)))
    axes.minorticks_off()
    _label_points(axes, points, [short(row.label) for row in rows])
    save(figure, path)
    return True


def _label_points(
    axes: Axes, points: Sequence[tuple[float, float, float]], labels: Sequence[str]
) -> None:
    """Writes labels beside their points where they touch neither points nor each other."""
    figure = axes.figure
    figure.draw_without_rendering()  # the layout is done only now
    renderer, frame = figure.canvas.get_renderer(), axes.get_window_extent()
    taken = []
    for x, y, sd in points:
        low, high = axes.transData.transform([(x, y - sd), (x, y + sd)])
        taken.append(Bbox([low - 6, high + 6]))
    for (x, y, _), label in sorted(zip(points, labels, strict=True)):
        for distance, (across, up) in itertools.product(
            (9, 18, 30, 44), ((1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1))
        ):
            text = _label(axes, label, (x, y), (distance * across, distance * up))
            box = text.get_window_extent(renderer)
            free = not any(box.overlaps(other) for other in taken)
            if free and frame.containsx(box.x0) and frame.containsx(box.x1) and (
                frame.containsy(box.y0) and frame.containsy(box.y1)
            ):  # fmt: skip
                break
            text.remove()
        else:
            box = _label(axes, label, (x, y), (9, 0)).get_window_extent(renderer)
        taken.append(box)


def _label(
    axes: Axes, label: str, point: tuple[float, float], offset: tuple[float, float]
) -> Annotation:
    across, up = offset
    far = math.hypot(across, up) > 15
    return axes.annotate(
        label, point, offset, textcoords="offset points", fontsize=9, color=INK, in_layout=False,
        ha="left" if across > 0 else "right" if across < 0 else "center",
        va="bottom" if up > 0 else "top" if up < 0 else "center",
        arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.6} if far else None,
    )  # fmt: skip


def curves(comparison: Comparison, path: str | os.PathLike) -> bool:
    """Draws the metric that counts most and the loss of the validation split over the steps.

    Args:
      comparison: the configs; runs whose rows cannot be read are left out.
      path: the PNG to write.

    Returns:
      Whether it was drawn: not where no run has a validation.
    """
    metric = comparison.metric
    name = metric_name(metric, metric)
    figure = new_figure(
        8.6,
        6.0,
        f"Validation: {escape(comparison.dataset)}",
        f"Lines: mean over {comparison.over}; bands: one standard deviation to either side. Where runs "
        "have stopped early, of those that were still running.",
    )
    panels = figure.subplots(2, 1, sharex=True)
    for axes, quantity in zip(panels, (metric, "loss"), strict=True):
        factor = 100 if quantity in PERCENT else 1
        style_axes(axes, ylabel=f"{name if quantity == metric else 'loss'}{unit(quantity)}")
        for row, (colour, dash) in zip(comparison.rows, looks(len(comparison.rows)), strict=True):
            steps, mean, sd = _mean_curve(row, quantity)
            axes.plot(
                steps, factor * mean, color=colour, linestyle=dash, linewidth=1.7,
                marker="o" if len(steps) < 4 else None, markersize=4, label=short(row.label),
            )  # fmt: skip
            axes.fill_between(
                steps,
                factor * (mean - sd),
                factor * (mean + sd),
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
    if not any(len(line.get_xdata()) for line in panels[0].lines):
        return False
    frame_losses(panels[1])
    panels[1].set_xlabel("step", fontsize=9.5)
    panels[1].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    panels[1].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=9, frameon=False)
    save(figure, path)
    return True


def _mean_curve(row: Row, quantity: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, and mean and standard deviation over the runs that have a validation there."""
    values: dict[int, list[float]] = {}
    for run in row.runs:
        try:
            rows = run.rows
        except UserError:
            continue  # the report says so
        for one in rows:
            if one.get("split") == "validation" and one.get(quantity) is not None:
                values.setdefault(one["step"], []).append(one[quantity])
    steps = np.array(sorted(values), int)
    mean = np.array([np.mean(values[step]) for step in steps])
    sd = [np.std(values[s], ddof=1) if len(values[s]) > 1 else 0.0 for s in steps]
    return steps, mean, np.array(sd)


def per_run(comparison: Comparison, path: str | os.PathLike) -> bool:
    """Draws the test metric and the test loss of every fold or seed as bars, and their means as lines.

    Args:
      comparison: the configs.
      path: the PNG to write.

    Returns:
      Whether it was drawn: not where no config has two runs.
    """
    if max(len(row.runs) for row in comparison.rows) < 2:
        return False
    metric = comparison.metric
    name = metric_name(metric, metric)
    quantities = [metric, "loss"]
    quantities = quantities[: 1 + any(run.test("loss") is not None for run in comparison.runs)]
    bars = sum(len(row.runs) for row in comparison.rows)
    width = min(max(0.19 * bars + 0.45 * len(comparison.rows) + 1.0, 6.5), 11.0)
    zoomed = any(_bottom(comparison, quantity) for quantity in quantities)
    figure = new_figure(
        width,
        2.6 * len(quantities) + 1.2,
        f"Every run: {escape(comparison.dataset)}",
        f"Bars: {comparison.over}, in order. Lines and numbers: mean and standard deviation. On the test "
        f"split.{' The axis does not begin at zero.' * zoomed}",
    )
    panels = figure.subplots(len(quantities), 1, sharex=True, squeeze=False)[:, 0]
    for axes, quantity in zip(panels, quantities, strict=True):
        label = name if quantity == metric else "loss"
        style_axes(axes, ylabel=f"{label}{unit(quantity)}")
        _bars(axes, comparison, quantity, width)
    save(figure, path)
    return True


def _bottom(comparison: Comparison, quantity: str) -> float:
    """Where the axis begins: at zero, unless the bars would then all look alike."""
    values = [value for run in comparison.runs if (value := run.test(quantity)) is not None]
    low, high = min(values, default=0.0), max(values, default=0.0)
    if quantity not in PERCENT or low < 0.7 * high:
        return 0.0
    return max(0.0, low - 0.5 * (high - low))


def _bars(axes: Axes, comparison: Comparison, quantity: str, width: float) -> None:
    factor = 100 if quantity in PERCENT else 1
    ticks, start = [], 0.0
    for row, (colour, _) in zip(comparison.rows, looks(len(comparison.rows)), strict=True):
        places = start + np.arange(len(row.runs))
        values = np.array([factor * (run.test(quantity) or 0.0) for run in row.runs])
        axes.bar(places, values, 0.82, color=colour, alpha=0.55)
        if found := row.metrics.get(quantity):
            axes.hlines(
                factor * found.mean, start - 0.6, places[-1] + 0.6, color=colour, linewidth=2
            )
            text = scaled(found.mean, quantity) if found.n == 1 else spread(found, quantity)
            text = text.replace(" ± ", "\n± ")
            axes.annotate(
                text, ((start + places[-1]) / 2, max(values.max(), factor * found.mean)), (0, 3),
                textcoords="offset points", ha="center", va="bottom", fontsize=8, color=INK,
            )  # fmt: skip
        ticks.append((start + places[-1]) / 2)
        start = places[-1] + 2.0
    bottom = factor * _bottom(comparison, quantity)
    highest = factor * max((run.test(quantity) or 0.0 for run in comparison.runs), default=0.0)
    axes.set_ylim(bottom, bottom + 1.35 * max(highest - bottom, 1e-9))
    if quantity in PERCENT:
        axes.set_yticks([tick for tick in axes.get_yticks() if bottom <= tick <= 100])
    axes.set_xlim(-1.0, start - 1.0)
    axes.grid(axis="x", visible=False)
    letters = max(len(row.label) for row in comparison.rows) * len(comparison.rows)
    lying = letters * 0.09 < width - 1
    axes.set_xticks(
        ticks, [short(row.label) for row in comparison.rows], rotation=0 if lying else 35,
        ha="center" if lying else "right", rotation_mode="anchor",
    )  # fmt: skip


def _capital(text: str) -> str:
    """With a capital, unless it is an abbreviation such as mIoU."""
    return text.capitalize() if text.islower() else text
