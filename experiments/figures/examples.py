"""Grids of examples: pictures or series with their true class and the predicted one."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from experiments.core.words import count_noun
from experiments.data.dataset import Source
from experiments.data.views import flatten
from experiments.figures import style

LETTER = 0.065  # inches, of the text above a panel


def draw_example(
    axes: Axes, example: np.ndarray, frame_color: str = style.LINE, frame_width: float = 0.8
) -> None:
    """Draws a picture `[H, W, C]` or a series `[L, C]`, of any range, into a panel."""
    example = np.nan_to_num(np.asarray(example, np.float32))
    axes.set(xticks=[], yticks=[])
    if example.ndim == 3:
        picture = scale_to_unit(example)
        if picture.shape[-1] != 3:
            picture = picture.mean(axis=-1)
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        for channel in example.T:
            axes.plot(
                channel, linewidth=1.0, color=style.VALIDATION if len(example.T) == 1 else None
            )
        axes.margins(x=0.01, y=0.08)
    for spine in axes.spines.values():
        spine.set_color(frame_color)
        spine.set_linewidth(frame_width)


def scale_to_unit(picture: np.ndarray) -> np.ndarray:
    """Returns a picture of any range scaled to 0..1; a constant one becomes 0.5."""
    low, high = picture.min(), picture.max()
    return (picture - low) / (high - low) if high > low else np.full_like(picture, 0.5)


def choose_examples(
    labels: np.ndarray, predictions: np.ndarray, n: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns min(n, N) indices to show: wrong ones first, at most half of them while right ones are left."""
    wrong = np.asarray(labels) != np.asarray(predictions)
    mistakes, hits = (rng.permutation(np.flatnonzero(part)) for part in (wrong, ~wrong))
    n = min(n, wrong.size)
    shown = min(len(mistakes), max(n // 2, n - len(hits)))
    return np.concatenate([mistakes[:shown], hits[: n - shown]]).astype(np.int64)


def draw_predictions(
    inputs: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    path: str | os.PathLike,
) -> None:
    """Draws examples with their true class, the predicted one and its probability.

    Args:
        inputs: pictures `[N, H, W, C]` or series `[N, L, C]`, of any range.
        labels: `[N]`, the truth.
        predictions: `[N]`.
        probabilities: `[N]`, of the predictions.
        classes: the names.
        path: the PNG to write.
    """
    if inputs.ndim == 4:
        height = 1.35
        width = height * min(max(inputs.shape[2] / inputs.shape[1], 0.8), 2.2)
        columns = min(8, int(12 / width))
    else:
        height, width, columns = 1.0, 2.7, 4
    letters = int((width + 0.1) / LETTER)
    names = [(str(classes[t]), str(classes[p])) for t, p in zip(labels, predictions, strict=True)]
    one_line = all(len(truth) + len(guess) + 3 <= letters for truth, guess in names)
    wrong = labels != predictions
    remark = "All of these are right."
    if wrong.any():
        remark = (
            f"Orange: {count_noun(int(wrong.sum()), 'wrong one')}, shown first; their share "
            "here is not the error rate."
        )
    figure, panels = style.make_grid(
        len(inputs),
        columns,
        width + 0.2,
        height + (0.42 if one_line else 0.56),
        "Test examples",
        f"True class → prediction, p: its probability. {remark}",
    )
    for index, axes in enumerate(panels):
        frame = {"frame_color": style.WRONG, "frame_width": 2.2} if wrong[index] else {}
        draw_example(axes, inputs[index], **frame)
        truth, guess = names[index]
        text = f"{style.shorten(truth, letters)}\n→ {style.shorten(guess, letters - 3)}"
        if one_line:
            text = f"{style.escape(truth)} → {style.escape(guess)}"
        text += f"\np={probabilities[index]:.2f}"
        axes.set_title(
            text, fontsize=7.5, pad=4.5, color=style.WRONG if wrong[index] else style.INK
        )
    style.save_figure(figure, path)


def find_mistakes(labels: np.ndarray, scores: np.ndarray, n: int = 24) -> list[tuple[int, int]]:
    """Returns the worst mistakes: pairs of an example and the class wrongly predicted or wrongly missed.

    Args:
        labels: int `[N]`, or float `[N, C]`, NaN where unknown. With several labels per example, mistakes are
            scores more than 0.5 off, and the furthest off come first.
        scores: `[N, C]`, 0 to 1; of single labels, the highest wrong ones come first.
        n: the most that are returned.
    """
    scores = np.nan_to_num(np.asarray(scores, np.float32))
    labels = np.asarray(labels)
    if labels.ndim == 1:
        predictions = scores.argmax(axis=1)
        wrong = np.flatnonzero(predictions != labels)
        order = np.argsort(-scores[wrong, predictions[wrong]], kind="stable")[:n]
        return [(int(i), int(predictions[i])) for i in wrong[order]]
    errors = np.nan_to_num(np.abs(scores - labels))
    order = np.argsort(-errors, axis=None, kind="stable")[:n]
    pairs = zip(*np.unravel_index(order, errors.shape), strict=True)
    return [(int(i), int(c)) for i, c in pairs if errors[i, c] > 0.5]


def find_names(source: Source, indices: Sequence[int]) -> list[str]:
    """Returns the names of examples of a source, such as `a.wav @ 3.0 s`; '' where it knows none."""
    bases, owners, positions = flatten(source)
    result = []
    for index in indices:
        names, position = getattr(bases[owners[index]], "names", ()), int(positions[index])
        # Some sources know the names of a few examples only.
        known = position in names if isinstance(names, Mapping) else position < len(names)
        result.append(str(names[position]) if known else "")
    return result


def draw_mistakes(
    inputs: Sequence[np.ndarray],
    mistakes: Sequence[tuple[int, int]],
    labels: np.ndarray,
    scores: np.ndarray,
    names: Sequence[str],
    classes: Sequence[str],
    path: str | os.PathLike,
) -> None:
    """Draws the worst mistakes.

    Args:
        inputs: pictures `[H, W, C]` or series `[L, C]`, of any range, one per mistake.
        mistakes: from `find_mistakes`.
        labels: int `[N]`, or float `[N, C]`, NaN where unknown.
        scores: `[N, C]`.
        names: one per mistake; '' for none.
        classes: C names.
        path: the PNG to write.
    """
    title = "The worst mistakes"
    if not mistakes:
        style.save_figure(style.new_figure(4.5, 1.2, title, "There are none: all are right."), path)
        return
    height, width = 1.5, 2.7
    if inputs[0].ndim == 3:
        width = height * min(max(inputs[0].shape[1] / inputs[0].shape[0], 1.1), 2.2)
    caption = "True class → prediction, and its probability; the most confident mistakes first."
    columns = int(13 / width)
    figure, panels = style.make_grid(
        len(mistakes), columns, width + 0.15, height + 0.75, title, caption
    )
    letters = int(width / LETTER)
    for axes, picture, name, (index, number) in zip(panels, inputs, names, mistakes, strict=True):
        draw_example(axes, picture)
        truth, guess = _describe_mistake(labels[index], number, classes)
        text = f"{style.shorten(truth, letters)}\n→ {style.shorten(guess, letters - 3)}"
        text += f"\np={scores[index, number]:.2f}"
        axes.set_title(text, fontsize=7.5, pad=4.5, color=style.WRONG)
        # The end of a name tells it from its neighbours.
        axes.set_xlabel(
            style.shorten(name, letters, keep_end=True), fontsize=6.5, color=style.FAINT
        )
    style.save_figure(figure, path)


def _describe_mistake(label: np.ndarray, number: int, classes: Sequence[str]) -> tuple[str, str]:
    """Returns the true classes of an example, and the wrong prediction."""
    if np.ndim(label) == 0:
        return str(classes[int(label)]), str(classes[number])
    truth = ", ".join(str(classes[n]) for n in np.flatnonzero(label > 0.5)) or "none"
    missed = label[number] > 0.5
    return truth, f"no {classes[number]}" if missed else str(classes[number])
