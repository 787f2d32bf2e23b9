"""Draws the costs of a network's layers and the similarity of their kernels."""

import os
from collections.abc import Sequence

import numpy as np

from experiments.figures import style
from experiments.reports.network import KernelUse, LayerCost


def draw_costs(layers: Sequence[LayerCost], path: str | os.PathLike) -> None:
    """Draws parameters and multiply-adds of each layer, with those of attention in another colour."""
    figure = style.new_figure(
        9.6,
        0.2 * len(layers) + 1.6,
        "Cost of each layer",
        "For one example. Attention: the part of a layer that weights kernels and channels.",
    )
    panels = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(layers))[::-1]
    fields = {"parameters": "parameters", "macs": "multiply-adds"}
    for axes, (field, title) in zip(panels, fields.items(), strict=True):
        whole = np.array([getattr(layer.cost, field) for layer in layers])
        attention = np.array([getattr(layer.attention, field) for layer in layers])
        axes.barh(places, whole - attention, color=style.VALIDATION, label="layer")
        axes.barh(places, attention, left=whole - attention, color=style.BEST, label="attention")
        axes.ticklabel_format(axis="x", style="sci", scilimits=(3, 3), useMathText=True)
        style.style_axes(axes, title)
        axes.grid(axis="y", visible=False)
    panels[0].set_yticks(places, [style.escape(layer.name) for layer in layers])
    panels[0].tick_params(axis="y", labelsize=7, colors=style.INK)
    panels[0].set_ylim(-0.7, len(layers) - 0.3)
    if any(layer.attention.macs for layer in layers):
        panels[1].legend(fontsize=8.5, frameon=False, labelcolor=style.INK)
    style.save_figure(figure, path)


def draw_similarities(uses: Sequence[KernelUse], path: str | os.PathLike) -> bool:
    """Draws the cosines between the kernels of each layer; False if no layer's kernels are parameters."""
    shown = [(use.name, use.similarity) for use in uses if use.similarity is not None]
    if not shown:
        return False
    figure, panels = style.make_grid(
        len(shown),
        8,
        1.2,
        1.45,
        "Similarity of the kernels of each layer",
        "Cosine between two candidate kernels: red 1, the same up to scale; white 0; blue -1, opposite. The "
        "diagonal is each kernel with itself.",
    )
    for axes, (name, matrix) in zip(panels, shown, strict=True):
        picture = axes.imshow(matrix, cmap=style.get_colormap("RdBu_r"), vmin=-1, vmax=1)
        style.style_axes(axes, grid=False, frame=True)
        axes.set_title(style.escape(name).replace("/", "\n"), fontsize=7, color=style.INK)
        axes.set(xticks=[], yticks=[])
    style.add_colorbar(picture, panels, fraction=0.02, pad=0.01)
    style.save_figure(figure, path)
    return True
