"""Settings that do not fit each other or the devices."""

import pytest
from small_runs import change

from experiments.configs import base
from experiments.core.errors import UserError
from experiments.train.validate import resolve_config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_size": 24, "accumulate": 4}, "in 4 microbatches .* multiple of 16"),
        ({"batch_size": 6}, "4 devices; .* multiple of 4"),
        ({"adapt_gates": True}, "adapt_gates"),
        ({"adapt_gates": True, "conv.name": "gated"}, "adapt_gates"),
        ({"start.freeze": True}, "start.freeze=True .*init_from"),
        (
            {"start.freeze": True, "conv.name": "odconv", "init_from": "runs/base"},
            "stay equal.*start.awake=False",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, says):
    with pytest.raises(UserError, match=says):
        resolve_config(change(base.get_config("smoke"), changes))
