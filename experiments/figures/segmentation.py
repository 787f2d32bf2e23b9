"""Figures of a segmentation: pictures beside truth and prediction, and the IoU of each class."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.patches import Patch

from experiments.data.masks import IGNORE
from experiments.figures import style


def draw_samples(
    images: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    predictions: Mapping[str, Sequence[np.ndarray]],
    classes: Sequence[str],
    path: str | os.PathLike,
) -> None:
    """Draws pictures beside their true and their predicted masks, in VOC's colours.

    Args:
        images: uint8 `[H, W, 3]`, of any sizes.
        truths: integers `[H, W]`, 255 for pixels that are not counted.
        predictions: the title of each column to its masks, integers `[H, W]`.
        classes: the names.
        path: the PNG to write.
    """
    rows, columns = len(images), len(predictions) + 2
    width = min(max(9.6 / columns, 0.95), 2.2)
    heights = [image.shape[0] / image.shape[1] for image in images]
    masks = list(zip(truths, *predictions.values(), strict=True))
    seen = sorted({int(n) for row in masks for mask in row for n in np.unique(mask)} - {IGNORE})
    figure = style.new_figure(
        columns * width + 1.7,
        max(width * sum(heights) + 1.2, 0.2 * len(seen) + 1.0),
        "Segmented test pictures",
        "Pale borders in the truth are not scored.",
    )
    panels = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    for axes, title in zip(panels[0], ["picture", "truth", *predictions], strict=True):
        axes.set_title(style.shorten(title, 18), fontsize=9.5, color=style.INK)
    for row, image, its_masks in zip(panels, images, masks, strict=True):
        for axes, picture in zip(row, [image, *map(style.paint_mask, its_masks)], strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.axis("off")
    names = dict(enumerate(classes))
    patches = [
        Patch(
            facecolor=style.paint_mask(np.array(number)) / 255,
            edgecolor=style.FAINT,
            label=style.shorten(names.get(number, f"class {number}")),
        )
        for number in seen
    ]
    figure.legend(handles=patches, loc="outside right upper", fontsize=9, frameon=False)
    style.save_figure(figure, path)


def draw_iou(iou: Mapping[str, float | None], path: str | os.PathLike) -> None:
    """Draws the IoU of each class, the best first; None is a class in neither truth nor prediction."""
    present = {name: value for name, value in iou.items() if value is not None}
    absent = [name for name in iou if name not in present]
    mean = float(np.mean(list(present.values()))) if present else float("nan")
    caption = "Intersection over union of all pixels of the test split."
    if absent:
        caption += f" Not present, and not in the mean: {', '.join(absent)}."
    figure = style.new_figure(
        6.5, 0.22 * max(len(present), 3) + 1.5, f"IoU by class: mean {mean:.3f}", caption
    )
    axes = figure.subplots()
    names = sorted(present, key=present.get)
    lengths = [present[name] for name in names]
    axes.barh(range(len(names)), lengths, color=style.VALIDATION)
    axes.set_yticks(range(len(names)), [style.shorten(name) for name in names])
    axes.axvline(mean, color=style.FAINT, linewidth=1, linestyle="--")
    style.style_axes(axes, xlabel="IoU")
    axes.set_xlim(0, 1)
    style.save_figure(figure, path)
