"""Attention weights of dynamic convolutions: how the candidate kernels were mixed for each class."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from experiments.figures import style


def draw_attention_by_class(
    attention: Mapping[str, np.ndarray], classes: Sequence[str], path: str | os.PathLike
) -> None:
    """Draws how the candidate kernels were mixed: a heat map of mean attention per layer.

    Args:
        attention: layer name to mean attention `[C, K]`; a row of NaN is a class without examples.
        classes: C names.
        path: the PNG to write.
    """
    tables = {name: np.asarray(table).astype(np.float32) for name, table in attention.items()}
    columns, lines = min(len(tables), 8), math.ceil(len(tables) / 8)
    height = min(max(0.17 * len(classes), 1.5), 3.4 if lines <= 2 else 2.2)
    top = max(np.nanmax(table, initial=0.0) for table in tables.values()) or 1.0
    title = "How the kernels were mixed: mean attention per class"
    caption = _make_caption(tables.values())
    figure, panels = style.make_grid(len(tables), columns, 1.8, height + 0.85, title, caption)
    colours = style.get_colormap("viridis")
    for index, (axes, (name, table)) in enumerate(zip(panels, tables.items(), strict=True)):
        image = axes.imshow(table, aspect="auto", cmap=colours, vmin=0, vmax=top)
        style.style_axes(axes, grid=False, frame=True)
        title = f"{style.shorten(name, keep_end=True)}\nspread {compute_spread(table):.3f}"
        axes.set_title(title, fontsize=7.5, color=style.INK)
        kernels = table.shape[1]
        ticks = np.unique(np.linspace(0, kernels - 1, min(kernels, 6)).round().astype(int))
        axes.set_xticks(ticks, [str(tick + 1) for tick in ticks])
        axes.tick_params(axis="x", labelsize=7)
        if index % columns == 0:
            style.set_class_ticks(axes.yaxis, classes, height)
        else:
            axes.set_yticks([])
        if index + columns >= len(tables):
            axes.set_xlabel("kernel", fontsize=8, color=style.FAINT)
    bar = style.add_colorbar(image, panels, fraction=0.02, pad=0.01, aspect=8 * lines * height)
    bar.set_label("attention", fontsize=8.5, color=style.INK)
    style.save_figure(figure, path)


def compute_spread(table: np.ndarray) -> float:
    """Returns how much a layer's attention `[C, K]` differs between classes.

    That is the standard deviation over the classes, averaged over the kernels; rows with NaN are left out.
    """
    table = table[~np.isnan(table).any(axis=1)]
    return float(table.std(axis=0).mean()) if len(table) else math.nan


def _make_caption(tables: Iterable[np.ndarray]) -> str:
    """Returns how to read the heat maps, for mixtures that sum to one and for free ones."""
    kernels, sums = set(), []
    for table in tables:
        kernels.add(table.shape[1])
        sums.append(table[~np.isnan(table).any(axis=1)].sum(axis=1))
    even = ""
    if len(kernels) == 1 and np.allclose(np.concatenate(sums), 1, atol=0.02):
        even = f" (1/K = {1 / kernels.pop():.3g})"
    return (
        "Rows: classes. Columns: candidate kernels. Rows that differ: the layer picks its kernel "
        f"by class. One colour everywhere{even}: it is not selective. Spread: deviation over the "
        "classes, mean over the kernels; 0 is the same mixture for every class."
    )
