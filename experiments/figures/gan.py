"""The figures of a GAN's run: its samples beside real pictures, and how generator and discriminator did."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

from experiments.figures.classification import frame_losses
from experiments.figures.style import (
    BEST,
    FAINT,
    INK,
    TRAIN,
    VALIDATION,
    WRONG,
    new_figure,
    save,
    short,
    style_axes,
)

CLASSES = 20  # rows of samples, at most

CURVES = {"g": ("generator", WRONG), "d": ("discriminator", VALIDATION)}
SHARES = {
    "d_real": ("real pictures called real", VALIDATION),
    "d_fake": ("generated ones called generated", WRONG),
    "aux_real": ("real pictures' class named", BEST),
    "aux_fake": ("generated ones' class named", TRAIN),
}


def samples(rows: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str, path: Path) -> None:
    """Draws a row for each class: real pictures, and behind a gap generated ones.

    Args:
        rows: the class's name to real and generated pictures, uint8 `[n, H, W, C]` with C 1 or 3.
        title: above.
        path: the PNG to write.
    """
    many = [max(len(group[kind]) for group in rows.values()) for kind in (0, 1)]
    height, width, channels = next(iter(rows.values()))[1].shape[1:]
    gap = max(1, height // 16)
    left = [(width + gap) * n + 3 * gap * (n >= many[0]) for n in range(sum(many))]
    top = [(height + gap) * line for line in range(len(rows))]
    # One picture of all: axes for each would take seconds.
    sheet = np.full((top[-1] + height, left[-1] + width, channels), 255, np.uint8)
    for y, (real, made) in zip(top, rows.values(), strict=True):
        for place, picture in [*enumerate(real), *enumerate(made, many[0])]:
            x = left[place]
            sheet[y : y + height, x : x + width] = picture

    inches = 1.1 / height
    figure = new_figure(
        max(4.5, sheet.shape[1] * inches + 1.6), sheet.shape[0] * inches + 1.2, title
    )
    axes = figure.subplots()
    grey = {"cmap": "gray", "vmin": 0, "vmax": 255} if channels == 1 else {}
    axes.imshow(sheet.squeeze(-1) if grey else sheet, **grey)
    axes.set_yticks([y + height / 2 for y in top], [short(name, 18) for name in rows])
    axes.set_xticks([left[0], left[many[0]]], ["real", "generated"], ha="left")
    axes.tick_params(length=0, labelsize=9, colors=FAINT, top=True, labeltop=True)
    axes.tick_params(axis="x", bottom=False, labelbottom=False)
    axes.tick_params(axis="y", colors=INK)
    axes.set_frame_on(False)
    save(figure, path)


def contest(rows: Sequence[Mapping], path: Path) -> None:
    """Draws both losses and the discriminator's four accuracies over the steps.

    Args:
        rows: of `metrics.jsonl`.
        path: the PNG to write.
    """
    train, validation = (
        [row for row in rows if row.get("split") == split] for split in ("train", "validation")
    )
    figure = new_figure(
        7.5,
        6.6,
        "Generator against discriminator",
        "Lines: batches of training. Dots: the validation split. A discriminator that is always right "
        "teaches the generator nothing.",
    )
    above, below = figure.subplots(2, 1, sharex=True)
    style_axes(above, ylabel="loss")
    style_axes(below, xlabel="step", ylabel="share")
    for axes, names in ((above, CURVES), (below, SHARES)):
        for name, (label, colour) in names.items():
            _line(axes, train, name, color=colour, linewidth=1.0, label=label)
            _line(axes, validation, name, color=colour, linestyle="", marker="o", markersize=3.5)
    if train:
        above.legend(loc="best", fontsize=8.5, framealpha=1, edgecolor="none")
        # Above the curves, which fill the panel.
        below.legend(loc="upper center", ncols=2, fontsize=8.5, edgecolor="none")
    frame_losses(above)
    below.set_ylim(-0.02, 1.34)
    below.set_yticks(np.linspace(0, 1, 5))
    below.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    below.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    save(figure, path)


def _line(axes, rows: Sequence[Mapping], name: str, **style) -> None:
    """One metric over the steps; a gap where it is not finite."""
    points = [(row["step"], row[name]) for row in rows if name in row]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, [np.nan if value is None else value for value in values], **style)
