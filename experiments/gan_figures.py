"""The figures of a GAN's run: its samples beside real pictures, and how generator and discriminator did."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

from experiments.figures import frame_losses
from experiments.style import (
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
    shown = max(len(real) for real, _ in rows.values()), max(len(g) for _, g in rows.values())
    _, height, width, _ = next(iter(rows.values()))[1].shape
    across, down = sum(shown), len(rows)
    side = 1.05
    wide = side * width / height
    figure = new_figure(max(4.5, across * wide + 1.6), down * side + 1.0, title)
    panels = figure.subplots(down, across, squeeze=False)
    for line, (name, (real, made)) in zip(panels, rows.items(), strict=True):
        padded = [*real, *[None] * (shown[0] - len(real)), *made]
        for axes, picture in zip(line, padded, strict=False):
            axes.set_axis_off()
            if picture is not None:
                grey = {"cmap": "gray", "vmin": 0, "vmax": 255} if picture.shape[-1] == 1 else {}
                axes.imshow(picture.squeeze(-1) if grey else picture, **grey)
        line[0].text(
            -0.08, 0.5, short(name, 18), transform=line[0].transAxes, ha="right", va="center",
            fontsize=9, color=INK,
        )  # fmt: skip
    for place, kind in ((0, "real"), (shown[0], "generated")):
        panels[0][place].set_title(kind, fontsize=9.5, color=FAINT, loc="left")
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
