"""Figures of codes: a map, clusters by the hour of the day, and a comparison with other features."""

import os
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.lines import Line2D

from experiments.audio.clusters import standardise
from experiments.figures import style

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
    from sklearn.manifold import TSNE  # takes a second to import

    drawn = np.arange(len(codes))
    if len(codes) > MAX_POINTS:
        drawn = np.sort(np.random.default_rng(seed).choice(len(codes), MAX_POINTS, replace=False))
    perplexity = min(30.0, (len(drawn) - 1) / 3)
    # Not 'pca': codes that are all alike have no components.
    tsne = TSNE(perplexity=perplexity, init="random", random_state=seed, method="barnes_hut")
    points = tsne.fit_transform(standardise(codes)[drawn])
    names = sorted({labels[index] for index in drawn})
    marker_of = {name: MARKERS[number % len(MARKERS)] for number, name in enumerate(names)}
    caption = f"t-SNE of {len(drawn):,} codes, perplexity {perplexity:.0f}; far apart says little."
    figure = style.new_figure(7.5, 6.4, "Codes, by cluster (colour) and label (marker)", caption)
    axes = figure.subplots()
    colours = _make_colours(int(clusters.max()) + 1)
    shown_clusters, shown_labels = clusters[drawn], np.array([labels[index] for index in drawn])
    for name in names:
        selected = shown_labels == name
        shades = [colours[cluster] for cluster in shown_clusters[selected]]
        look = {"marker": marker_of[name], "s": 16, "linewidths": 0, "alpha": 0.85}
        axes.scatter(*points[selected].T, c=shades, **look)
    style.style_axes(axes, grid=False, frame=True)
    axes.set(xticks=[], yticks=[])
    if names != [""]:
        options = {"linestyle": "", "color": style.FAINT}
        handles = [
            Line2D(
                [], [], marker=marker_of[name], label=style.shorten(name or "no label"), **options
            )
            for name in names[:24]
        ]
        figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    style.save_figure(figure, path)


def draw_hours(hours: np.ndarray, clusters: np.ndarray, path: str | os.PathLike) -> None:
    """Draws the share of each hour's windows, at hours `[N]` from 0 to 24, that each cluster `[N]` has."""
    number = int(clusters.max()) + 1
    counts = np.zeros((number, 24))
    np.add.at(counts, (clusters, hours.astype(int) % 24), 1)
    total = counts.sum(axis=0)
    shares = np.where(total > 0, counts / np.maximum(total, 1), np.nan)
    figure = style.new_figure(
        7.5,
        min(0.28 * number, 12) + 2.0,  # matplotlib cannot write a picture of thousands of clusters
        "Clusters by the hour of the day",
        "The share of each hour's windows. Hours without recordings are grey.",
    )
    axes = figure.subplots()
    image = axes.imshow(
        shares, aspect="auto", cmap=style.get_colormap("viridis"), vmin=0, vmax=np.nanmax(shares)
    )
    style.style_axes(axes, xlabel="hour", ylabel="cluster", grid=False)
    axes.set_xticks(range(0, 24, 3))
    axes.set_yticks(range(0, number, max(1, number // 20)))
    style.add_colorbar(image, axes, shrink=0.9)
    style.save_figure(figure, path)


def draw_comparison(
    scores: Mapping[str, Mapping[str, tuple[float, float]]],
    seconds: Mapping[str, float],
    path: str | os.PathLike,
) -> None:
    """Draws how well clusters of several kinds of features agree with the labels, and their seconds.

    The scores are, by kind and measure, a mean and a standard deviation.
    """
    kinds = list(scores)
    measures = list(next(iter(scores.values())))
    figure = style.new_figure(
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
        bar = right.barh(kind, seconds[kind], color=colours[number])
        right.bar_label(bar, fmt=" {:.3g}", fontsize=8, color=style.INK)
    left.set_xticks(range(len(measures)), ["F" if name == "f" else name for name in measures])
    left.set_ylim(0, 1)
    left.legend(fontsize=8, frameon=False, ncols=2)
    style.style_axes(left)
    right.invert_yaxis()
    right.margins(x=0.25)
    style.style_axes(right, xlabel="seconds")
    style.save_figure(figure, path)


def _make_colours(number: int) -> list:
    """Returns at least that many colours: those of matplotlib, or a rainbow of more than ten."""
    if number <= 10:
        return list(matplotlib.colormaps["tab10"].colors)
    return list(matplotlib.colormaps["gist_rainbow"](np.linspace(0, 1, number)))
