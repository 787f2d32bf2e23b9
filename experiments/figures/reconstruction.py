"""The figure of an autoencoder: pictures beside what came back of them."""

import os
from collections.abc import Sequence

import numpy as np

from experiments.figures.style import INK, escape, new_figure, save


def reconstructions(
    inputs: np.ndarray,
    outputs: np.ndarray,
    names: Sequence[str],
    title: str,
    caption: str,
    path: str | os.PathLike,
) -> None:
    """Draws inputs, outputs and their absolute differences, a column each.

    Args:
      inputs: floats [N, H, W, C], 0 to 1, of one channel or three.
      outputs: likewise.
      names: what is written above each column.
      title: of the figure.
      caption: below it.
      path: the PNG to write.
    """
    errors = np.abs(outputs - inputs).mean(axis=-1)
    figure = new_figure(1.35 * max(len(inputs), 4) + 0.5, 5.4, title, caption)
    panels = figure.subplots(3, len(inputs), squeeze=False)
    for column, name in enumerate(names):
        for row, (kind, pictures) in enumerate(
            (("input", inputs), ("output", outputs), ("absolute error", errors))
        ):
            axes, picture = panels[row, column], pictures[column]
            grey = picture.ndim == 2 or picture.shape[-1] == 1
            shown = picture if picture.ndim == 2 else picture[..., 0] if grey else picture
            top = errors.max() if kind == "absolute error" else 1.0
            axes.imshow(
                np.clip(shown, 0, 1), cmap="inferno" if row == 2 else "gray", vmin=0, vmax=top
            )
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(kind, fontsize=9.5, color=INK)
            if row == 0:
                axes.set_title(escape(name), fontsize=8.5, color=INK)
    save(figure, path)
