"""What the runs on one data set say about its configs: means, spreads, differences, costs."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from experiments.reports.published import Published, study
from experiments.runs.find import Run, number

# The study's order; other configs follow by name.
ORDER = ("base", "global_soft", "local_soft", "hard", "odconv")
COSTS = (
    "parameters",
    "macs",
    "xla_flops_per_step",
    "step_seconds",
    "examples_per_second",
    "compile_seconds",
    "seconds",
)
PERCENT = ("accuracy", "top5", "f1", "map", "miou", "pixel_accuracy", "mean_accuracy")
"""Test metrics that are shares, in the order in which tables show them behind the one that counts."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1 in the denominator) of n runs; None for a single run."""

    mean: float
    sd: float | None
    n: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much better a config is than its baseline in the seeds or folds that both have.

    Attributes:
        baseline: the config it is compared with.
        mean: of the differences of the metric.
        p: of the two-sided Wilcoxon signed-rank test of these differences.
        n: number of pairs.
    """

    baseline: str
    mean: float
    p: float
    n: int


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A config on a data set.

    Attributes:
        config: its name.
        label: what it is called, as no other config on this data set is.
        runs: its finished runs, by fold and seed.
        metrics: test metric to its spread over the runs.
        difference: to the baseline; None for the baseline itself, and where they have no run in common.
        costs: name of `COSTS` to the median over the runs; None where no run has it.
        iou: class to the mean over the runs of its intersection over union, None for a class that is in
            none of them; empty where classes were not measured.
        published: the study's own number.
    """

    config: str
    label: str
    runs: Sequence[Run]
    metrics: Mapping[str, Spread]
    difference: Difference | None
    costs: Mapping[str, float | None]
    iou: Mapping[str, float | None]
    published: Published | None


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """All configs on one data set.

    Attributes:
        dataset: its name.
        metric: the test metric that counts most.
        rows: baselines first, then the study's other configs in its order, then the rest by name.
    """

    dataset: str
    metric: str
    rows: Sequence[Row]

    @property
    def runs(self) -> list[Run]:
        """The runs of all configs."""
        return [run for row in self.rows for run in row.runs]

    @property
    def over(self) -> str:
        """What the runs of a config differ in: 'folds', 'seeds' or both."""
        folds = any(run.fold is not None for run in self.runs)
        seeds = len({run.seed for run in self.runs}) > 1 or not folds
        return " and ".join(word for word, used in (("folds", folds), ("seeds", seeds)) if used)


def compare(runs: Iterable[Run]) -> list[Comparison]:
    """Groups finished runs by data set and config.

    Args:
        runs: of any data sets; no two of one data set, config, fold and seed.

    Returns:
        A comparison for each data set (and metric, should runs on one data set differ in it), by name.
    """
    groups: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in runs:
        by_config = groups.setdefault((run.dataset, run.metric), {})
        by_config.setdefault(run.config, []).append(run)
    return [
        Comparison(dataset, metric, _rows(by_config, metric))
        for (dataset, metric), by_config in sorted(groups.items())
    ]


def _rows(by_config: Mapping[str, list[Run]], metric: str) -> list[Row]:
    baselines = {run.baseline for runs in by_config.values() for run in runs}

    def place(config: str) -> tuple[Any, ...]:
        known = ORDER.index(config) if config in ORDER else len(ORDER)
        return (config not in baselines, known, config)

    labels = [runs[0].label for runs in by_config.values()]
    rows = []
    for config in sorted(by_config, key=place):
        runs = sorted(by_config[config], key=lambda run: run.key)
        baseline = by_config.get(runs[0].baseline, [])
        label = runs[0].label
        rows.append(
            Row(
                config=config,
                label=label if labels.count(label) == 1 else f"{label} ({config})",
                runs=runs,
                metrics=_spreads(runs),
                difference=None
                if runs[0].baseline == config
                else difference(runs, baseline, metric),
                costs={name: _median(run.cost(name) for run in runs) for name in COSTS},
                iou=_mean_iou(runs),
                published=study(runs[0].dataset, config, runs[0].settings),
            )
        )
    return rows


def _spreads(runs: Sequence[Run]) -> dict[str, Spread]:
    """Every test metric that is a number in all the runs."""
    measured = {
        name: [run.test(name) for run in runs]
        for name in runs[0].summary["test"]
        if all(run.test(name) is not None for run in runs)
    }
    return {name: spread(values) for name, values in measured.items()}


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and number of some values."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), sd, len(values))


def difference(runs: Sequence[Run], baseline: Sequence[Run], metric: str) -> Difference | None:
    """Compares two configs over the folds and seeds that both have; None where they have none.

    Args:
        runs: of the one config.
        baseline: of the other.
        metric: the test metric to compare.
    """
    others = {run.key: run for run in baseline}
    pairs = [
        (run.test(metric), others[run.key].test(metric))
        for run in runs
        if run.key in others and others[run.key].test(metric) is not None
    ]
    if not pairs:
        return None
    differences = [mine - theirs for mine, theirs in pairs]
    mean = statistics.fmean(differences)
    return Difference(baseline[0].config, mean, signed_rank_p(differences), len(pairs))


def signed_rank_p(differences: Sequence[float]) -> float:
    """The two-sided p of Wilcoxon's signed-rank test: are differences as often above zero as below?

    Differences of zero are left out, as in Wilcoxon's paper. It is exact for up to 50 pairs, and for up to
    13 where differences are equal; else the normal approximation.

    Args:
        differences: of at least one pair.
    """
    # Two differences of a hundredth are equal, whatever the last digits of their subtractions.
    rounded = np.round(np.asarray(differences, np.float64), 10)
    if not rounded.any():
        return 1.0
    return float(stats.wilcoxon(rounded[rounded != 0]).pvalue)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    found = statistics.median(known)
    return int(found) if found == int(found) and isinstance(known[0], int) else found


def _mean_iou(runs: Sequence[Run]) -> dict[str, float | None]:
    tables = [run.summary["test"].get("iou") for run in runs]
    tables = [table for table in tables if isinstance(table, Mapping)]
    means = {}
    for name in {name: None for table in tables for name in table}:
        known = [value for table in tables if (value := number(table.get(name))) is not None]
        means[name] = statistics.fmean(known) if known else None
    return means
