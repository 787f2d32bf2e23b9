"""Figures of detected objects: boxes and masks in pictures, and the average precision of each class."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from PIL import Image, ImageDraw

from experiments.figures import style

MASK_SHARE = 0.5  # of the colour of an object in its mask; the rest is the picture
MOST_SHOWN = 20  # objects of a picture


class Drawn(NamedTuple):
    """Objects to draw into a picture, the best first.

    Attributes:
        boxes: `[n, 4]`, (x1, y1, x2, y2).
        labels: int `[n]`, the numbers of the classes, from 1.
        scores: `[n]`; None for true objects.
        masks: bool `[n, H, W]`; None for boxes alone.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    masks: np.ndarray | None = None


def paint_objects_over(image: np.ndarray, objects: Drawn) -> np.ndarray:
    """Returns a picture, uint8 `[H, W, 3]`, with the masks of objects in the colours of their classes.

    Masks have an outline in the full colour. Better objects lie over worse ones.
    """
    painted = image.astype(np.float32)
    if objects.masks is None:
        return image
    colours = style.make_voc_palette()[np.asarray(objects.labels) % 256].astype(np.float32)
    for colour, mask in reversed(list(zip(colours, objects.masks, strict=True))):
        inside = np.pad(mask, 1)
        inner = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        painted[mask] += MASK_SHARE * (colour - painted[mask])
        painted[mask & ~inner] = colour
    return painted.round().astype(np.uint8)


def make_overlay(image: np.ndarray, objects: Drawn, classes: Sequence[str]) -> Image.Image:
    """Returns a picture, uint8 `[H, W, 3]`, with masks, boxes and names, at its own size."""
    overlay = Image.fromarray(paint_objects_over(image, objects))
    pen = ImageDraw.Draw(overlay)
    palette = style.make_voc_palette()
    for index in reversed(range(len(objects.labels))):
        colour = tuple(palette[objects.labels[index] % 256].tolist())
        x1, y1, x2, y2 = (float(edge) for edge in objects.boxes[index])
        pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=colour, width=2)
        text = _name_object(objects, index, classes).encode("latin-1", "replace").decode("latin-1")
        _, _, right, bottom = pen.textbbox((x1 + 2, y1 + 1), text)
        pen.rectangle((x1, y1, right + 1, bottom + 1), fill=colour)
        pen.text((x1 + 2, y1 + 1), text, fill=_choose_ink(colour))
    return overlay


def draw_detections(
    images: Sequence[np.ndarray],
    truths: Iterable[Drawn],
    found: Iterable[Drawn],
    headings: Sequence[str],
    classes: Sequence[str],
    title: str,
    caption: str,
    path: str | os.PathLike,
) -> None:
    """Draws pictures with their true objects beside the same pictures with the found ones.

    The objects of a picture are taken when it is drawn: generators need not hold all masks at once.

    Args:
        images: uint8 `[H, W, 3]`, of any sizes.
        truths: the true objects of each.
        found: the found objects of each.
        headings: a few words over the found objects of each picture.
        classes: the names, first the background.
        title: of the figure.
        caption: below it.
        path: the PNG to write.
    """
    pairs = 1 if len(images) < 3 else 2  # beside each other
    rows = -(-len(images) // pairs)
    cells = [list(range(row * pairs, min((row + 1) * pairs, len(images)))) for row in range(rows)]
    heights = [max(images[n].shape[0] / images[n].shape[1] for n in row) for row in cells]
    width = 2.5
    figure = style.new_figure(
        2 * pairs * width + 1.6, width * sum(heights) + 0.3 * rows + 1.0, title, caption
    )
    panels = figure.subplots(rows, 2 * pairs, squeeze=False, height_ratios=heights)
    for axes in panels.flat:
        axes.axis("off")
    seen: set[int] = set()
    places = panels.reshape(-1, 2)[: len(images)]
    for axes, image, *both, heading in zip(places, images, truths, found, headings, strict=True):
        for panel, drawn, words in zip(axes, both, ("truth", heading), strict=True):
            _draw_picture(panel, image, drawn, classes, words)
            seen.update(int(label) for label in drawn.labels[:MOST_SHOWN])
    palette = style.make_voc_palette()
    patches = [
        Patch(facecolor=palette[label % 256] / 255, label=style.shorten(classes[label], 14))
        for label in sorted(seen)
    ]
    if patches:
        figure.legend(handles=patches, loc="outside right upper", fontsize=8, frameon=False)
    style.save_figure(figure, path)


def _draw_picture(
    axes: Axes, image: np.ndarray, objects: Drawn, classes: Sequence[str], heading: str
) -> None:
    fields = (value if value is None else value[:MOST_SHOWN] for value in objects)
    shown = Drawn(*fields)
    axes.imshow(paint_objects_over(image, shown), interpolation="nearest")
    axes.set_title(style.escape(heading), fontsize=8.5, color=style.INK, pad=3)
    palette = style.make_voc_palette() / 255
    for index in reversed(range(len(shown.labels))):
        colour = palette[shown.labels[index] % 256]
        x1, y1, x2, y2 = (float(edge) for edge in shown.boxes[index])
        # Edges of boxes lie between pixels, whose centres are whole numbers here.
        corner = (x1 - 0.5, y1 - 0.5)
        axes.add_patch(Rectangle(corner, x2 - x1, y2 - y1, fill=False, edgecolor=colour, lw=1.2))
        axes.text(
            *corner,
            style.escape(_name_object(shown, index, classes)),
            fontsize=5.5,
            color=np.array(_choose_ink(255 * colour)) / 255,
            va="top",
            clip_on=True,
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8},
        )


def _name_object(objects: Drawn, index: int, classes: Sequence[str]) -> str:
    name = str(classes[objects.labels[index]])
    return name if objects.scores is None else f"{name} {objects.scores[index]:.2f}"


def _choose_ink(colour: Sequence[float]) -> tuple[int, int, int]:
    """Returns black or white, whichever is read better on a colour of 0 to 255."""
    light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (0, 0, 0) if light > 140 else (255, 255, 255)


def draw_class_precision(
    values: Mapping[str, Mapping[str, float | None]], title: str, path: str | os.PathLike
) -> None:
    """Draws the average precision of each class, the best first.

    Args:
        values: the title of each measure to the value of each class; None is a class without objects.
        title: of the figure.
        path: the PNG to write.
    """
    first = next(iter(values.values()))
    names = sorted((n for n, value in first.items() if value is not None), key=first.get)
    absent = [name for name, value in first.items() if value is None]
    caption = "Objects of the test split."
    if absent:
        caption += f" Without objects, and not in the mean: {', '.join(absent)}."
    figure = style.new_figure(6.5, 0.3 * max(len(names), 3) + 1.6, title, caption)
    axes = figure.subplots()
    height = 0.8 / len(values)
    for number, (measure, by_class) in enumerate(values.items()):
        places = np.arange(len(names)) + height * ((len(values) - 1) / 2 - number)
        lengths = [by_class.get(name) or 0.0 for name in names]
        axes.barh(places, lengths, height, color=style.PALETTE[number], label=measure)
    axes.set_yticks(range(len(names)), [style.shorten(name) for name in names])
    style.style_axes(axes, xlabel="average precision")
    axes.set_xlim(0, 1)
    if names:
        axes.legend(fontsize=8.5, frameon=False, loc="lower right")
    style.save_figure(figure, path)
