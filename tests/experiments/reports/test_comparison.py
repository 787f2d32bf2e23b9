"""Means, deviations and paired tests, against numpy and against counting all signs."""

import itertools

import numpy as np
import pytest
from scipy.stats import rankdata

from experiments.reports.comparison import (
    PairedDifference,
    compare_pairs,
    compare_runs,
    compute_signed_rank_p,
    correct_for_many,
    summarize,
)
from experiments.runs.find import read_run


def read_all(*folders):
    return [read_run(folder) for folder in folders]


def test_mean_and_sample_deviation(rng):
    values = rng.normal(size=7).tolist()
    summary = summarize(values)
    assert summary.mean == pytest.approx(np.mean(values)) and summary.n == 7
    assert summary.sd == pytest.approx(np.std(values, ddof=1))
    assert summarize([0.5]).sd is None


def exact_p(differences):
    """Returns the share of all sign patterns whose rank sum is at least as far from its mean."""
    kept = np.array([d for d in differences if d])
    ranks = rankdata(np.round(np.abs(kept), 10))
    sums = [
        ranks[np.array(signs) > 0].sum() for signs in itertools.product((1, -1), repeat=len(kept))
    ]
    middle = ranks.sum() / 2
    seen = abs(ranks[kept > 0].sum() - middle)
    return np.mean(np.abs(np.array(sums) - middle) >= seen - 1e-9)


@pytest.mark.parametrize("number", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["distinct", "equal", "with zeros"])
def test_p_is_exact(rng, number, kind):
    for _ in range(5):
        differences = rng.normal(0.3, 1, number)
        if kind != "distinct":
            differences = np.round(differences * 2) / 2
        if kind == "equal":
            differences[differences == 0] = 0.5
        if any(differences):
            assert compute_signed_rank_p(differences) == pytest.approx(exact_p(differences))


def test_p_of_few_zero_and_tied_differences():
    assert compute_signed_rank_p([0.01 * n for n in range(1, 6)]) == pytest.approx(2 / 32)
    assert compute_signed_rank_p([0.01 * n for n in range(1, 7)]) == pytest.approx(2 / 64)
    assert compute_signed_rank_p([0.0, 0.0]) == 1.0
    # Differences of equal size are tied, though their subtractions differ in the last digit.
    gaps = [0.3 - 0.2, 0.2 - 0.1, -0.7]
    assert gaps[0] != gaps[1]
    assert compute_signed_rank_p(gaps) == pytest.approx(exact_p([0.1, 0.1, -0.7]))


def test_pairs_are_the_common_seeds_and_folds(write_run):
    base = read_all(*(write_run("base", 0.5 + seed / 100, seed) for seed in (0, 1, 2)))
    other = read_all(*(write_run("hard", 0.6 + seed / 50, seed) for seed in (1, 2, 5)))
    found = compare_pairs(other, base, "accuracy")
    assert found.n == 2 and found.baseline == "base"
    assert found.mean == pytest.approx((0.62 - 0.51 + 0.64 - 0.52) / 2)
    assert found.p == pytest.approx(0.5)
    assert compare_pairs(other[2:], base, "accuracy") is None
    # Another fold has another test set, whatever the seed is.
    assert compare_pairs(read_all(write_run("hard", fold=1)), base, "accuracy") is None


def test_p_is_corrected_for_the_number_of_configs():
    # By hand: p n / rank, from the largest p down, and never more than the next one.
    ps = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5}
    gaps = {name: PairedDifference("base", 0.1, p, 9, q=p) for name, p in ps.items()}
    found = correct_for_many({**gaps, "base": None})
    expected = {"a": 0.04, "b": 0.16 / 3, "c": 0.16 / 3, "d": 0.5}
    assert {name: gap.q for name, gap in found.items()} == pytest.approx(expected)
    assert correct_for_many({"base": None}) == {}


def test_order_of_configs(write_run):
    names = ("zeta", "odconv", "alpha", "hard", "net1", "base")
    folders = [write_run(name, baseline="net1" if name == "zeta" else "base") for name in names]
    folders.append(write_run("base", dataset="Adiac", baseline="net1"))
    adiac, digits = compare_runs(read_all(*folders))
    assert (adiac.dataset, digits.dataset) == ("Adiac", "digits")
    assert [row.config for row in digits.results] == [
        "base", "net1", "hard", "odconv", "alpha", "zeta",
    ]  # fmt: skip
    gaps = {row.config: row.difference and row.difference.baseline for row in digits.results}
    assert gaps == {"base": None, "zeta": "net1"} | dict.fromkeys(
        ("net1", "hard", "odconv", "alpha"), "base"
    )
    # The baseline has no run.
    assert adiac.results[0].difference is None


def test_metrics_and_costs_over_runs(write_run):
    folders = [
        write_run(seed=0, accuracy=0.8, seconds=10.0, test={"top5": 0.9}),
        write_run(seed=1, accuracy=0.9, seconds=50.0, test={"top5": None}),
        write_run(seed=2, accuracy=0.7, seconds=20.0, without=["macs"]),
    ]
    (comparison,) = compare_runs(read_all(*folders))
    (results,) = comparison.results
    assert comparison.replicates == "seeds"
    assert results.metrics["accuracy"].mean == pytest.approx(0.8)
    assert results.metrics["accuracy"].sd == pytest.approx(0.1)
    # One run lacks it, so a mean would be over other runs than the rest.
    assert "top5" not in results.metrics
    assert results.costs["seconds"] == 20.0 and results.costs["macs"] == 2_000_000
    assert results.costs["parameters"] == 1_234_567
    folds = [write_run(fold=fold) for fold in (0, 1)]
    assert compare_runs(read_all(*folds))[0].replicates == "folds"
    own, in_folds = compare_runs(read_all(*folders, *folds))
    assert (own.title, len(own.runs)) == ("digits", 3)
    assert (in_folds.title, len(in_folds.runs)) == ("digits in folds", 2)


def test_the_time_of_compiling_is_that_of_the_run_that_compiled(write_run):
    folders = [write_run(seed=n, compile_seconds=time) for n, time in enumerate((12.6, 0.0, 0.0))]
    (comparison,) = compare_runs(read_all(*folders))
    assert comparison.results[0].costs["compile_seconds"] == 12.6


def test_mean_iou_over_runs_with_the_class(write_run):
    def run(seed, **iou):
        return write_run(seed=seed, metric="miou", test={"miou": 0.4, "iou": iou})

    folders = [run(0, cat=0.2, dog=None, train=None), run(1, cat=0.4, dog=0.5, train=None)]
    (comparison,) = compare_runs(read_all(*folders))
    iou = comparison.results[0].iou
    assert list(iou) == ["cat", "dog", "train"]
    assert iou["cat"] == pytest.approx(0.3) and iou["dog"] == 0.5 and iou["train"] is None


def test_equal_labels_get_the_config_s_name(write_run):
    folders = [write_run(name, label="ODConv") for name in ("odconv", "odconv_k2")]
    (comparison,) = compare_runs(read_all(*folders))
    labels = [row.label for row in comparison.results]
    assert labels == ["ODConv (odconv)", "ODConv (odconv_k2)"]
