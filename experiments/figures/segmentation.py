"""Figures of a segmentation: pictures beside truth and prediction, and the IoU of each class."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.patches import Patch

from experiments.data.masks import IGNORE
from experiments.figures.style import (
    FAINT,
    INK,
    VALIDATION,
    new_figure,
    paint_mask,
    save_figure,
    shorten,
    style_axes,
)


def draw_samples(
    images: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    classes: Sequence[str],
    path: str | os.PathLike,
) -> None:
    """Draws pictures with their masks in VOC's colours.

    Args:
        images: uint8 `[H, W, 3]`, of any sizes.
        truths: integers `[H, W]`, 255 for pixels that are not counted.
        predictions: integers `[H, W]`.
        classes: the names.
        path: the PNG to write.
    """
    figure = new_figure(
        3 * 2.3 + 0.4,
        len(images) * 1.75 + 1.6,
        "Test pictures (what does not count is pale)",
    )
    panels = figure.subplots(len(images), 3, squeeze=False)
    for axes, title in zip(panels[0], ("picture", "truth", "prediction"), strict=True):
        axes.set_title(title, fontsize=9.5, color=INK)
    for row, image, truth, prediction in zip(panels, images, truths, predictions, strict=True):
        shown = (image, paint_mask(truth), paint_mask(prediction))
        for axes, picture in zip(row, shown, strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.axis("off")
    present = np.unique(np.concatenate([np.ravel(mask) for mask in (*truths, *predictions)]))
    patches = [
        Patch(
            facecolor=paint_mask(np.array(number)) / 255,
            edgecolor=FAINT,
            label=shorten(classes[number]),
        )
        for number in present
        if number != IGNORE
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    save_figure(figure, path)


def draw_iou(iou: Mapping[str, float | None], path: str | os.PathLike) -> None:
    """Draws the intersection over union of each class, the best first.

    Args:
        iou: class name to IoU; None for a class that is in neither truth nor prediction.
        path: the PNG to write.
    """
    present = {name: value for name, value in iou.items() if value is not None}
    absent = [name for name in iou if name not in present]
    mean = float(np.mean(list(present.values()))) if present else float("nan")
    caption = "Intersection over union of all pixels of the test split."
    if absent:
        caption += f" Not present, and not in the mean: {', '.join(absent)}."
    figure = new_figure(
        6.5, 0.22 * max(len(present), 3) + 1.5, f"IoU by class: mean {mean:.3f}", caption
    )
    axes = figure.subplots()
    names = sorted(present, key=present.get)
    lengths = [present[name] for name in names]
    axes.barh([shorten(name) for name in names], lengths, color=VALIDATION)
    axes.axvline(mean, color=FAINT, linewidth=1, linestyle="--")
    style_axes(axes, xlabel="IoU")
    axes.set_xlim(0, 1)
    save_figure(figure, path)
