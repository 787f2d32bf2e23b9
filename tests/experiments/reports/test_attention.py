import numpy as np
import pytest

from experiments.reports.attention import compute_agreement, measure_attention


def make_mixture(by_class, **others):
    statistics = {
        "mean": by_class.mean(axis=0),
        "entropy": np.float32(0.5),
        "spread": np.float32(0.1),
        "dead": np.zeros(by_class.shape[1], bool),
        "by_class": by_class,
    }
    return statistics | others


def test_runs_that_number_their_kernels_differently_agree(rng):
    table = rng.random((6, 4))
    assert compute_agreement([table, table[:, [2, 0, 3, 1]]]) == pytest.approx(1)
    assert abs(compute_agreement([table, rng.random((6, 4))])) < 0.9
    # By hand: the distances of classes at 0, 1, 3, 7, and of the same in another order.
    first, second = (np.array(x, float)[:, None] for x in ([0, 1, 3, 7], [1, 0, 3, 7]))
    distances = ([1, 3, 7, 2, 6, 4], [1, 2, 6, 3, 7, 4])
    expected = np.corrcoef([np.argsort(np.argsort(d)) for d in distances])[0, 1]
    assert compute_agreement([first, second]) == pytest.approx(expected)


def test_agreement_that_cannot_be_known(rng):
    table = rng.random((6, 4))
    few = table.copy()
    few[2:5] = np.nan  # classes without examples
    assert compute_agreement([table]) is None
    assert compute_agreement([table, few]) is None
    assert compute_agreement([table, np.ones((6, 4))]) is None
    assert compute_agreement([table, rng.random((5, 4))]) is None  # other classes
    few[3:5] = table[3:5]
    assert compute_agreement([table, few]) == pytest.approx(1)


def test_means_over_runs_of_the_layers_that_all_have(rng):
    table = rng.random((5, 4)) + 1
    runs = [
        {"a": make_mixture(table), "b": make_mixture(table), "one": make_mixture(table[:, :1])},
        {"b": make_mixture(table, entropy=np.float32(0.7), dead=np.arange(4) < 2)},
    ]
    (layer,) = measure_attention(runs)
    assert (layer.layer, layer.kernels) == ("b", 4)
    assert layer.entropy == pytest.approx(0.6) and layer.dead == pytest.approx(0.25)
    assert layer.spread == pytest.approx(0.1 / table.mean())
    assert layer.class_spread == pytest.approx(table.std(axis=0).mean() / table.mean())
    assert layer.agreement == pytest.approx(1)


def test_older_runs_have_no_means_of_classes(rng):
    old = make_mixture(rng.random((5, 4)))
    del old["by_class"]
    (layer,) = measure_attention([{"a": old}, {"a": make_mixture(rng.random((5, 4)))}])
    assert layer.class_spread is None and layer.agreement is None
    assert measure_attention([]) == [] and measure_attention([{}]) == []
