"""Draws the figures of a comparison: the metric against multiply-adds, curves, runs, attention by depth."""

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator

from experiments.core.errors import UserError
from experiments.figures import style
from experiments.figures.curves import limit_losses
from experiments.reports.attention import LayerAttention
from experiments.reports.comparison import PERCENT, ConfigResults, DatasetComparison
from experiments.reports.effects import MEASURES, Effect, group_effects, name_quantity
from experiments.reports.tables import format_mean, format_si, name_metric, name_unit
from experiments.runs.find import finite_or_none

BASELINE = "#444444"
LINES = (
    ("-", "o"),
    ((0, (5, 2)), "s"),
    ((0, (1, 1.5)), "^"),
)  # styles of lines, with their markers


def choose_styles(comparison: DatasetComparison) -> dict[str, tuple[str, Any, str]]:
    """Returns colour, line style and marker of each config; the line styles change after the last colour."""
    styles = itertools.cycle(itertools.product(LINES, (BASELINE, *style.PALETTE)))
    return {
        results.config: (colour, dash, marker)
        for results, ((dash, marker), colour) in zip(comparison.results, styles, strict=False)
    }


def draw_accuracy_against_macs(comparison: DatasetComparison, path: str | os.PathLike) -> bool:
    """Draws the metric that ranks against the multiply-adds of an example; False if none are known."""
    metric = comparison.metric
    shown = [results for results in comparison.results if (results.costs["macs"] or 0) > 0]
    if not shown:
        return False
    name = name_metric(metric, metric)
    figure = style.new_figure(
        8.6,
        4.6,
        f"Test {name} against multiply-adds: {comparison.title}",
        f"Points: mean over {comparison.replicates} of the test {name}. Bars: standard deviation, of two "
        "runs or more.",
    )
    axes = figure.subplots()
    style.style_axes(axes, "multiply-adds of one example", f"test {name}{name_unit(metric)}")
    axes.set_xscale("log")
    styles = choose_styles(comparison)
    factor = 100 if metric in PERCENT else 1
    for results in shown:
        value = results.metrics[metric]
        sd = None if value.sd is None else factor * value.sd
        colour, _, marker = styles[results.config]
        axes.errorbar(
            results.costs["macs"], factor * value.mean, yerr=sd, fmt=marker, color=colour, markersize=7,
            capsize=3, elinewidth=1.2, label=style.break_name(results.label),
        )  # fmt: skip
    costs = [results.costs["macs"] for results in shown]
    low, high = min(costs), max(costs)
    margin = max(high / low, 1.2) ** 0.2
    axes.set_xlim(low / margin, high * margin)
    axes.margins(y=0.14)
    # Within a decade, round numbers are better ticks than powers of ten.
    several_decades = high / low > 10
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if several_decades else MaxNLocator(6))
    axes.xaxis.set_major_formatter(lambda value, _: format_si(value))
    axes.minorticks_off()
    figure.legend(loc="outside right center", fontsize=9, frameon=False)
    style.save_figure(figure, path)
    return True


def draw_curves(comparison: DatasetComparison, path: str | os.PathLike) -> bool:
    """Draws metric and loss of the validation split over the steps; False if no run was validated.

    Runs with a damaged log are left out.
    """
    metric = comparison.metric
    name = name_metric(metric, metric)
    figure = style.new_figure(
        8.6,
        6.0,
        f"Validation: {comparison.title}",
        f"Lines: mean over {comparison.replicates}; bands: one standard deviation to either side. After a "
        "run has stopped early, mean and deviation are those of the others.",
    )
    panels = figure.subplots(2, 1, sharex=True)
    styles = choose_styles(comparison)
    for axes, quantity in zip(panels, (metric, "loss"), strict=True):
        factor = 100 if quantity in PERCENT else 1
        style.style_axes(
            axes, ylabel=f"{name if quantity == metric else 'loss'}{name_unit(quantity)}"
        )
        for results in comparison.results:
            colour, dash, _ = styles[results.config]
            steps, mean, sd = _mean_curve(results, quantity)
            axes.plot(
                steps, factor * mean, color=colour, linestyle=dash, linewidth=1.7,
                marker="o" if len(steps) < 4 else None, markersize=4, label=style.break_name(results.label),
            )  # fmt: skip
            low, high = factor * (mean - sd), factor * (mean + sd)
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    if not any(len(line.get_xdata()) for line in panels[0].lines):
        return False
    limit_losses(panels[1])
    style.label_steps(panels[1])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=9, frameon=False)
    style.save_figure(figure, path)
    return True


def _mean_curve(results: ConfigResults, quantity: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns steps, and mean and standard deviation over the runs that were validated at each step."""
    values: dict[int, list[float]] = {}
    for run in results.runs:
        try:
            log = run.log
        except UserError:
            continue  # the report lists the run as damaged
        for row in log:
            value = finite_or_none(row.get(quantity))
            if row.get("split") == "validation" and value is not None:
                values.setdefault(row["step"], []).append(value)
    steps = np.array(sorted(values), int)
    mean = np.array([np.mean(values[step]) for step in steps])
    sd = [np.std(values[s], ddof=1) if len(values[s]) > 1 else 0.0 for s in steps]
    return steps, mean, np.array(sd)


def draw_attention_by_depth(
    comparison: DatasetComparison,
    attention: Mapping[str, Sequence[LayerAttention]],
    path: str | os.PathLike,
) -> bool:
    """Draws entropy, spread over the classes and agreement of runs, layer by layer; False without attention.

    Args:
        comparison: the configs.
        attention: config to its layers.
        path: the PNG to write.
    """
    quantities = {
        "entropy": "entropy\n(1: equal weights)",
        "class_spread": "spread over classes,\nby the mean weight",
        "agreement": "agreement of runs",
    }
    shown = {
        name: label
        for name, label in quantities.items()
        if any(
            getattr(layer, name) is not None for layers in attention.values() for layer in layers
        )
    }
    if not shown:
        return False
    figure = style.new_figure(
        8.6,
        2.0 * len(shown) + 1.3,
        f"Attention over kernels, layer by layer: {comparison.title}",
        f"Means over {comparison.replicates}. Entropy 0: one kernel for each example. Spread 0: the same "
        "mixture for every class. Agreement: rank correlation of the distances between the mixtures of "
        "classes; 1: the same classes are mixed alike in every run, 0: nothing in common.",
    )
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    styles = choose_styles(comparison)
    for axes, (name, label) in zip(panels, shown.items(), strict=True):
        style.style_axes(axes, ylabel=label)
        for results in comparison.results:
            values = [getattr(layer, name) for layer in attention.get(results.config, ())]
            if any(value is not None for value in values):
                colour, dash, marker = styles[results.config]
                numbers = np.array([math.nan if value is None else value for value in values])
                axes.plot(
                    np.arange(1, len(values) + 1), numbers, color=colour, linestyle=dash, marker=marker,
                    markersize=4, linewidth=1.4, label=style.break_name(results.label),
                )  # fmt: skip
    panels[-1].set_xlabel("layer, from input to output")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    # The first panel has a line for every config that has any.
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=9, frameon=False)
    style.save_figure(figure, path)
    return True


def draw_effects(
    comparison: DatasetComparison, effects: Sequence[Effect], path: str | os.PathLike
) -> bool:
    """Draws what each value of a sweep changes, a row for each, a panel for each quantity; False without."""
    rows = list(group_effects(effects))
    if not rows:
        return False
    figure = style.new_figure(
        9.6,
        0.42 * len(rows) + 2.2,
        f"Effects of settings: {comparison.title}",
        "Points: mean difference between runs that differ in nothing else. Bars: twice its standard error, "
        f"over {comparison.replicates}. Filled: q below 0.05. A metric is better to the right, a loss to the "
        "left.",
    )
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    for axes, (split, quantity) in zip(panels, MEASURES, strict=True):
        name = name_quantity(quantity, comparison.metric)
        factor = 100 if name in PERCENT else 1
        unit = ", points" if name in PERCENT else ""
        style.style_axes(axes, f"{split} {name_metric(name, comparison.metric)}{unit}")
        axes.axvline(0, color=style.FAINT, linewidth=1)
        for one in effects:
            if (one.split, one.quantity) == (split, quantity):
                axes.errorbar(
                    factor * one.mean,
                    rows.index((one.setting, one.value, one.reference)),
                    xerr=2 * factor * (one.error or 0),
                    fmt="o",
                    color=style.PALETTE[0],
                    markerfacecolor=style.PALETTE[0] if one.q < 0.05 else "white",
                    capsize=2,
                )
    labels = [
        style.escape(setting) + "\n" + style.escape(f"{value}, not {old}")
        for setting, value, old in rows
    ]
    panels[0].set_yticks(range(len(rows)), labels)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    style.save_figure(figure, path)
    return True


def draw_runs(comparison: DatasetComparison, path: str | os.PathLike) -> bool:
    """Draws test metric and loss of every run as bars, means as lines; False if no config has two runs."""
    if max(len(results.runs) for results in comparison.results) < 2:
        return False
    quantities = [comparison.metric]
    if any(run.test_metric("loss") is not None for run in comparison.runs):
        quantities.append("loss")
    bars, configs = len(comparison.runs), len(comparison.results)
    width = min(max(0.19 * bars + 0.45 * configs + 1.0, 6.5), 11.0)
    caption = (
        f"Bars: {comparison.replicates}, in order. Lines and numbers: mean and standard deviation. On the "
        "test split."
    )
    if any(_first_tick(comparison, quantity) > 0 for quantity in quantities):
        caption += " The axis does not begin at zero."
    height = 2.6 * len(quantities) + 1.2
    figure = style.new_figure(width, height, f"Every run: {comparison.title}", caption)
    panels = figure.subplots(len(quantities), 1, sharex=True, squeeze=False)[:, 0]
    for axes, quantity in zip(panels, quantities, strict=True):
        name = name_metric(quantity, comparison.metric)
        style.style_axes(axes, ylabel=f"{name}{name_unit(quantity)}")
        _draw_bars(axes, comparison, quantity, width)
    style.save_figure(figure, path)
    return True


def _first_tick(comparison: DatasetComparison, quantity: str) -> float:
    """Returns where the axis begins: at zero, unless all bars would then look alike."""
    values = [run.test_metric(quantity) for run in comparison.runs]
    values = [value for value in values if value is not None]
    low, high = min(values, default=0.0), max(values, default=0.0)
    if quantity not in PERCENT or low < 0.7 * high:
        return 0.0
    return max(0.0, low - 0.5 * (high - low))


def _draw_bars(axes: Axes, comparison: DatasetComparison, quantity: str, width: float) -> None:
    factor = 100 if quantity in PERCENT else 1
    styles = choose_styles(comparison)
    middles, left, highest = [], 0.0, 0.0
    for results in comparison.results:
        colour, *_ = styles[results.config]
        places = left + np.arange(len(results.runs))
        values = np.array([factor * (run.test_metric(quantity) or 0.0) for run in results.runs])
        middles.append((left + places[-1]) / 2)
        highest = max(highest, values.max())
        axes.bar(places, values, 0.82, color=colour, alpha=0.55)
        if value := results.metrics.get(quantity):
            mean = factor * value.mean
            axes.hlines(mean, left - 0.6, places[-1] + 0.6, color=colour, linewidth=2)
            axes.annotate(
                format_mean(value, quantity).replace(" ± ", "\n± "),
                (middles[-1], max(values.max(), mean)), (0, 3), textcoords="offset points",
                ha="center", va="bottom", fontsize=8, color=style.INK,
            )  # fmt: skip
        left = places[-1] + 2.0
    bottom = factor * _first_tick(comparison, quantity)
    axes.set_ylim(bottom, bottom + 1.35 * max(highest - bottom, 1e-9))
    if quantity in PERCENT:
        axes.set_yticks([tick for tick in axes.get_yticks() if bottom <= tick <= 100])
    axes.set_xlim(-1.0, left - 1.0)
    axes.grid(axis="x", visible=False)
    labels = [style.shorten(results.label) for results in comparison.results]
    letters = max(len(results.label) for results in comparison.results) * len(labels)
    horizontal = letters * 0.09 < width - 1
    axes.set_xticks(
        middles, labels, rotation=0 if horizontal else 35, ha="center" if horizontal else "right",
        rotation_mode="anchor",
    )  # fmt: skip
