"""Figures of codes: a map, clusters by the hour of the day, and a comparison with other features."""

import os
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.lines import Line2D

from experiments.figures.style import (
    FAINT,
    INK,
    get_colormap,
    new_figure,
    save_figure,
    shorten,
    style_axes,
)

MAX_POINTS = 2_000  # of a map
MARKERS = "os^Dv<>ph*XP"


def draw_tsne(
    codes: np.ndarray,
    clusters: np.ndarray,
    labels: Sequence[str],
    path: str | os.PathLike,
    seed: int = 0,
) -> None:
    """Draws a map of codes, in which near codes are near each other; nothing for fewer than five.

    Args:
        codes: floats `[N, D]`; of more than 2,000 codes, 2,000 are drawn.
        clusters: `[N]`, the colours.
        labels: `[N]`, the markers; '' for none.
        path: the PNG to write.
        seed: decides which codes are drawn, and the map.
    """
    if len(codes) < 5:
        return
    drawn = np.arange(len(codes))
    if len(codes) > MAX_POINTS:
        drawn = np.sort(np.random.default_rng(seed).choice(len(codes), MAX_POINTS, replace=False))
    perplexity = min(30.0, (len(drawn) - 1) / 3)
    points = _compute_tsne(codes, drawn, perplexity, seed)
    names = sorted({labels[index] for index in drawn})
    marker_of = {name: MARKERS[number % len(MARKERS)] for number, name in enumerate(names)}
    caption = f"t-SNE of {len(drawn):,} codes, perplexity {perplexity:.0f}; far apart says little."
    figure = new_figure(7.5, 6.4, "Codes, by cluster (colour) and label (marker)", caption)
    axes = figure.subplots()
    colours = _make_colours(int(clusters.max()) + 1)
    shown_clusters, shown_labels = clusters[drawn], np.array([labels[index] for index in drawn])
    for name in names:
        selected = shown_labels == name
        axes.scatter(
            *points[selected].T,
            c=[colours[cluster] for cluster in shown_clusters[selected]],
            marker=marker_of[name],
            s=16,
            linewidths=0,
            alpha=0.85,
        )
    style_axes(axes, grid=False, frame=True)
    axes.set_xticks([])
    axes.set_yticks([])
    if names != [""]:
        style = {"linestyle": "", "color": FAINT}
        handles = [
            Line2D([], [], marker=marker_of[name], label=shorten(name or "no label"), **style)
            for name in names[:24]
        ]
        figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    save_figure(figure, path)


def _compute_tsne(codes: np.ndarray, drawn: np.ndarray, perplexity: float, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE

    from experiments.audio.clusters import standardise

    # Not 'pca': codes that are all alike have no components.
    tsne = TSNE(perplexity=perplexity, init="random", random_state=seed, method="barnes_hut")
    return tsne.fit_transform(standardise(codes)[drawn])


def draw_hours(hours: np.ndarray, clusters: np.ndarray, path: str | os.PathLike) -> None:
    """Draws the share of each hour's windows that each cluster has.

    Args:
        hours: `[N]`, 0 to 24.
        clusters: `[N]`.
        path: the PNG to write.
    """
    number = int(clusters.max()) + 1
    counts = np.zeros((number, 24))
    np.add.at(counts, (clusters, hours.astype(int) % 24), 1)
    total = counts.sum(axis=0)
    shares = np.where(total > 0, counts / np.maximum(total, 1), np.nan)
    figure = new_figure(
        7.5,
        min(0.28 * number, 12)
        + 2.0,  # no more: of thousands of clusters, matplotlib cannot write the picture
        "Clusters by the hour of the day",
        "The share of each hour's windows. Hours without recordings are grey.",
    )
    axes = figure.subplots()
    image = axes.imshow(
        shares, aspect="auto", cmap=get_colormap("viridis"), vmin=0, vmax=np.nanmax(shares)
    )
    style_axes(axes, xlabel="hour", ylabel="cluster", grid=False)
    axes.set_xticks(range(0, 24, 3))
    axes.set_yticks(range(0, number, max(1, number // 20)))
    figure.colorbar(image, ax=axes, shrink=0.9).ax.tick_params(labelsize=8)
    save_figure(figure, path)


def draw_comparison(
    scores: Mapping[str, Mapping[str, tuple[float, float]]],
    seconds: Mapping[str, float],
    path: str | os.PathLike,
) -> None:
    """Draws how well clusters of several kinds of features agree with the labels, and what they cost.

    Args:
        scores: kind to measure to (mean, standard deviation).
        seconds: kind to the time that computing the features took.
        path: the PNG to write.
    """
    kinds = list(scores)
    measures = list(next(iter(scores.values())))
    figure = new_figure(
        8.5,
        4.0,
        "Which features find the labels",
        "Left: B-cubed and purity of hierarchical clusters, mean and standard deviation over random subsets.",
    )
    left, right = figure.subplots(1, 2, width_ratios=[2.4, 1])
    width, colours = 0.8 / len(kinds), _make_colours(len(kinds))
    for number, kind in enumerate(kinds):
        means, spreads = zip(*scores[kind].values(), strict=True)
        places = np.arange(len(measures)) + (number - (len(kinds) - 1) / 2) * width
        left.bar(places, means, width, yerr=spreads, color=colours[number], label=kind, capsize=2)
        right.barh(kind, seconds[kind], color=colours[number])
    left.set_xticks(range(len(measures)), [{"f": "F"}.get(name, name) for name in measures])
    left.set_ylim(0, 1)
    left.legend(fontsize=8, frameon=False, ncols=2)
    style_axes(left)
    right.invert_yaxis()
    for number, kind in enumerate(kinds):
        right.text(
            seconds[kind], number, f" {seconds[kind]:.3g}", va="center", fontsize=8, color=INK
        )
    right.margins(x=0.25)
    style_axes(right, xlabel="seconds")
    save_figure(figure, path)


def _make_colours(number: int) -> list:
    """Returns at least that many colours: those of matplotlib, or a rainbow of more than ten."""
    if number <= 10:
        return list(matplotlib.colormaps["tab10"].colors)
    return list(matplotlib.colormaps["gist_rainbow"](np.linspace(0, 1, number)))
