"""Compares the configs that were trained on one data set: means, deviations, paired differences, costs."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from scipy import stats

from experiments.reports.published import Published, find_published
from experiments.runs.find import Run, finite_or_none

Key = TypeVar("Key")
Tested = TypeVar("Tested", bound=Any)

STUDY_ORDER = ("base", "global_soft", "local_soft", "hard", "odconv")  # others follow by name
COSTS = (
    "parameters",
    "macs",
    "xla_flops_per_step",
    "step_seconds",
    "examples_per_second",
    "compile_seconds",
    "seconds",
)
PERCENT = (
    *("accuracy", "top5", "f1", "map", "miou", "ap50", "mask_ap", "box_ap"),
    *("pixel_accuracy", "mean_accuracy"),
)
"""Test metrics between 0 and 1, in the order in which tables show them after the one that ranks."""


@dataclasses.dataclass(frozen=True)
class MeanDeviation:
    """Mean and standard deviation (n - 1 in the denominator) of n runs; no deviation for a single run."""

    mean: float
    sd: float | None
    n: int


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """The difference of a config to its baseline.

    Attributes:
        baseline: the config of the baseline.
        mean: over the seeds or folds that both have.
        p: of the two-sided signed-rank test.
        n: number of seeds or folds.
        q: p corrected for the number of configs, see `correct_for_many`.
    """

    baseline: str
    mean: float
    p: float
    n: int
    q: float


@dataclasses.dataclass(frozen=True, eq=False)
class ConfigResults:
    """The results of a config on a data set.

    Attributes:
        label: the name in tables and figures, unique on this data set.
        runs: the finished runs, by fold and seed.
        difference: to the baseline; None for the baseline itself, and without a seed or fold in common.
        costs: each of `COSTS` to its median over the runs, the time of compiling to its maximum; None if no
            run has it.
        iou: class to its mean intersection over union; None for a class that is in none of the runs. Empty
            if the task does not measure it.
        published: the result that the study published.
    """

    config: str
    label: str
    runs: Sequence[Run]
    metrics: Mapping[str, MeanDeviation]
    difference: PairedDifference | None
    costs: Mapping[str, float | None]
    iou: Mapping[str, float | None]
    published: Published | None


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetComparison:
    """All configs on one data set, whose runs are ranked by the same test metric.

    Its runs are those of folds, or those of the data set's own splits, which have other test examples.
    `results` has the baselines first, then the study's other configs in its order, then the rest by name.
    """

    dataset: str
    metric: str
    results: Sequence[ConfigResults]

    @property
    def title(self) -> str:
        """The data set, and whether the runs are of its folds."""
        return self.dataset if self.replicates == "seeds" else f"{self.dataset} in folds"

    @property
    def runs(self) -> list[Run]:
        """The runs of all configs."""
        return [run for results in self.results for run in results.runs]

    @property
    def has_several_tests(self) -> bool:
        """True if several configs are tested against a baseline, so that p needs a correction."""
        return sum(results.difference is not None for results in self.results) > 1

    @property
    def replicates(self) -> str:
        """The kind of replicates that the runs of a config are: 'seeds', 'folds' or 'folds and seeds'."""
        if all(run.fold is None for run in self.runs):
            return "seeds"
        return "folds and seeds" if len({run.seed for run in self.runs}) > 1 else "folds"


def compare_runs(runs: Iterable[Run]) -> list[DatasetComparison]:
    """Returns a comparison for each data set, by name; one for each metric that ranks, and one for folds.

    No two runs may have the same data set, config, fold and seed.
    """
    groups: dict[tuple[str, str, bool], dict[str, list[Run]]] = {}
    for run in runs:
        by_config = groups.setdefault((run.dataset, run.metric, run.fold is not None), {})
        by_config.setdefault(run.config, []).append(run)
    return [
        DatasetComparison(dataset, metric, _summarize_configs(by_config, metric))
        for (dataset, metric, _), by_config in sorted(groups.items())
    ]


def _summarize_configs(by_config: Mapping[str, list[Run]], metric: str) -> list[ConfigResults]:
    baselines = {run.baseline for runs in by_config.values() for run in runs}

    def rank(config: str) -> tuple[Any, ...]:
        study = STUDY_ORDER.index(config) if config in STUDY_ORDER else len(STUDY_ORDER)
        return (config not in baselines, study, config)

    labels = [runs[0].label for runs in by_config.values()]
    results = []
    differences = correct_for_many(
        {
            config: compare_pairs(runs, by_config.get(runs[0].baseline, []), metric)
            for config, runs in by_config.items()
            if runs[0].baseline != config
        }
    )
    for config in sorted(by_config, key=rank):
        runs = sorted(by_config[config], key=lambda run: run.fold_and_seed)
        label = runs[0].label
        results.append(
            ConfigResults(
                config=config,
                label=label if labels.count(label) == 1 else f"{label} ({config})",
                runs=runs,
                metrics=_summarize_metrics(runs),
                difference=differences.get(config),
                costs={name: _summarize_cost(name, runs) for name in COSTS},
                iou=_mean_iou(runs),
                published=find_published(runs[0].dataset, config, runs[0].settings),
            )
        )
    return results


def _summarize_metrics(runs: Sequence[Run]) -> dict[str, MeanDeviation]:
    """Returns the mean and deviation of every test metric that all of the runs have."""
    metrics = {}
    for name in runs[0].summary["test"]:
        values = [value for run in runs if (value := run.test_metric(name)) is not None]
        if len(values) == len(runs):
            metrics[name] = summarize(values)
    return metrics


def summarize(values: Sequence[float]) -> MeanDeviation:
    """Returns mean, standard deviation and number of some values."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return MeanDeviation(statistics.fmean(values), sd, len(values))


def compare_pairs(
    runs: Sequence[Run], baseline: Sequence[Run], metric: str
) -> PairedDifference | None:
    """Compares a metric of two configs over the folds and seeds that both have; None if there are none."""
    theirs = {run.fold_and_seed: run.test_metric(metric) for run in baseline}
    differences = [
        run.test_metric(metric) - theirs[run.fold_and_seed]
        for run in runs
        if theirs.get(run.fold_and_seed) is not None
    ]
    if not differences:
        return None
    mean, p = statistics.fmean(differences), compute_signed_rank_p(differences)
    return PairedDifference(baseline[0].config, mean, p, len(differences), q=p)


def correct_for_many(tested: Mapping[Key, Tested | None]) -> dict[Key, Tested]:
    """Returns the known differences with q, their p corrected for the number of tests.

    Of all differences with q up to 0.05, at most one in twenty is expected to be no real difference.

    Args:
        tested: dataclasses with the fields `p` and `q`.

    Source:
        Benjamini and Hochberg 1995; it holds for tests that share a baseline (Benjamini and Yekutieli 2001).
    """
    known = {key: one for key, one in tested.items() if one is not None}
    corrected = stats.false_discovery_control([one.p for one in known.values()]) if known else []
    return {
        key: dataclasses.replace(one, q=float(q))
        for (key, one), q in zip(known.items(), corrected, strict=True)
    }


def compute_signed_rank_p(differences: Sequence[float]) -> float:
    """Returns the two-sided p of Wilcoxon's signed-rank test for a median difference of zero.

    Differences of zero are left out, as in Wilcoxon's paper. p is exact for up to 50 pairs, and for up to 13
    if differences are tied; beyond that it is the normal approximation.
    """
    # Rounding makes differences tied that are equal but for the error of the subtractions.
    rounded = np.round(np.asarray(differences, np.float64), 10)
    if not rounded.any():
        return 1.0
    return float(stats.wilcoxon(rounded[rounded != 0]).pvalue)


def _summarize_cost(name: str, runs: Sequence[Run]) -> float | None:
    known = [value for run in runs if (value := run.summary_number(name)) is not None]
    if not known:
        return None
    if name == "compile_seconds":  # zero for runs that use the program of an earlier one
        return max(known)
    median = statistics.median(known)
    # Counts stay whole numbers, though the median of an even number of them is a float.
    return int(median) if median == int(median) and isinstance(known[0], int) else median


def _mean_iou(runs: Sequence[Run]) -> dict[str, float | None]:
    values: dict[str, list[float]] = {}
    for run in runs:
        for name, iou in (run.summary["test"].get("iou") or {}).items():
            values.setdefault(name, []).extend([] if finite_or_none(iou) is None else [iou])
    return {name: statistics.fmean(known) if known else None for name, known in values.items()}
