"""Figures of a GAN: its samples beside real pictures, and the losses of generator and discriminator."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import PercentFormatter

from experiments.figures import style
from experiments.figures.curves import limit_losses, plot_metric

MAX_CLASSES = 20  # rows of samples

CURVES = {"g": ("generator", style.WRONG), "d": ("discriminator", style.VALIDATION)}
SHARES = {
    "d_real": ("real pictures called real", style.VALIDATION),
    "d_fake": ("generated ones called generated", style.WRONG),
    "aux_real": ("real pictures' class named", style.BEST),
    "aux_fake": ("generated ones' class named", style.TRAIN),
}


def draw_samples(rows: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str, path: Path) -> None:
    """Draws a row for each class: real pictures and, after a gap, generated ones.

    Args:
        rows: the class's name to real and generated pictures, uint8 `[n, H, W, C]` with C 1 or 3.
        title: of the figure.
        path: the PNG to write.
    """
    num_real = max(len(real) for real, _ in rows.values())
    num_generated = max(len(generated) for _, generated in rows.values())
    height, width, channels = next(iter(rows.values()))[1].shape[1:]
    gap = max(1, height // 16)
    left = [(width + gap) * n for n in range(num_real + num_generated)]
    left[num_real:] = [x + 3 * gap for x in left[num_real:]]
    top = [(height + gap) * row for row in range(len(rows))]
    # One image of all: a panel for each would take seconds.
    sheet = np.full((top[-1] + height, left[-1] + width, channels), 255, np.uint8)
    for y, (real, generated) in zip(top, rows.values(), strict=True):
        for place, picture in [*enumerate(real), *enumerate(generated, num_real)]:
            x = left[place]
            sheet[y : y + height, x : x + width] = picture

    inches = 1.1 / height
    figure = style.new_figure(
        max(4.5, sheet.shape[1] * inches + 1.6), sheet.shape[0] * inches + 1.2, title
    )
    axes = figure.subplots()
    grey = {"cmap": "gray", "vmin": 0, "vmax": 255} if channels == 1 else {}
    axes.imshow(sheet.squeeze(-1) if grey else sheet, **grey)
    axes.set_yticks([y + height / 2 for y in top], [style.shorten(name, 18) for name in rows])
    axes.set_xticks([left[0], left[num_real]], ["real", "generated"], ha="left")
    axes.tick_params(length=0, labelsize=9, colors=style.FAINT, top=True, labeltop=True)
    axes.tick_params(axis="x", bottom=False, labelbottom=False)
    axes.tick_params(axis="y", colors=style.INK)
    axes.set_frame_on(False)
    style.save_figure(figure, path)


def draw_losses(rows: Sequence[Mapping], path: Path) -> None:
    """Draws both losses and the discriminator's four accuracies over the steps of `metrics.jsonl`."""
    train = [row for row in rows if row.get("split") == "train"]
    validation = [row for row in rows if row.get("split") == "validation"]
    figure = style.new_figure(
        7.5,
        6.6,
        "Generator against discriminator",
        "Lines: batches of training. Dots: the validation split. A discriminator that is always right "
        "teaches the generator nothing.",
    )
    above, below = figure.subplots(2, 1, sharex=True)
    style.style_axes(above, ylabel="loss")
    style.style_axes(below, ylabel="share")
    dots = {"linestyle": "", "marker": "o", "markersize": 3.5}
    for axes, names in ((above, CURVES), (below, SHARES)):
        for name, (label, colour) in names.items():
            plot_metric(axes, train, name, color=colour, linewidth=1.0, label=label)
            plot_metric(axes, validation, name, color=colour, **dots)
    if train:
        above.legend(loc="best", fontsize=8.5, framealpha=1, edgecolor="none")
        # Above the curves, which fill the panel.
        below.legend(loc="upper center", ncols=2, fontsize=8.5, edgecolor="none")
    limit_losses(above)
    below.set_ylim(-0.02, 1.34)
    below.set_yticks(np.linspace(0, 1, 5))
    below.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    style.label_steps(below)
    style.save_figure(figure, path)
