"""Means, deviations and paired tests, against numpy and against counting all signs."""

import itertools

import numpy as np
import pytest
from scipy.stats import rankdata

from experiments.reports import published
from experiments.reports import recipes as settings
from experiments.reports.comparison import compare, difference, signed_rank_p, spread
from experiments.runs import find as runs


def read_all(*folders):
    return [runs.read(folder) for folder in folders]


def test_a_spread_is_mean_and_sample_deviation(rng):
    values = rng.normal(size=7).tolist()
    found = spread(values)
    assert found.mean == pytest.approx(np.mean(values)) and found.n == 7
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    assert spread([0.5]).sd is None


def exact_p(differences):
    """The share of all signs of the differences whose rank sum is as far from its mean."""
    kept = np.array([d for d in differences if d])
    ranks = rankdata(np.round(np.abs(kept), 10))
    sums = [
        ranks[np.array(signs) > 0].sum() for signs in itertools.product((1, -1), repeat=len(kept))
    ]
    middle = ranks.sum() / 2
    seen = abs(ranks[kept > 0].sum() - middle)
    return np.mean(np.abs(np.array(sums) - middle) >= seen - 1e-9)


@pytest.mark.parametrize("number", [1, 3, 6, 10])
@pytest.mark.parametrize("kind", ["distinct", "equal", "with zeros"])
def test_p_is_exact(rng, number, kind):
    for _ in range(5):
        differences = rng.normal(0.3, 1, number)
        if kind != "distinct":
            differences = np.round(differences * 2) / 2
        if kind == "equal":
            differences[differences == 0] = 0.5
        if any(differences):
            assert signed_rank_p(differences) == pytest.approx(exact_p(differences))


def test_six_pairs_are_the_fewest_that_can_be_below_a_twentieth():
    assert signed_rank_p([0.01 * n for n in range(1, 6)]) == pytest.approx(2 / 32)
    assert signed_rank_p([0.01 * n for n in range(1, 7)]) == pytest.approx(2 / 64)
    assert signed_rank_p([0.0, 0.0]) == 1.0
    # The differences of two pairs of the same accuracies are equal, their subtractions are not.
    gaps = [0.3 - 0.2, 0.2 - 0.1, -0.7]
    assert gaps[0] != gaps[1]
    assert signed_rank_p(gaps) == pytest.approx(exact_p([0.1, 0.1, -0.7]))


def test_only_seeds_and_folds_that_both_have_are_compared(write_run):
    base = read_all(*(write_run("base", 0.5 + seed / 100, seed) for seed in (0, 1, 2)))
    other = read_all(*(write_run("hard", 0.6 + seed / 50, seed) for seed in (1, 2, 5)))
    found = difference(other, base, "accuracy")
    assert found.n == 2 and found.baseline == "base"
    assert found.mean == pytest.approx((0.62 - 0.51 + 0.64 - 0.52) / 2)
    assert found.p == pytest.approx(0.5)
    assert difference(other[2:], base, "accuracy") is None
    # Another fold is another test set, whatever the seed.
    assert difference(read_all(write_run("hard", fold=1)), base, "accuracy") is None


def test_configs_are_rows_baselines_first_then_the_study_s_order(write_run):
    names = ("zeta", "odconv", "alpha", "hard", "net1", "base")
    folders = [write_run(name, baseline="net1" if name == "zeta" else "base") for name in names]
    folders.append(write_run("base", dataset="Adiac", baseline="net1"))
    adiac, digits = compare(read_all(*folders))
    assert (adiac.dataset, digits.dataset) == ("Adiac", "digits")
    assert [row.config for row in digits.rows] == [
        "base", "net1", "hard", "odconv", "alpha", "zeta",
    ]  # fmt: skip
    gaps = {row.config: row.difference and row.difference.baseline for row in digits.rows}
    assert gaps == {"base": None, "zeta": "net1"} | dict.fromkeys(
        ("net1", "hard", "odconv", "alpha"), "base"
    )
    # Its baseline has no run.
    assert adiac.rows[0].difference is None


def test_metrics_and_costs_of_a_config_are_taken_over_its_runs(write_run):
    folders = [
        write_run(seed=0, accuracy=0.8, seconds=10.0, test={"top5": 0.9}),
        write_run(seed=1, accuracy=0.9, seconds=50.0, test={"top5": None}),
        write_run(seed=2, accuracy=0.7, seconds=20.0, without=["macs"]),
    ]
    (comparison,) = compare(read_all(*folders))
    (row,) = comparison.rows
    assert comparison.over == "seeds"
    assert row.metrics["accuracy"].mean == pytest.approx(0.8)
    assert row.metrics["accuracy"].sd == pytest.approx(0.1)
    # Measured in a part of the runs it would be of other runs than the rest.
    assert "top5" not in row.metrics
    assert row.costs["seconds"] == 20.0 and row.costs["macs"] == 2_000_000
    assert row.costs["parameters"] == 1_234_567
    folds = [write_run(fold=fold) for fold in (0, 1)]
    assert compare(read_all(*folds))[0].over == "folds"


def test_iou_is_the_mean_over_the_runs_that_have_the_class(write_run):
    def run(seed, **iou):
        return write_run(seed=seed, metric="miou", test={"miou": 0.4, "iou": iou})

    folders = [run(0, cat=0.2, dog=None, train=None), run(1, cat=0.4, dog=0.5, train=None)]
    (comparison,) = compare(read_all(*folders))
    iou = comparison.rows[0].iou
    assert list(iou) == ["cat", "dog", "train"]
    assert iou["cat"] == pytest.approx(0.3) and iou["dog"] == 0.5 and iou["train"] is None


def test_two_configs_of_one_label_are_told_apart(write_run):
    folders = [write_run(name, label="ODConv") for name in ("odconv", "odconv_k2")]
    (comparison,) = compare(read_all(*folders))
    labels = [row.label for row in comparison.rows]
    assert labels == ["ODConv (odconv)", "ODConv (odconv_k2)"]


@pytest.mark.parametrize(
    ("dataset", "config", "network", "conv", "mean"),
    [
        ("tiny_imagenet", "odconv", "resnet", "odconv", 0.734),
        ("Tiny ImageNet", "base", "resnet", "conv", 0.652),
        ("voc2012", "hard", "resnet", "gated", 0.7069),
        ("Adiac", "net1", "net1", "conv", 0.571),
        ("Adiac", "whatever", "net2", "dyconv", 0.653),
        ("Adiac", "odconv", "resnet", "odconv", None),
        ("digits", "odconv", "resnet", "odconv", None),
    ],
)
def test_the_study_s_numbers_stand_where_it_has_them(dataset, config, network, conv, mean):
    found = published.study(
        dataset, config, {"model": {"network": network}, "conv": {"name": conv}}
    )
    assert (found and found.mean) == mean
    assert bool(published.remark(dataset)) == (dataset != "digits")
    assert published.study("Adiac", "net1", {}) is None


def test_settings_say_what_a_config_changes_and_whether_its_runs_are_alike(write_run):
    (comparison,) = compare(read_all(*(write_run(name) for name in ("base", "odconv"))))
    table = settings.changes(comparison)
    assert table.rows == [["odconv", "base", "conv.name=odconv"]]
    assert settings.recipe(comparison.rows[0]) == "batch_size=32, conv.name=base"
    folder = write_run("odconv", seed=1)
    text = (folder / "config.json").read_text()
    (comparison,) = compare(read_all(write_run("odconv"), folder))
    assert settings.unlike(comparison.rows[0]) == []  # a seed is no difference
    (folder / "config.json").write_text(text.replace('"batch_size": 32', '"batch_size": 8'))
    (comparison,) = compare(read_all(write_run("odconv"), folder))
    assert settings.unlike(comparison.rows[0]) == ["batch_size"]
    (folder / "config.json").write_text("{")
    (comparison,) = compare(read_all(folder))
    assert settings.recipe(comparison.rows[0]) == "" and settings.changes(comparison) is None
