"""Settings that do not fit each other or the devices."""

import pytest
from small_runs import change, small

from experiments.configs import base
from experiments.core.errors import UserError
from experiments.train.validate import resolve_config


def test_only_networks_with_a_head_of_classes_have_stages():
    assert "stages" in resolve_config(small(base))
    net1 = change(base.get_config("smoke"), {"model.network": "net1"})
    assert "stages" not in net1 and "stages" not in base.get_config("voc2012")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_size": 24, "accumulate": 4}, "in 4 microbatches .* multiple of 16"),
        ({"batch_size": 6}, "4 devices; .* multiple of 4"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused(changes, says):
    with pytest.raises(UserError, match=says):
        resolve_config(change(base.get_config("smoke"), changes))


def test_a_batch_that_can_be_cut_is_accepted():
    resolve_config(change(base.get_config("smoke"), {"batch_size": 16, "accumulate": 4}))
