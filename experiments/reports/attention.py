"""Reads the attention of several runs of a config: how each layer mixes kernels, and whether runs agree."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

Mixtures = Mapping[str, Mapping[str, np.ndarray]]  # as in `artifacts.Maps`
MIN_CLASSES = 4  # three classes have three distances, and ranks of three say nothing


@dataclasses.dataclass(frozen=True)
class LayerAttention:
    """The use that a layer makes of its kernels; means over runs.

    Attributes:
        layer: the path of the layer.
        kernels: their number.
        entropy: of the mixtures, from 0 (one kernel) to 1 (equal weights).
        spread: standard deviation of the weights over the examples, divided by the mean weight.
        class_spread: the same over the means of the classes; None if they are not known.
        dead: share of the kernels that no example uses.
        agreement: see `compute_agreement`; None for a single run.
    """

    layer: str
    kernels: int
    entropy: float
    spread: float
    class_spread: float | None
    dead: float
    agreement: float | None


def measure_attention(runs: Sequence[Mixtures]) -> list[LayerAttention]:
    """Returns how layers mix their kernels, in order: those that all runs have, with two kernels or more.

    Args:
        runs: the mixtures of each run: layer to statistics.
    """
    if not runs:
        return []
    names = [name for name in runs[0] if all(name in run for run in runs)]
    measured = []
    for name in names:
        layers = [run[name] for run in runs]
        kernels = {len(layer["mean"]) for layer in layers}
        if len(kernels) > 1 or kernels < {2}:
            continue
        scales = [max(float(np.abs(layer["mean"]).mean()), 1e-12) for layer in layers]
        tables = [np.asarray(layer["by_class"]) for layer in layers if "by_class" in layer]
        class_spread = None
        if len(tables) == len(layers):
            deviations = [float(np.nanstd(table, axis=0).mean()) for table in tables]
            class_spread = float(np.mean(np.divide(deviations, scales)))
        measured.append(
            LayerAttention(
                layer=name,
                kernels=kernels.pop(),
                entropy=float(np.mean([layer["entropy"] for layer in layers])),
                spread=float(np.mean(np.divide([layer["spread"] for layer in layers], scales))),
                class_spread=class_spread,
                dead=float(np.mean([layer["dead"] for layer in layers])),
                agreement=compute_agreement(tables) if len(tables) == len(layers) else None,
            )
        )
    return measured


def compute_agreement(tables: Sequence[np.ndarray]) -> float | None:
    """Returns how far runs agree on which classes are mixed alike.

        D_r[c, d] = |m_r(c) - m_r(d)|,    agreement = mean over pairs of runs of spearman(D_r, D_s)

    The order of the kernels is arbitrary in each run, so that weights cannot be compared; distances between
    the mixtures of classes can.

    Args:
        tables: m, the mean mixture of each class, `[C, K]`, for each run; NaN for classes without examples.

    Returns:
        1 if all runs order the pairs of classes in the same way, about 0 if they have nothing in common: of
        two random tables of four kernels it is 0 with a standard deviation of 0.46 for 4 classes, 0.17 for 10
        and 0.06 for 37 (300 draws each). None for fewer than two runs or `MIN_CLASSES` classes, for runs with
        different numbers of classes, or where a run mixes all classes in the same way.

    Source:
        Representational similarity analysis: Kriegeskorte, Mur and Bandettini 2008.
    """
    if len(tables) < 2 or len({len(table) for table in tables}) > 1:
        return None
    known = ~np.any([np.isnan(table).any(axis=1) for table in tables], axis=0)
    if known.sum() < MIN_CLASSES:
        return None
    pairs = np.triu_indices(int(known.sum()), k=1)
    distances = []
    for table in tables:
        classes = np.asarray(table, np.float64)[known]
        distances.append(np.linalg.norm(classes[pairs[0]] - classes[pairs[1]], axis=1))
    if any(np.ptp(one) <= 1e-7 for one in distances):
        return None
    agreements = [stats.spearmanr(*pair).statistic for pair in itertools.combinations(distances, 2)]
    return float(np.mean(agreements))
