"""The worst mistakes of a run: what was seen, what it is, what was said instead, and where it lies."""

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.data.dataset import Source
from experiments.data.views import flatten
from experiments.figures.classification import draw_picture, draw_series
from experiments.figures.style import FAINT, LINE, WRONG, escape, new_figure, save, short

SHOWN = 24


def worst(labels: np.ndarray, scores: np.ndarray, n: int = SHOWN) -> list[tuple[int, int]]:
    """The examples whose most probable class is wrong, the surest first; or the scores furthest off.

    Args:
        labels: int `[N]`, or float `[N, C]`, NaN where it is not known.
        scores: `[N, C]`, 0 to 1.
        n: how many at most.

    Returns:
        Pairs of an example and the class that was wrongly said of it, or wrongly not said.
    """
    scores = np.nan_to_num(np.asarray(scores, np.float32))
    labels = np.asarray(labels)
    if labels.ndim == 1:
        said = scores.argmax(axis=1)
        wrong = np.flatnonzero(said != labels)
        order = np.argsort(-scores[wrong, said[wrong]], kind="stable")[:n]
        return [(int(i), int(said[i])) for i in wrong[order]]
    off = np.nan_to_num(np.abs(scores - labels))
    order = np.argsort(-off, axis=None, kind="stable")[:n]
    pairs = zip(*np.unravel_index(order, off.shape), strict=True)
    return [(int(i), int(c)) for i, c in pairs if off[i, c] > 0.5]


def names_of(source: Source, indices: Sequence[int]) -> list[str]:
    """What some examples of a source are called where it knows, such as `a.wav @ 3.0 s`; else ''."""
    bases, owners, positions = flatten(source)
    found = []
    for index in indices:
        names, position = getattr(bases[owners[index]], "names", ()), int(positions[index])
        # Some sources know the names of a few examples only.
        known = position in names if isinstance(names, Mapping) else position < len(names)
        found.append(str(names[position]) if known else "")
    return found


def draw(
    inputs: Sequence[np.ndarray],
    shown: Sequence[tuple[int, int]],
    labels: np.ndarray,
    scores: np.ndarray,
    names: Sequence[str],
    classes: Sequence[str],
    path: str | os.PathLike,
) -> None:
    """Draws the worst mistakes.

    Args:
        inputs: pictures `[H, W, C]` or series `[L, C]`, of any range: those of `shown`.
        shown: what `worst` gave.
        labels: int `[N]`, or float `[N, C]`, NaN where it is not known.
        scores: `[N, C]`.
        names: those of `shown`; '' where there is none.
        classes: C names.
        path: the PNG to write.
    """
    if not shown:
        figure = new_figure(4.5, 1.2, "The worst mistakes", "There is none: all are right.")
        save(figure, path)
        return
    height, width = 1.5, 2.7
    if inputs[0].ndim == 3:
        width = height * min(max(inputs[0].shape[1] / inputs[0].shape[0], 1.1), 2.2)
    columns = min(int(13 / width), len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = new_figure(
        max(columns * (width + 0.15) + 0.2, 4.5),
        lines * (height + 0.75) + 0.9,
        "The worst mistakes",
        "What it is → what was said, and with which probability; the surest first.",
    )
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(shown) :]:
        axes.axis("off")
    letters = int(width / 0.065)
    for axes, picture, name, (index, number) in zip(panels, inputs, names, shown, strict=False):
        picture = np.nan_to_num(np.asarray(picture, np.float32))
        if picture.ndim == 3:
            draw_picture(axes, picture)
        else:
            draw_series(axes, picture)
        for spine in axes.spines.values():
            spine.set_color(LINE)
        truth, said = _words(labels[index], number, classes)
        p = f"p={scores[index, number]:.2f}"
        text = f"{short(truth, letters)}\n→ {short(said, letters - 3)}\n{p}"
        axes.set_title(text, fontsize=7.5, pad=4.5, color=WRONG)
        # The end of a name tells it from its neighbours.
        tail = name if len(name) <= letters else f"…{name[1 - letters :]}"
        axes.set_xlabel(escape(tail), fontsize=6.5, color=FAINT)
    save(figure, path)


def _words(label: np.ndarray, number: int, classes: Sequence[str]) -> tuple[str, str]:
    """What an example is, and what was said of it."""
    if np.ndim(label) == 0:
        return str(classes[int(label)]), str(classes[number])
    of = ", ".join(str(classes[n]) for n in np.flatnonzero(label > 0.5)) or "none"
    return (of, f"no {classes[number]}") if label[number] > 0.5 else (of, str(classes[number]))
