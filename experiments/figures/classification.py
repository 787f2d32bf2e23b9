"""The figures of one run. Each function draws one picture and writes it whole or not at all."""

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from experiments.figures.style import (
    BEST,
    FAINT,
    INK,
    LINE,
    NUMBERED,
    TRAIN,
    VALIDATION,
    WRONG,
    class_name,
    class_ticks,
    colormap,
    escape,
    new_figure,
    save,
    short,
    style_axes,
)


def training_curves(rows: Sequence[Mapping], path: str | os.PathLike) -> None:
    """Draws loss, accuracy, learning rate and temperature over the steps of a run.

    Args:
      rows: rows of `metrics.jsonl`: `step`, `split` ('train' or 'validation') and any of `loss`,
        `accuracy`, `learning_rate`, `temperature`; None leaves a gap.
      path: the PNG to write.
    """
    train = [row for row in rows if row.get("split") == "train"]
    validation = [row for row in rows if row.get("split") == "validation"]
    schedules = any(row.get(name) for row in train for name in ("learning_rate", "temperature"))
    # Of a run that has no accuracy, such as an autoencoder's, there is the loss alone.
    measured = {name for row in rows for name in row}
    names = ("loss",) if measured and "accuracy" not in measured else ("loss", "accuracy")
    heights = [1] * len(names) + [0.55] * schedules
    figure = new_figure(7.5, (7.6 if schedules else 6) - 2.6 * (2 - len(names)), "Training")
    grid = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)
    panels = grid[:, 0]

    best = _best(validation)
    for axes, name in zip(panels, names, strict=False):
        style_axes(axes, ylabel=name)
        # Rows of training are single batches: thin, because they are noisy.
        _curve(axes, train, name, color=TRAIN, linewidth=0.9, label="train")
        marker = "o" if len(validation) <= 40 else None
        _curve(
            axes, validation, name,
            color=VALIDATION, linewidth=1.8, marker=marker, markersize=3.5, label="validation",
        )  # fmt: skip
        if best is not None:
            axes.axvline(best["step"], color=BEST, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            if best.get(name) is not None:
                label = f"best: {best[name]:.4f} at step {best['step']:,}"
                axes.plot(best["step"], best[name], "o", color=BEST, markersize=7, label=label)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best", fontsize=8.5, framealpha=1, edgecolor="none")
    frame_losses(panels[0])
    if "accuracy" in names:
        panels[1].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        panels[1].set_ylim(top=min(1.02, panels[1].get_ylim()[1]))
    if schedules:
        _schedules(panels[-1], train)
    panels[-1].set_xlabel("step", fontsize=9.5)
    panels[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    panels[-1].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    save(figure, path)


def _best(validation: Sequence[Mapping]) -> Mapping | None:
    """The validation row whose parameters are kept: see `checkpoint.rank`; of equals the last."""
    for names in (("accuracy", "loss"), ("accuracy",), ("loss",)):
        measured = [row for row in validation if all(row.get(n) is not None for n in names)]
        if measured:
            sign = {"accuracy": 1, "loss": -1}
            return max(reversed(measured), key=lambda row: [sign[n] * row[n] for n in names])
    return None


def _curve(axes: Axes, rows: Sequence[Mapping], name: str, **style) -> None:
    """One metric over the steps; nothing where no row has it."""
    rows = [row for row in rows if name in row]
    if rows:
        values = [math.nan if row[name] is None else row[name] for row in rows]
        axes.plot([row["step"] for row in rows], values, **style)


def frame_losses(axes: Axes) -> None:
    """From zero up; a few huge early losses are cut off, that would press the rest flat."""
    # Not the line of the best step, whose 0 to 1 is the height of the axes.
    curves = [line for line in axes.lines if line.get_transform() == axes.transData]
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in curves] or [[]])
    values = values[np.isfinite(values)]
    if values.size:
        usual = np.quantile(values, 0.97)
        top = 1.5 * usual if values.max() > 2.5 * usual > 0 else 1.05 * values.max()
        axes.set_ylim(min(0, values.min()), top if top > 0 else None)


def _schedules(axes: Axes, train: Sequence[Mapping]) -> None:
    """The learning rate (left, logarithmic) and the temperature (right) in one small panel."""
    style_axes(axes, ylabel="learning rate")
    rates = [row for row in train if (row.get("learning_rate") or 0) > 0]
    if rates:
        _curve(axes, rates, "learning_rate", color=INK, linewidth=1.4)
        axes.set_yscale("log")
        low, high = axes.dataLim.intervaly
        # Whole decades around the values, so that there is always a labelled tick.
        axes.set_ylim(
            10 ** math.floor(math.log10(low) - 0.1), 10 ** math.ceil(math.log10(high) + 0.1)
        )
        axes.minorticks_off()
    temperatures = [row for row in train if row.get("temperature") is not None]
    if temperatures:
        right = axes.twinx()
        style_axes(right, ylabel="temperature", grid=False)
        right.spines["right"].set_visible(True)
        _curve(right, temperatures, "temperature", color=WRONG, linewidth=1.4)
        right.set_ylim(0, 1.1 * max(row["temperature"] for row in temperatures))
        right.yaxis.set_major_locator(MaxNLocator(4))
        right.yaxis.label.set_color(WRONG)
        right.tick_params(axis="y", colors=WRONG)


def confusion(matrix: np.ndarray, classes: Sequence[str], path: str | os.PathLike) -> None:
    """Draws a confusion matrix: which class is taken for which.

    Args:
      matrix: [C, C] counts, rows are the truth, columns the predictions.
      classes: C names.
      path: the PNG to write. Up to 20 classes have their counts in the cells; of more classes,
        the pairs that are confused most often are listed beside.
    """
    matrix = np.asarray(matrix)
    number = len(classes)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, matrix / np.maximum(totals, 1), np.nan)
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    title = f"Confusion matrix: accuracy {accuracy:.1%} of {int(matrix.sum()):,} examples"
    numbered = number <= NUMBERED
    side = 0.0 if numbered else 3.9
    size = max(4.6, 0.42 * number + 1.6) if numbered else 7.6
    caption = "Colour: share of a row, that is of the examples of one true class."
    if (totals == 0).any():
        caption += " Grey rows: classes without an example."
    figure = new_figure(size + 0.9 + side, size + 0.3, title, caption)
    if numbered:
        axes = figure.subplots()
    else:
        axes, beside = figure.subplots(1, 2, width_ratios=[size, side])
        _worst_pairs(beside, matrix, classes)
    # Among many classes the mistakes are faint: the root lifts them.
    norm = PowerNorm(1.0 if numbered else 0.5, vmin=0, vmax=1)
    picture = axes.imshow(shares, cmap=colormap("Blues"), norm=norm, interpolation="nearest")
    style_axes(axes, xlabel="prediction", ylabel="truth", grid=False, frame=True)
    class_ticks(axes.yaxis, classes, size - 1.6)
    class_ticks(axes.xaxis, classes, size - 1.6)
    longest = max(len(short(name)) for name in classes)
    lying = numbered and longest * 0.08 < (size - 1.6) / number
    axes.tick_params(axis="x", rotation=0 if lying else 90)
    bar = figure.colorbar(picture, ax=axes, fraction=0.04, pad=0.02, aspect=30)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1] if numbered else [0, 0.05, 0.25, 0.5, 1])
    bar.ax.tick_params(labelsize=8, colors=FAINT, length=2)
    bar.outline.set_visible(False)
    if numbered:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                color = "white" if shares[row, column] > 0.5 else INK
                text = f"{int(count)}"
                axes.text(
                    column, row, text,
                    ha="center", va="center", color=color, fontsize=9 if len(text) < 4 else 7,
                )  # fmt: skip
    save(figure, path)


def _worst_pairs(axes: Axes, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Lists the most frequent mistakes and the classes that are recognised least."""
    axes.axis("off")
    mistakes = matrix.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:14]
    lines = [("Most confused pairs (truth → prediction)", True)]
    for truth, guess in zip(*np.unravel_index(order, mistakes.shape), strict=True):
        if mistakes[truth, guess]:
            pair = f"{short(classes[truth], 20)} → {short(classes[guess], 20)}"
            count = f"{int(mistakes[truth, guess])} of {int(matrix[truth].sum())}"
            lines.append((f"{count:>9}   {pair}", False))
    if len(lines) == 1:
        lines.append(("none", False))
    totals = matrix.sum(axis=1)
    seen = np.flatnonzero(totals)
    recalls = np.diag(matrix)[seen] / totals[seen]
    hardest = seen[np.argsort(recalls, kind="stable")[:10]]
    lines += [("", False), ("Classes recognised least", True)]
    for index in hardest:
        share = f"{matrix[index, index] / totals[index]:.0%}"
        lines.append((f"{share:>9}   {short(classes[index], 34)}", False))
    step = 1 / max(len(lines), 28)
    for position, (text, heading) in enumerate(lines):
        axes.text(
            0.0, 1 - position * step, text,
            transform=axes.transAxes, va="top", color=INK, fontsize=9 if heading else 8,
            fontweight="bold" if heading else "normal",
        )  # fmt: skip


def choose_examples(
    labels: np.ndarray, predictions: np.ndarray, n: int, rng: np.random.Generator
) -> np.ndarray:
    """Which examples to show: wrong ones first, at most half of them while right ones are left.

    Args:
      labels: [N] the truth.
      predictions: [N] what was predicted.
      n: how many to choose.
      rng: draws them.

    Returns:
      [min(n, N)] different indices.
    """
    wrong = np.asarray(labels) != np.asarray(predictions)
    mistakes, hits = (rng.permutation(np.flatnonzero(part)) for part in (wrong, ~wrong))
    n = min(n, wrong.size)
    shown = min(len(mistakes), max(n // 2, n - len(hits)))
    return np.concatenate([mistakes[:shown], hits[: n - shown]]).astype(np.int64)


def prediction_grid(
    inputs: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    path: str | os.PathLike,
) -> None:
    """Draws examples with their true class, the predicted one and its probability.

    Args:
      inputs: [N, H, W, C] pictures or [N, L, C] series, of any range; the first 32 are drawn.
      labels: [N] the truth.
      predictions: [N] the predicted classes.
      probabilities: [N] the probability of the prediction, or [N, classes] of every class.
      classes: the names.
      path: the PNG to write.
    """
    inputs = np.nan_to_num(np.asarray(inputs)[:32].astype(np.float32))
    number = len(inputs)
    labels, predictions = np.asarray(labels)[:number], np.asarray(predictions)[:number]
    probabilities = np.asarray(probabilities)[:number].astype(np.float32)
    if probabilities.ndim == 2:
        probabilities = probabilities[np.arange(number), predictions]

    pictures = inputs.ndim == 4
    columns = min(8 if pictures else 4, max(number, 1))
    if pictures:
        height = 1.35
        width = height * min(max(inputs.shape[2] / inputs.shape[1], 0.8), 2.2)
        columns = min(columns, int(12 / width))
    else:
        height, width = 1.0, 2.7
    lines = math.ceil(max(number, 1) / columns)
    letters = int((width + 0.1) / 0.065)
    pairs = [
        (class_name(classes, t), class_name(classes, p))
        for t, p in zip(labels, predictions, strict=True)
    ]
    one_line = all(len(truth) + len(guess) + 3 <= letters for truth, guess in pairs)
    wrong = int(np.sum(labels != predictions))
    remark = f"Orange: {wrong} wrong ones, shown first; their share here is not the error rate."
    if not wrong:
        remark = "All of these are right."
    figure = new_figure(
        max(columns * (width + 0.2) + 0.2, 4.5),
        lines * (height + (0.42 if one_line else 0.56)) + 0.9,
        "Test examples",
        f"True class → prediction, p: its probability. {remark}",
    )
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[number:]:
        axes.axis("off")
    for index, axes in enumerate(panels[:number]):
        truth, guess = pairs[index]
        right = labels[index] == predictions[index]
        if pictures:
            draw_picture(axes, inputs[index])
        else:
            draw_series(axes, inputs[index])
        for spine in axes.spines.values():
            spine.set_color(LINE if right else WRONG)
            spine.set_linewidth(0.8 if right else 2.2)
        p = f"p={probabilities[index]:.2f}"
        if one_line:
            text = f"{escape(truth)} → {escape(guess)}\n{p}"
        else:
            text = f"{short(truth, letters)}\n→ {short(guess, letters - 3)}\n{p}"
        axes.set_title(text, fontsize=7.5, pad=4.5, color=INK if right else WRONG)
    save(figure, path)


def draw_picture(axes: Axes, image: np.ndarray) -> None:
    """[H, W, C] of any range, scaled to black and white; other than 3 channels as grey."""
    low, high = image.min(), image.max()
    image = (image - low) / (high - low) if high > low else np.full_like(image, 0.5)
    if image.shape[-1] != 3:
        image = image.mean(axis=-1)
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])


def draw_series(axes: Axes, series: np.ndarray) -> None:
    """[L, C] as one line per channel."""
    colors = [VALIDATION] if series.shape[-1] == 1 else None
    for channel in range(series.shape[-1]):
        axes.plot(series[:, channel], linewidth=1.0, color=colors and colors[0])
    axes.set(xticks=[], yticks=[])
    axes.margins(x=0.01, y=0.08)


def attention_by_class(
    attention: Mapping[str, np.ndarray], classes: Sequence[str], path: str | os.PathLike
) -> None:
    """Draws how the candidate kernels were mixed: a heat map of mean attention per layer.

    Args:
      attention: layer name to [num_classes, K] mean attention; a row of NaN is a class without
        examples. At least one layer.
      classes: the names.
      path: the PNG to write.
    """
    tables = {name: np.asarray(table).astype(np.float32) for name, table in attention.items()}
    lines = math.ceil(len(tables) / 8)
    columns = math.ceil(len(tables) / lines)
    height = min(max(0.17 * len(classes), 1.5), 3.4 if lines <= 2 else 2.2)
    width = 1.45
    top = max(np.nanmax(table, initial=0.0) for table in tables.values()) or 1.0
    figure = new_figure(
        max(columns * width + 2.2, 6.5),
        lines * (height + 0.75) + 1.1,
        "How the kernels were mixed: mean attention per class",
        _attention_caption(tables),
    )
    panels = figure.subplots(lines, columns, squeeze=False)
    for axes in panels.ravel()[len(tables) :]:
        axes.axis("off")
    for index, (axes, (name, table)) in enumerate(
        zip(panels.ravel(), tables.items(), strict=False)
    ):
        picture = axes.imshow(
            table, aspect="auto", cmap=colormap("viridis"), vmin=0, vmax=top,
            interpolation="nearest",
        )  # fmt: skip
        style_axes(axes, grid=False, frame=True)
        tail = name if len(name) <= 22 else f"…{name[-21:]}"
        axes.set_title(f"{escape(tail)}\nspread {_spread(table):.3f}", fontsize=7.5, color=INK)
        kernels = table.shape[1]
        ticks = np.unique(np.linspace(0, kernels - 1, min(kernels, 6)).round().astype(int))
        axes.set_xticks(ticks, [str(tick + 1) for tick in ticks])
        axes.tick_params(axis="x", labelsize=7)
        if index % columns == 0:
            class_ticks(axes.yaxis, classes, height)
        else:
            axes.set_yticks([])
        if index + columns >= len(tables):
            axes.set_xlabel("kernel", fontsize=8, color=FAINT)
    bar = figure.colorbar(picture, ax=panels, fraction=0.02, pad=0.01, aspect=8 * lines * height)
    bar.set_label("attention", fontsize=8.5, color=INK)
    bar.ax.tick_params(labelsize=8, colors=FAINT, length=2)
    bar.outline.set_visible(False)
    save(figure, path)


def _spread(table: np.ndarray) -> float:
    """How much a layer tells classes apart: mean over kernels of the deviation over classes."""
    table = table[~np.isnan(table).any(axis=1)]
    return float(table.std(axis=0).mean()) if len(table) else math.nan


def _attention_caption(tables: Mapping[str, np.ndarray]) -> str:
    """How to read the heat maps, for mixtures that sum to one and for free ones."""
    kernels = {table.shape[1] for table in tables.values()}
    mixtures = all(np.allclose(np.nansum(t, axis=1)[~np.isnan(t).any(axis=1)], 1, atol=0.02)
                   for t in tables.values())  # fmt: skip
    even = f" (1/K = {1 / min(kernels):.3g})" if mixtures and len(kernels) == 1 else ""
    return (
        "Rows: classes. Columns: candidate kernels. Rows that differ: the layer picks its kernel "
        f"by class. One colour everywhere{even}: it is not selective. Spread: deviation over the "
        "classes, mean over the kernels; 0 is the same mixture for every class."
    )
