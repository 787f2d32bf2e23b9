"""Figures of what networks look at: class activation, mixtures, pixel-wise attention, segmented pictures.

All show several configs side by side, on the same test examples.
"""

import math
import os
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from experiments.data.masks import IGNORE
from experiments.figures.palette import colours
from experiments.figures.style import (
    FAINT,
    INK,
    LINE,
    WRONG,
    class_name,
    colormap,
    new_figure,
    save,
    short,
    style_axes,
)
from experiments.reports.study_figures import COLOURS
from experiments.runs.artifacts import MIN_POSITIONS, Maps, Samples

WIDTH = 9.6  # inches, at most, while panels are not smaller than a thumbnail
HEAT = matplotlib.colormaps["inferno"]
ALONG = LinearSegmentedColormap.from_list("activation", ["#c9ced6", "#e69f00", "#b2182b"])
KERNELS = COLOURS[1:]
WIDEST = 32  # columns of a heat map of gates


def attention_maps(maps: Mapping[str, Maps], path: str | os.PathLike) -> bool:
    """Draws the class activation of all configs over the same test examples.

    Args:
      maps: config's label to what its network saw; all of the same inputs.
      path: the PNG to write.

    Returns:
      Whether it was drawn: not where no config has an activation.
    """
    maps = {label: one for label, one in maps.items() if one.activation.size}
    if not maps:
        return False
    first = next(iter(maps.values()))
    layers = sorted({one.layer for one in maps.values()})
    scale = "no colour: no place does"
    if first.inputs.ndim == 3:
        scale = "from grey to red, and all grey: no place does"
    figure, panels = _grid(
        len(first.inputs),
        len(maps) + 1,
        first.inputs.shape[1:],
        "What speaks for the true class",
        f"Class activation (Grad-CAM) of the true class at {', '.join(layers)}, each map scaled by its own "
        f"maximum; {scale}. Orange frame and arrow: the network predicts another class.",
    )
    for row, axes in enumerate(panels[:, 0]):
        _plain(axes, first.inputs[row])
        axes.set_ylabel(
            short(class_name(first.classes, first.labels[row]), 14), fontsize=9, color=INK
        )
    panels[0, 0].set_title("input", fontsize=9.5, color=INK)
    for column, (label, one) in enumerate(maps.items(), start=1):
        panels[0, column].set_title(short(label, 18), fontsize=9.5, color=INK)
        for row, axes in enumerate(panels[:, column]):
            _activation(axes, one.inputs[row], one.activation[row])
            wrong = one.predictions[row] != one.labels[row]
            _frame(axes, wrong)
            if wrong:
                guess = short(class_name(one.classes, one.predictions[row]), 14)
                axes.set_xlabel(f"→ {guess}", fontsize=8, color=WRONG, labelpad=2)
    save(figure, path)
    return True


def _grid(
    rows: int, columns: int, shape: Sequence[int], title: str, caption: str, beside: float = 0.0
) -> tuple[Figure, np.ndarray]:
    """Panels for examples of a shape, as wide as a page has room for, and inches beside for a legend."""
    pictures = len(shape) == 3
    width = min(max(WIDTH / columns, 0.95), 1.55 if pictures else 2.6)
    height = width * min(max(shape[0] / shape[1], 0.5), 1.5) + 0.16 if pictures else 0.95
    figure = new_figure(
        max(columns * width + 0.6 + beside, 5.0), rows * height + 1.25, title, caption
    )
    return figure, figure.subplots(rows, columns, squeeze=False)


def _frame(axes: Axes, wrong: bool = False) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_color(WRONG if wrong else LINE)
        spine.set_linewidth(2.0 if wrong else 0.8)


def _plain(axes: Axes, example: np.ndarray) -> None:
    """An example by itself: a picture, or a series with a line for each channel."""
    if example.ndim == 3:
        picture = _unit(example)
        picture = picture if picture.shape[-1] == 3 else picture.mean(axis=-1)
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        axes.plot(example, linewidth=1.1, color=KERNELS[0] if example.shape[-1] == 1 else None)
        axes.margins(x=0.01, y=0.1)
    _frame(axes)


def _activation(axes: Axes, example: np.ndarray, activation: np.ndarray) -> None:
    """An example, and where it speaks for the class: as colours over it, or along its line."""
    heat = activation / (activation.max() or 1.0)
    if example.ndim == 3:
        grey = _unit(example).mean(axis=-1)
        axes.imshow(grey, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        _overlay(axes, heat, grey.shape)
        return
    length = len(example)
    middles = (np.arange(len(heat)) + 0.5) * length / len(heat) - 0.5
    along = np.interp(np.arange(length), middles, heat)
    for channel in range(example.shape[-1]):
        points = np.stack([np.arange(length), example[:, channel]], axis=-1)
        pieces = np.stack([points[:-1], points[1:]], axis=1)
        lines = LineCollection(pieces, cmap=ALONG, linewidth=1.8, capstyle="round")
        lines.set_array((along[:-1] + along[1:]) / 2)
        lines.set_clim(0, 1)
        axes.add_collection(lines)
    axes.autoscale()
    axes.margins(x=0.01, y=0.1)


def _overlay(axes: Axes, heat: np.ndarray, shape: tuple[int, int]) -> None:
    """Colours over a picture, the stronger the less the picture shines through."""
    fine = tuple(max(side, 128) for side in shape)
    smooth = Image.fromarray(heat.astype(np.float32)).resize(fine[::-1], Image.Resampling.BILINEAR)
    smooth = np.clip(np.asarray(smooth), 0, 1)
    colour = HEAT(0.25 + 0.7 * smooth)
    colour[..., 3] = 0.85 * smooth
    height, width = shape
    axes.imshow(colour, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest")


def _unit(image: np.ndarray) -> np.ndarray:
    """A picture of any range from black to white."""
    low, high = image.min(), image.max()
    return (image - low) / (high - low) if high > low else np.full_like(image, 0.5)


def mixtures(maps: Mapping[str, Maps], path: str | os.PathLike) -> bool:
    """Draws how often each gate is on, and how each kernel is weighed, in every layer of each config.

    Args:
      maps: config's label to what its network decided.
      path: the PNG to write.

    Returns:
      Whether it was drawn: not where no config mixes kernels.
    """
    tables = {label: one.mixtures for label, one in maps.items() if one.mixtures}
    if not tables:
        return False
    columns = min(len(tables), 3)
    lines = math.ceil(len(tables) / columns)
    most = max(len(layers) for layers in tables.values())
    counts = sorted({int(m["count"]) for layers in tables.values() for m in layers.values()})
    of = f"{counts[-1]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    figure = new_figure(
        3.4 * columns + 0.4,
        lines * (0.19 * most + 0.75) + 1.5,
        "How each layer mixes its kernels",
        f"Over {of} test examples. Hard gates: colour is the share of examples for which a gate is on; "
        "on, off: gates that are so for all of them; free: gates that the input decides. Other mixtures: "
        "colour is the mean weight; H: entropy from 0 (one kernel) to 1 (all alike); s: standard deviation "
        "over the examples (0: the same mixture for all); dead: kernels that are never used. Of more than "
        f"{WIDEST} kernels or gates a choice is shown, in order of size.",
    )
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(tables) :]:
        axes.axis("off")
    for axes, (label, layers) in zip(panels, tables.items(), strict=False):
        _mixture_panel(axes, label, layers)
    save(figure, path)
    return True


def _mixture_panel(axes: Axes, label: str, layers: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    hard = all(bool(one["hard"]) for one in layers.values())
    widest = min(max(len(one["mean"]) for one in layers.values()), WIDEST)
    table = np.full((len(layers), widest), np.nan)
    for row, one in enumerate(layers.values()):
        values = one["on"] if hard else one["mean"]
        if len(values) > widest:  # too many to tell apart: what matters is how many are on
            values = np.sort(values)[::-1][np.linspace(0, len(values) - 1, widest).astype(int)]
        table[row, : len(values)] = values
        axes.annotate(
            _gates(one["on"]) if hard else _soft(one), (1.03, row), va="center", fontsize=7, color=INK,
            xycoords=("axes fraction", "data"),
        )  # fmt: skip
    top = 1.0 if hard else max(float(np.nanmax(table)), 1e-9)
    picture = axes.imshow(
        table, aspect="auto", cmap=colormap("viridis"), vmin=min(0.0, float(np.nanmin(table))), vmax=top,
        interpolation="nearest",
    )  # fmt: skip
    style_axes(axes, grid=False, frame=True)
    heading = f"{short(label)}: mean weights"
    if hard:
        every = np.concatenate([one["on"] for one in layers.values()])
        heading = f"{short(label)}: share on\n(in all: {_gates(every)})"
    axes.set_title(heading, fontsize=9.5, color=INK)
    axes.set_yticks(range(len(layers)), [_tail(name) for name in layers])
    axes.tick_params(labelsize=7)
    axes.set_xticks([])
    bar = axes.figure.colorbar(
        picture, ax=axes, location="bottom", fraction=0.03, pad=0.03, aspect=25
    )
    bar.ax.tick_params(labelsize=7, colors=FAINT, length=2)
    bar.outline.set_visible(False)


def _gates(on: np.ndarray) -> str:
    always, never = int((on == 1).sum()), int((on == 0).sum())
    return f"on {always}, off {never}, free {len(on) - always - never}"


def _soft(one: Mapping[str, np.ndarray]) -> str:
    dead = int(one["dead"].sum())
    return f"H {one['entropy']:.2f}, s {one['spread']:.2f}" + (f", dead {dead}" if dead else "")


def _tail(name: str, letters: int = 20) -> str:
    """A layer's path, short: `stage1_block2/conv1` is `1.2/conv1`."""
    name = name.replace("stage", "").replace("_block", ".") or "layer"
    return name if len(name) <= letters else f"…{name[1 - letters :]}"


def pixel_attention(maps: Mapping[str, Maps], path: str | os.PathLike) -> bool:
    """Draws which kernel each place takes, and what spatial attention lets through.

    Args:
      maps: config's label to what its network decided; all of the same inputs.
      path: the PNG to write.

    Returns:
      Whether it was drawn: not where no config has attention that differs from place to place.
    """
    chosen = [
        (label, layer, weights) for label, one in maps.items() for layer, weights in _placewise(one)
    ]
    if not chosen:
        return False
    first = next(iter(maps.values()))
    rows = min(len(first.inputs), 6)
    most = max((w.shape[-1] for _, _, w in chosen if w.ndim == first.inputs.ndim), default=0)
    caption = "Three layers of each config: its first, middle and last with places enough. "
    if most:
        caption += (
            "Colour: the kernel with the greatest weight at a place; the paler, the more alike all "
            "kernels' weights are. "
        )
    if any(weights.ndim < first.inputs.ndim for _, _, weights in chosen):
        caption += "Heat: the weight of a place in spatial attention."
    figure, panels = _grid(
        rows, len(chosen) + 1, first.inputs.shape[1:], "Attention from place to place", caption, 1.2
    )
    for row in range(rows):
        _plain(panels[row, 0], first.inputs[row])
        name = short(class_name(first.classes, first.labels[row]), 14)
        panels[row, 0].set_ylabel(name, fontsize=9, color=INK)
    panels[0, 0].set_title("input", fontsize=9.5, color=INK)
    for column, (label, layer, weights) in enumerate(chosen, start=1):
        panels[0, column].set_title(
            f"{short(label, 16)}\n{_tail(layer, 16)}", fontsize=8.5, color=INK
        )
        for row, axes in enumerate(panels[:, column]):
            _placewise_panel(axes, first.inputs[row], weights[row].astype(np.float32))
    if most:
        patches = [
            Patch(color=_kernel_colours(most)[k], label=f"kernel {k + 1}") for k in range(most)
        ]
        figure.legend(handles=patches[:16], loc="outside right upper", fontsize=9, frameon=False)
    save(figure, path)
    return True


def _placewise(one: Maps) -> list[tuple[str, np.ndarray]]:
    """Three layers whose attention differs from place to place, with their weights."""
    found = []
    for layer, kinds in one.weights.items():
        # ODConv's spatial attention is over the taps of its kernel, beside attention over filters.
        key = (
            "pixel"
            if "pixel" in kinds
            else "spatial"
            if kinds.keys() == {"channel", "spatial"}
            else ""
        )
        if key:
            places = kinds[key].shape[1 : one.inputs.ndim - 1]
            if len(places) == one.inputs.ndim - 2 and min(places) >= MIN_POSITIONS:
                found.append((layer, kinds[key]))
    chosen = sorted({0, len(found) // 2, len(found) - 1}) if found else []
    return [found[index] for index in chosen]


def _placewise_panel(axes: Axes, example: np.ndarray, weights: np.ndarray) -> None:
    """`[*spatial, K]` as the colours of kernels, `[*spatial]` as heat, over a picture or behind a line."""
    pictures = example.ndim == 3
    if pictures and weights.ndim == 2:
        _activation(axes, example, weights)
        _frame(axes)
        return
    if weights.ndim == example.ndim:
        shares = np.clip(weights, 1e-12, None)
        shares /= shares.sum(axis=-1, keepdims=True)
        number = shares.shape[-1]
        entropy = -(shares * np.log(shares)).sum(axis=-1) / max(math.log(number), 1e-12)
        strength = 0.12 + 0.88 * (1 - np.clip(entropy, 0, 1))[..., None]
        picture = 1 - strength * (1 - _kernel_colours(number)[shares.argmax(axis=-1)])
    else:
        picture = HEAT(weights)[..., :3]
    if pictures:
        axes.imshow(picture, interpolation="nearest")
    else:
        low, high = example.min() - 0.1, example.max() + 0.1
        extent = (-0.5, len(example) - 0.5, low, high)
        axes.imshow(picture[None], aspect="auto", extent=extent, interpolation="nearest")
        axes.plot(example, linewidth=1.1, color=INK)
    _frame(axes)


def _kernel_colours(number: int) -> np.ndarray:
    """A colour for each of so many kernels, `[number, 3]`; they come again after the seventh."""
    every = [matplotlib.colors.to_rgb(KERNELS[k % len(KERNELS)]) for k in range(number)]
    return np.array(every)


def segmentation_samples(samples: Mapping[str, Samples], path: str | os.PathLike) -> bool:
    """Draws test pictures, their truth and the prediction of each config in VOC's colours.

    Args:
      samples: config's label to its predictions; all of the same pictures.
      path: the PNG to write.

    Returns:
      Whether it was drawn: not where there is no picture.
    """
    first = next(iter(samples.values()), None)
    if first is None or not first.images:
        return False
    rows, columns = min(len(first.images), 6), len(samples) + 2
    width = min(max(WIDTH / columns, 0.95), 2.2)
    heights = [image.shape[0] / image.shape[1] for image in first.images[:rows]]
    masks = [*first.truths, *(mask for one in samples.values() for mask in one.predictions)]
    seen = sorted({int(number) for mask in masks for number in np.unique(mask)} - {IGNORE})
    figure = new_figure(
        columns * width + 1.7,
        max(width * sum(heights) + 1.2, 0.2 * len(seen) + 1.0),
        "Segmented test pictures",
        "Pale borders in the truth do not count.",
    )
    panels = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    for axes, title in zip(panels[0], ["picture", "truth", *samples], strict=True):
        axes.set_title(short(title, 18), fontsize=9.5, color=INK)
    for row, line in enumerate(panels):
        masks = [first.truths[row], *(one.predictions[row] for one in samples.values())]
        for axes, picture in zip(line, [first.images[row], *map(colours, masks)], strict=True):
            axes.imshow(picture, interpolation="nearest")
            _frame(axes)
    names = dict(enumerate(first.classes))
    patches = [
        Patch(
            facecolor=colours(np.array(number)) / 255, edgecolor=FAINT,
            label=short(names.get(number, f"class {number}")),
        )
        for number in seen
    ]  # fmt: skip
    figure.legend(handles=patches, loc="outside right upper", fontsize=9, frameon=False)
    save(figure, path)
    return True
