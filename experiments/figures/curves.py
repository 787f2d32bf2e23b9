"""Metrics over the steps of a run: loss, accuracy and schedules."""

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from experiments.figures import style


def draw_training_curves(rows: Sequence[Mapping], path: str | os.PathLike) -> None:
    """Draws loss, accuracy, learning rate and temperature over the steps of a run.

    Args:
        rows: of `metrics.jsonl`: `step`, `split` ("train" or "validation") and any of `loss`, `accuracy`,
            `learning_rate`, `temperature`; None leaves a gap.
        path: the PNG to write.
    """
    train = [row for row in rows if row.get("split") == "train"]
    validation = [row for row in rows if row.get("split") == "validation"]
    # Some tasks have no accuracy, such as reconstruction.
    logged = {name for row in rows for name in row}
    names = ["loss", "accuracy"] if "accuracy" in logged or not rows else ["loss"]
    heights, height = [1.0] * len(names), 0.8 + 2.6 * len(names)
    has_schedules = any(row.get(name) for row in train for name in ("learning_rate", "temperature"))
    if has_schedules:
        heights, height = [*heights, 0.55], height + 1.6
    figure = style.new_figure(7.5, height, "Training")
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[
        :, 0
    ]

    best = _find_best(validation)
    for axes, name in zip(panels, names, strict=False):
        _draw_metric(axes, name, train, validation, best)
    limit_losses(panels[0])
    if "accuracy" in names:
        panels[1].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        panels[1].set_ylim(top=min(1.02, panels[1].get_ylim()[1]))
    if has_schedules:
        _draw_schedules(panels[-1], train)
    style.label_steps(panels[-1])
    style.save_figure(figure, path)


def plot_metric(axes: Axes, rows: Sequence[Mapping], name: str, **options) -> None:
    """Plots one metric over the steps; None leaves a gap, and nothing is plotted if no row has it."""
    rows = [row for row in rows if name in row]
    if rows:
        values = [math.nan if row[name] is None else row[name] for row in rows]
        axes.plot([row["step"] for row in rows], values, **options)


def limit_losses(axes: Axes) -> None:
    """Sets the limits of a panel of losses: clips a few huge early ones so that the rest stays readable."""
    # The line of the best step is no curve: its 0 to 1 is the height of the axes.
    curves = [line for line in axes.lines if line.get_transform() == axes.transData]
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in curves] or [[]])
    values = values[np.isfinite(values)]
    if values.size:
        usual = np.quantile(values, 0.97)
        top = 1.5 * usual if values.max() > 2.5 * usual > 0 else 1.05 * values.max()
        axes.set_ylim(min(0, values.min()), top if top > 0 else None)


def _find_best(validation: Sequence[Mapping]) -> Mapping | None:
    """Returns the row of the kept parameters, as `runs.checkpoints` ranks them; of equals the last."""
    for names in (("accuracy", "loss"), ("accuracy",), ("loss",)):
        measured = [row for row in validation if all(row.get(n) is not None for n in names)]
        if measured:
            sign = {"accuracy": 1, "loss": -1}
            return max(reversed(measured), key=lambda row: [sign[n] * row[n] for n in names])
    return None


def _draw_metric(
    axes: Axes,
    name: str,
    train: Sequence[Mapping],
    validation: Sequence[Mapping],
    best: Mapping | None,
) -> None:
    """Draws one metric of both splits and marks the best evaluation."""
    style.style_axes(axes, ylabel=name)
    # Rows of training are single batches: thin, because they are noisy.
    plot_metric(axes, train, name, color=style.TRAIN, linewidth=0.9, label="train")
    dots = {"marker": "o", "markersize": 3.5} if len(validation) <= 40 else {}
    line = {"color": style.VALIDATION, "linewidth": 1.8, "label": "validation"}
    plot_metric(axes, validation, name, **line, **dots)
    if best is not None:
        axes.axvline(best["step"], color=style.BEST, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        if best.get(name) is not None:
            value = f"{best[name]:.2%}" if name == "accuracy" else f"{best[name]:.4f}"
            label = f"best validation: {value} at step {best['step']:,}"
            axes.plot(best["step"], best[name], "o", color=style.BEST, markersize=7, label=label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=8.5, framealpha=1, edgecolor="none")


def _draw_schedules(axes: Axes, train: Sequence[Mapping]) -> None:
    """Draws the learning rate (left, logarithmic) and the temperature (right) in one small panel."""
    style.style_axes(axes, ylabel="learning rate")
    rates = [row for row in train if (row.get("learning_rate") or 0) > 0]
    if rates:
        plot_metric(axes, rates, "learning_rate", color=style.INK, linewidth=1.4)
        axes.set_yscale("log")
        low, high = axes.dataLim.intervaly
        # Whole decades around the values, so that there is always a labelled tick.
        bottom, top = math.floor(math.log10(low) - 0.1), math.ceil(math.log10(high) + 0.1)
        axes.set_ylim(10**bottom, 10**top)
        axes.minorticks_off()
    temperatures = [row for row in train if row.get("temperature") is not None]
    if temperatures:
        right = axes.twinx()
        style.style_axes(right, ylabel="temperature", grid=False)
        right.spines["right"].set_visible(True)
        plot_metric(right, temperatures, "temperature", color=style.WRONG, linewidth=1.4)
        right.set_ylim(0, 1.1 * max(row["temperature"] for row in temperatures))
        right.yaxis.set_major_locator(MaxNLocator(4))
        right.yaxis.label.set_color(style.WRONG)
        right.tick_params(axis="y", colors=style.WRONG)
