"""Writes the results of a benchmark: its numbers as JSON and a plot of its ratios."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from experiments.core import files
from experiments.core.errors import UserError
from experiments.figures import style

OUT = flags.DEFINE_string("out", "runs/benchmarks", "The folder of the numbers and the plot.")


def make_folder() -> Path:
    """Makes the folder `--out` and returns it; called before anything is timed.

    Raises:
        UserError: if it cannot be written.
    """
    path = Path(OUT.value).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={OUT.value} cannot be used: {error}.") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"--out={OUT.value} cannot be written to; choose another folder.")
    return path


def write_results(
    path: Path, numbers: Mapping[str, Any], ratios: Mapping[str, float], **options: Any
) -> None:
    """Writes numbers to `<path>.json` and a plot of ratios to `<path>.png`, and prints their paths.

    The options are those of `plot_ratios`.
    """
    files.write_json(f"{path}.json", numbers)
    plot_ratios(path, ratios, **options)
    print(f"\n{path}.json\n{path}.png")


def plot_ratios(
    path: Path,
    ratios: Mapping[str, float],
    *,
    title: str,
    caption: str,
    axis: str,
    line: float,
    more_is_better: bool,
) -> None:
    """Writes a plot of ratios to `<path>.png`.

    The bars are in the order of `ratios`, which `axis` describes. Those on the good side of `line` have
    another colour: above it if more is better, else below.
    """
    names, values = list(ratios), list(ratios.values())
    good = [value >= line if more_is_better else value <= line for value in values]
    figure = style.new_figure(7, 1.2 + 0.32 * len(names), title, caption)
    axes = figure.subplots()
    # On a linear axis a bar of a hundred would hide those of one and two. A logarithmic axis has no zero, so
    # there bars begin at the line.
    logarithmic = max(values) > 20 * min(values)
    start = line if logarithmic else 0.0
    colors = [style.BEST if is_good else style.VALIDATION for is_good in good]
    bars = axes.barh(names, [value - start for value in values], left=start, color=colors)
    axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=3, fontsize=8.5)
    axes.axvline(line, color=style.FAINT, linewidth=0.8)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.15)
    axes.invert_yaxis()
    style.style_axes(axes, axis)
    style.save_figure(figure, f"{path}.png")
