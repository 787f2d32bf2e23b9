import pytest

from experiments.reports.published import describe_published, find_published


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
def test_published_results(dataset, config, network, conv, mean):
    found = find_published(dataset, config, {"model": {"network": network}, "conv": {"name": conv}})
    assert (found and found.mean) == mean
    assert bool(describe_published(dataset)) == (dataset != "digits")
    assert find_published("Adiac", "net1", {}) is None
