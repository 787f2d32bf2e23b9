"""The figure of an autoencoder: pictures beside their reconstructions."""

import os
from collections.abc import Sequence

import numpy as np

from experiments.figures import style


def draw_reconstructions(
    inputs: np.ndarray,
    outputs: np.ndarray,
    names: Sequence[str],
    title: str,
    caption: str,
    path: str | os.PathLike,
) -> None:
    """Draws inputs, outputs and their absolute differences, a column for each picture.

    Args:
        inputs: floats `[N, H, W, C]`, 0 to 1, of one channel or three.
        outputs: likewise.
        names: the titles of the columns.
        title: of the figure.
        caption: below it.
        path: the PNG to write.
    """
    errors = np.abs(outputs - inputs).mean(axis=-1)
    figure = style.new_figure(1.35 * max(len(inputs), 4) + 0.5, 5.4, title, caption)
    rows = figure.subplots(3, len(inputs), squeeze=False)
    for axes, name in zip(rows[0], names, strict=True):
        axes.set_title(
            "\n".join(map(style.escape, name.split("\n"))), fontsize=8.5, color=style.INK
        )
    for row, label, pictures in zip(
        rows, ("input", "output", "absolute error"), (inputs, outputs, errors), strict=True
    ):
        row[0].set_ylabel(label, fontsize=9.5, color=style.INK)
        cmap, top = ("inferno", errors.max()) if pictures is errors else ("gray", 1.0)
        for axes, picture in zip(row, pictures, strict=True):
            if picture.shape[-1] == 1:
                picture = picture[..., 0]
            axes.imshow(np.clip(picture, 0, 1), cmap=cmap, vmin=0, vmax=top)
            axes.set(xticks=[], yticks=[])
    style.save_figure(figure, path)
