"""Effects of settings: what each value of a sweep changes, all other settings being equal."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from experiments.configs.shared.settings import NOT_TRAINING, list_paths
from experiments.reports.comparison import compute_signed_rank_p, correct_for_many
from experiments.runs.find import Run, finite_or_none

# Measured of each pair: the split, and the quantity (the metric that ranks, or the loss).
MEASURES = (("validation", "metric"), ("validation", "loss"), ("test", "metric"))


@dataclasses.dataclass(frozen=True)
class Effect:
    """The mean difference that a value of a setting makes to another value.

    Attributes:
        setting: its dotted path.
        value: the value, `none` if it is empty.
        reference: the value that it is compared with.
        split: `validation`, at the best evaluation, or `test`.
        quantity: the metric that ranks, or the loss.
        mean: the mean over the seeds or folds. The difference of each is that of its pairs, the runs that
            differ in nothing else, on average: runs of one seed share data, and so are not independent.
        error: the standard error of the mean; None for one seed or fold.
        pairs: the number of pairs.
        n: the number of seeds or folds.
        p: of the two-sided signed-rank test of the differences of the seeds or folds.
        q: p corrected for all tests of this split and quantity, as `correct_for_many` does.
    """

    setting: str
    value: str
    reference: str
    split: str
    quantity: str
    mean: float
    error: float | None
    pairs: int
    n: int
    p: float
    q: float


def measure_effects(runs: Sequence[Run]) -> list[Effect]:
    """Measures the effects of the settings that differ between runs.

    A setting has an effect if some runs differ in it alone. With fewer than two such settings the list is
    empty, because the table of results shows the effect of one.

    Args:
        runs: of one data set, ranked by one metric.
    """
    settings = [_list_settings(run) for run in runs]
    effects = []
    for path in sorted({path for one in settings for path in one}):
        values = sorted({one[path] for one in settings if path in one}, key=_rank_value)
        for value in values[1:]:
            pairs = list(_find_pairs(runs, settings, path, (values[0], value)))
            effects += _summarize(path, value, values[0], pairs)
    if len({effect.setting for effect in effects}) < 2:
        return []
    corrected: list[Effect] = []
    for measure in MEASURES:
        chosen = [one for one in effects if (one.split, one.quantity) == measure]
        corrected += correct_for_many(dict(enumerate(chosen))).values()
    return corrected


def name_quantity(quantity: str, metric: str) -> str:
    """Returns the name of a quantity of `MEASURES` among a run's metrics, where `metric` ranks."""
    return metric if quantity == "metric" else quantity


def group_effects(
    effects: Sequence[Effect],
) -> dict[tuple[str, str, str], dict[tuple[str, str], Effect]]:
    """Returns the effects by change (setting, value, reference), and those of each by split and quantity."""
    groups: dict[tuple[str, str, str], dict[tuple[str, str], Effect]] = {}
    for one in effects:
        change = (one.setting, one.value, one.reference)
        groups.setdefault(change, {})[one.split, one.quantity] = one
    return groups


def _list_settings(run: Run) -> dict[str, str]:
    """Returns what a run was trained with, as texts: seed and fold among them."""
    settings = {path: str(v) for path, v in list_paths(run.settings) if path not in NOT_TRAINING}
    first = settings.get("start.config", "")
    if first or not settings.get("init_from"):
        settings.pop("init_from", None)  # the run of that config with the same seed, or none
    if first:  # its name has the values of a sweep, which are those of this run
        settings["start.config"] = first.partition(",")[0]
    return settings


def _rank_value(value: str) -> tuple[float, str]:
    """Sorts numbers by size, and before words."""
    try:
        return float(value), value
    except ValueError:
        return math.inf, value


def _find_pairs(
    runs: Sequence[Run],
    settings: Sequence[Mapping[str, str]],
    path: str,
    values: tuple[str, str],
) -> Iterator[tuple[Run, Run]]:
    """Yields the pairs of runs that differ in one setting alone: with the reference, and with the value."""
    by_rest: dict[str, dict[frozenset, Run]] = {value: {} for value in values}
    for run, one in zip(runs, settings, strict=True):
        if one.get(path) in by_rest:
            rest = frozenset(item for item in one.items() if item[0] != path)
            by_rest[one[path]][rest] = run
    old, new = (by_rest[value] for value in values)
    yield from ((old[rest], new[rest]) for rest in old if rest in new)


def _summarize(
    setting: str, value: str, reference: str, pairs: Sequence[tuple[Run, Run]]
) -> Iterator[Effect]:
    if setting in ("seed", "data.fold"):
        return
    for split, quantity in MEASURES:
        known: dict[tuple[int, int], list[float]] = {}
        for old, new in pairs:
            before, now = (_read(run, split, quantity) for run in (old, new))
            if before is not None and now is not None:
                known.setdefault(new.fold_and_seed, []).append(now - before)
        if known:
            means = [float(np.mean(differences)) for differences in known.values()]
            n, number_of_pairs = len(means), sum(map(len, known.values()))
            error = float(stats.sem(means)) if n > 1 else None
            p = compute_signed_rank_p(means)
            change = (setting, value or "none", reference or "none")
            mean = float(np.mean(means))
            yield Effect(*change, split, quantity, mean, error, number_of_pairs, n, p, q=p)


def _read(run: Run, split: str, quantity: str) -> float | None:
    name = name_quantity(quantity, run.metric)
    if split == "test":
        return run.test_metric(name)
    best: Any = run.summary.get("best")
    return finite_or_none(best.get(name)) if isinstance(best, dict) else None
