"""The stages of training, which only networks with a head of classes have."""

from small_runs import change, small

from experiments.configs import base
from experiments.train.validate import resolve_config


def test_only_networks_with_a_head_of_classes_have_stages():
    assert "stages" in resolve_config(small(base))
    net1 = change(base.get_config("smoke"), {"model.network": "net1"})
    assert "stages" not in net1 and "stages" not in base.get_config("voc2012")
