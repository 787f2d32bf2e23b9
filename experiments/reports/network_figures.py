"""Draws the costs of a network's layers and the similarity of their kernels."""

import math
import os
from collections.abc import Sequence

import numpy as np

from experiments.figures.style import (
    BEST,
    FAINT,
    INK,
    VALIDATION,
    get_colormap,
    new_figure,
    save_figure,
    style_axes,
)
from experiments.reports.network import KernelUse, LayerCost


def draw_costs(layers: Sequence[LayerCost], path: str | os.PathLike) -> None:
    """Draws parameters and multiply-adds of each layer, with those of attention in another colour."""
    figure = new_figure(
        9.6,
        0.2 * len(layers) + 1.6,
        "Cost of each layer",
        "For one example. Attention: the part of a layer that weighs kernels and channels.",
    )
    panels = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(layers))[::-1]
    fields = {"parameters": "parameters", "macs": "multiply-adds"}
    for axes, (field, title) in zip(panels, fields.items(), strict=True):
        whole = np.array([getattr(layer.cost, field) for layer in layers])
        attention = np.array([getattr(layer.attention, field) for layer in layers])
        axes.barh(places, whole - attention, color=VALIDATION, label="layer")
        axes.barh(places, attention, left=whole - attention, color=BEST, label="attention")
        axes.ticklabel_format(axis="x", style="sci", scilimits=(3, 3), useMathText=True)
        style_axes(axes, title)
        axes.grid(axis="y", visible=False)
    panels[0].set_yticks(places, [layer.name for layer in layers])
    panels[0].tick_params(axis="y", labelsize=7, colors=INK)
    panels[0].set_ylim(-0.7, len(layers) - 0.3)
    if any(layer.attention.macs for layer in layers):
        panels[1].legend(fontsize=8.5, frameon=False, labelcolor=INK)
    save_figure(figure, path)


def draw_similarities(uses: Sequence[KernelUse], path: str | os.PathLike) -> bool:
    """Draws the cosines between the kernels of each layer.

    Returns:
        Whether it was drawn: it is not if no layer's kernels are parameters.
    """
    shown = [(use.name, use.similarity) for use in uses if use.similarity is not None]
    if not shown:
        return False
    columns = min(len(shown), 8)
    rows = math.ceil(len(shown) / columns)
    figure = new_figure(
        max(1.15 * columns + 0.8, 4.5),
        1.35 * rows + 1.4,
        "Similarity of the kernels of each layer",
        "Cosine between two candidate kernels: red 1, the same up to scale; white 0; blue -1, opposite. The "
        "diagonal is each kernel with itself.",
    )
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(shown) :]:
        axes.axis("off")
    for axes, (name, matrix) in zip(panels, shown, strict=False):
        picture = axes.imshow(matrix, cmap=get_colormap("RdBu_r"), vmin=-1, vmax=1)
        style_axes(axes, grid=False, frame=True)
        axes.set_title(name.replace("/", "\n"), fontsize=7, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
    bar = figure.colorbar(picture, ax=panels.tolist(), fraction=0.02, pad=0.01)
    bar.ax.tick_params(labelsize=7, colors=FAINT, length=2)
    bar.outline.set_visible(False)
    save_figure(figure, path)
    return True
