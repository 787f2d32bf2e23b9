"""Draws what networks attend to, several configs side by side on the same test examples.

Class activation, mixtures of kernels, pixel-wise attention, and segmented pictures.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.figures import style
from experiments.figures.examples import draw_example
from experiments.figures.segmentation import draw_samples
from experiments.runs.artifacts import MIN_POSITIONS, Maps, Samples

WIDTH = 9.6  # of a figure in inches, unless panels would become smaller than a thumbnail
HEAT = matplotlib.colormaps["inferno"]
LINE_ACTIVATION = LinearSegmentedColormap.from_list("", ["#c9ced6", "#e69f00", "#b2182b"])
MAX_COLUMNS = 32  # of a heat map of kernels or gates


def draw_attention_maps(maps: Mapping[str, Maps], path: str | os.PathLike) -> bool:
    """Draws the class activation of all configs over the same test examples; False if there is none.

    Args:
        maps: label of each config to its maps; all of the same inputs.
        path: the PNG to write.
    """
    maps = {label: one for label, one in maps.items() if one.activation.size}
    if not maps:
        return False
    first = next(iter(maps.values()))
    layers = sorted({one.layer for one in maps.values()})
    scale = "without colour: no place supports the class"
    if first.inputs.ndim == 3:
        scale = "from grey to red; all grey: no place supports the class"
    figure, panels = _make_grid(
        len(first.inputs),
        len(maps) + 1,
        first.inputs.shape[1:],
        "Evidence for the true class",
        f"Class activation (Grad-CAM) of the true class at {', '.join(layers)}, each map scaled by its own "
        f"maximum; {scale}. Orange frame and arrow: the network predicts another class.",
    )
    _draw_inputs(panels[:, 0], first)
    for column, (label, one) in enumerate(maps.items(), start=1):
        panels[0, column].set_title(style.shorten(label, 18), fontsize=9.5, color=style.INK)
        for row, axes in enumerate(panels[:, column]):
            _draw_activation(axes, one.inputs[row], one.activation[row])
            wrong = one.predictions[row] != one.labels[row]
            _draw_frame(axes, wrong)
            if wrong:
                guess = style.shorten(one.classes[one.predictions[row]], 14)
                axes.set_xlabel(f"→ {guess}", fontsize=8, color=style.WRONG, labelpad=2)
    style.save_figure(figure, path)
    return True


def _make_grid(
    rows: int, columns: int, shape: Sequence[int], title: str, caption: str, legend: float = 0.0
) -> tuple[Figure, np.ndarray]:
    """Returns panels for examples of a shape, as wide as a page, and room for a `legend` in inches."""
    pictures = len(shape) == 3
    width = min(max(WIDTH / columns, 0.95), 1.55 if pictures else 2.6)
    height = width * min(max(shape[0] / shape[1], 0.5), 1.5) + 0.16 if pictures else 0.95
    figure = style.new_figure(
        max(columns * width + 0.6 + legend, 5.0), rows * height + 1.25, title, caption
    )
    return figure, figure.subplots(rows, columns, squeeze=False)


def _draw_inputs(panels: Sequence[Axes], maps: Maps) -> None:
    """Draws the examples themselves into the first column, with their classes."""
    panels[0].set_title("input", fontsize=9.5, color=style.INK)
    for axes, example, label in zip(panels, maps.inputs, maps.labels, strict=False):
        draw_example(axes, example)
        axes.set_ylabel(style.shorten(maps.classes[label], 14), fontsize=9, color=style.INK)


def _draw_frame(axes: Axes, wrong: bool = False) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_color(style.WRONG if wrong else style.LINE)
        spine.set_linewidth(2.0 if wrong else 0.8)


def _draw_activation(axes: Axes, example: np.ndarray, activation: np.ndarray) -> None:
    """Draws an example with its activation: as colours over a picture, or along the line of a series."""
    heat = activation / (activation.max() or 1.0)
    if example.ndim == 3:
        draw_example(axes, example.mean(axis=-1, keepdims=True))
        # The stronger the heat is, the less of the picture shines through. The map starts at 25 %.
        height, width = example.shape[:2]
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        heat = heat.astype(np.float32)
        axes.imshow(
            heat,
            cmap=HEAT,
            vmin=-0.36,
            vmax=1.07,
            alpha=0.85 * heat,
            extent=extent,
            interpolation="bilinear",
        )
        return
    length = len(example)
    middles = (np.arange(len(heat)) + 0.5) * length / len(heat) - 0.5
    heat = np.interp(np.arange(length), middles, heat)
    for channel in range(example.shape[-1]):
        points = np.stack([np.arange(length), example[:, channel]], axis=-1)
        segments = np.stack([points[:-1], points[1:]], axis=1)
        lines = LineCollection(segments, cmap=LINE_ACTIVATION, linewidth=1.8, capstyle="round")
        lines.set_array((heat[:-1] + heat[1:]) / 2)
        lines.set_clim(0, 1)
        axes.add_collection(lines)
    axes.autoscale()
    axes.margins(x=0.01, y=0.1)


def draw_mixtures(maps: Mapping[str, Maps], path: str | os.PathLike) -> bool:
    """Draws the mean weight of each kernel, or how often each gate is on; False if no kernels are mixed.

    Args:
        maps: label of each config to its maps.
        path: the PNG to write.
    """
    tables = {label: one.mixtures for label, one in maps.items() if one.mixtures}
    if not tables:
        return False
    most = max(len(layers) for layers in tables.values())
    counts = sorted({int(m["count"]) for layers in tables.values() for m in layers.values()})
    number = f"{counts[-1]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    caption = f"Over {number} test examples. {_explain_mixtures(tables.values())}"
    title = "Mixture of kernels in each layer"
    figure, panels = style.make_grid(len(tables), 3, 3.5, 0.19 * most + 1.2, title, caption)
    for axes, (label, layers) in zip(panels, tables.items(), strict=True):
        _draw_mixture_panel(axes, label, layers)
    style.save_figure(figure, path)
    return True


def _explain_mixtures(tables: Iterable[Mapping[str, Mapping[str, np.ndarray]]]) -> str:
    """Explains the kinds of mixtures that are there."""
    mixtures = [mixture for layers in tables for mixture in layers.values()]
    parts = []
    if any(mixture["hard"] for mixture in mixtures):
        parts.append(
            "Hard gates: colour is the share of examples for which a gate is on; on, off: gates that are so "
            "for all examples; free: gates that depend on the input."
        )
    if not all(mixture["hard"] for mixture in mixtures):
        parts.append(
            "Colour: mean weight; H: entropy from 0 (one kernel) to 1 (equal weights); s: standard deviation "
            "over the examples (0: the same mixture for all); dead: kernels that are never used."
        )
    if max(len(mixture["mean"]) for mixture in mixtures) > MAX_COLUMNS:
        parts.append(f"Of more than {MAX_COLUMNS}, only some are shown, in order of size.")
    return " ".join(parts)


def _draw_mixture_panel(
    axes: Axes, label: str, layers: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    hard = all(bool(mixture["hard"]) for mixture in layers.values())
    columns = min(max(len(mixture["mean"]) for mixture in layers.values()), MAX_COLUMNS)
    table = np.full((len(layers), columns), np.nan)
    for row, mixture in enumerate(layers.values()):
        values = mixture["on"] if hard else mixture["mean"]
        if len(values) > columns:  # too many to tell apart: evenly spaced ones, by size
            values = np.sort(values)[::-1][np.linspace(0, len(values) - 1, columns).astype(int)]
        table[row, : len(values)] = values
        axes.annotate(
            _count_gates(mixture["on"]) if hard else _describe_mixture(mixture), (1.03, row),
            va="center", fontsize=7, color=style.INK, xycoords=("axes fraction", "data"),
        )  # fmt: skip
    top = 1.0 if hard else max(float(np.nanmax(table)), 1e-9)
    bottom = min(0.0, float(np.nanmin(table)))
    colours = style.get_colormap("viridis")
    picture = axes.imshow(table, aspect="auto", cmap=colours, vmin=bottom, vmax=top)
    style.style_axes(axes, grid=False, frame=True)
    heading = f"{style.shorten(label)}: mean weights"
    if hard:
        gates = np.concatenate([mixture["on"] for mixture in layers.values()])
        heading = f"{style.shorten(label)}: share on\n(in all: {_count_gates(gates)})"
    axes.set_title(heading, fontsize=9.5, color=style.INK)
    axes.set_yticks(range(len(layers)), [_shorten_path(name) for name in layers])
    axes.tick_params(labelsize=7)
    axes.set_xticks([])
    style.add_colorbar(picture, axes, location="bottom", fraction=0.03, pad=0.03, aspect=25)


def _count_gates(on: np.ndarray) -> str:
    always, never = int((on == 1).sum()), int((on == 0).sum())
    return f"on {always}, off {never}, free {len(on) - always - never}"


def _describe_mixture(mixture: Mapping[str, np.ndarray]) -> str:
    dead = int(mixture["dead"].sum())
    text = f"H {mixture['entropy']:.2f}, s {mixture['spread']:.2f}"
    return f"{text}, dead {dead}" if dead else text


def _shorten_path(name: str, letters: int = 20) -> str:
    """Returns a layer's path in few letters: `stage1_block2/conv1` becomes `1.2/conv1`."""
    name = name.replace("stage", "").replace("_block", ".") or "layer"
    return style.shorten(name, letters, keep_end=True)


def draw_pixel_attention(maps: Mapping[str, Maps], path: str | os.PathLike) -> bool:
    """Draws the dominant kernel at each position, and spatial attention; False if no attention varies.

    Args:
        maps: label of each config to its maps; all of the same inputs.
        path: the PNG to write.
    """
    chosen = [
        (label, layer, weights)
        for label, one in maps.items()
        for layer, weights in _choose_layers(one)
    ]
    if not chosen:
        return False
    first = next(iter(maps.values()))
    rows = min(len(first.inputs), 6)
    kernels = max((w.shape[-1] for _, _, w in chosen if w.ndim == first.inputs.ndim), default=0)
    caption = "Three layers of each config: the first, middle and last one with enough positions. "
    if kernels:
        caption += (
            "Colour: the kernel with the largest weight at a position; paler where the weights of all "
            "kernels are more alike. "
        )
    if any(weights.ndim < first.inputs.ndim for _, _, weights in chosen):
        caption += "Heat: the weight of a position in spatial attention."
    figure, panels = _make_grid(
        rows, len(chosen) + 1, first.inputs.shape[1:], "Attention over positions", caption, 1.2
    )
    _draw_inputs(panels[:, 0], first)
    for column, (label, layer, weights) in enumerate(chosen, start=1):
        panels[0, column].set_title(
            f"{style.shorten(label, 16)}\n{_shorten_path(layer, 16)}", fontsize=8.5, color=style.INK
        )
        for row, axes in enumerate(panels[:, column]):
            _draw_positions(axes, first.inputs[row], weights[row].astype(np.float32))
    if kernels:
        patches = [
            Patch(color=colour, label=f"kernel {number}")
            for number, colour in enumerate(_list_kernel_colours(kernels), start=1)
        ]
        figure.legend(handles=patches[:16], loc="outside right upper", fontsize=9, frameon=False)
    style.save_figure(figure, path)
    return True


def _choose_layers(maps: Maps) -> list[tuple[str, np.ndarray]]:
    """Returns up to three layers whose attention varies over positions, with their weights."""
    layers = []
    for layer, kinds in maps.weights.items():
        weights = kinds.get("pixel")
        # ODConv also has a "spatial" attention, beside one over filters: over the taps of its kernel.
        if weights is None and kinds.keys() == {"channel", "spatial"}:
            weights = kinds["spatial"]
        if weights is None:
            continue
        positions = weights.shape[1 : maps.inputs.ndim - 1]
        if len(positions) == maps.inputs.ndim - 2 and min(positions) >= MIN_POSITIONS:
            layers.append((layer, weights))
    return layers if len(layers) <= 3 else [layers[0], layers[len(layers) // 2], layers[-1]]


def _draw_positions(axes: Axes, example: np.ndarray, weights: np.ndarray) -> None:
    """Draws `[*spatial, K]` as colours of kernels, `[*spatial]` as heat; a series lies over them."""
    is_picture = example.ndim == 3
    if is_picture and weights.ndim == 2:
        _draw_activation(axes, example, weights)
        _draw_frame(axes)
        return
    if weights.ndim == example.ndim:
        shares = np.clip(weights, 1e-12, None)
        shares /= shares.sum(axis=-1, keepdims=True)
        kernels = shares.shape[-1]
        entropy = -(shares * np.log(shares)).sum(axis=-1) / max(math.log(kernels), 1e-12)
        strength = 0.12 + 0.88 * (1 - np.clip(entropy, 0, 1))[..., None]
        picture = 1 - strength * (1 - _list_kernel_colours(kernels)[shares.argmax(axis=-1)])
    else:
        picture = HEAT(weights)[..., :3]
    if is_picture:
        axes.imshow(picture, interpolation="nearest")
    else:
        low, high = example.min() - 0.1, example.max() + 0.1
        extent = (-0.5, len(example) - 0.5, low, high)
        axes.imshow(picture[None], aspect="auto", extent=extent, interpolation="nearest")
        axes.plot(example, linewidth=1.1, color=style.INK)
    _draw_frame(axes)


def _list_kernel_colours(number: int) -> np.ndarray:
    """Returns a colour for each kernel, `[number, 3]`; they repeat after the palette's last."""
    return np.array(
        [matplotlib.colors.to_rgb(style.PALETTE[k % len(style.PALETTE)]) for k in range(number)]
    )


def draw_segmentation_samples(samples: Mapping[str, Samples], path: str | os.PathLike) -> bool:
    """Draws the same test pictures, their masks and each config's predictions; False if there are none.

    Args:
        samples: label of each config to its predictions.
        path: the PNG to write.
    """
    first = next(iter(samples.values()), None)
    if first is None or not first.images:
        return False
    predictions = {label: one.predictions[:6] for label, one in samples.items()}
    draw_samples(first.images[:6], first.truths[:6], predictions, first.classes, path)
    return True
