"""Settings of the stages that would do nothing."""

import pytest
from small_runs import small

from experiments.configs import base
from experiments.core.errors import UserError
from experiments.train.validate import refuse_unused, validate


def config_of(start, **changes):
    settings = {"stages.head_epochs": 1, "stages.learning_rate": 1e-2, "init_from": start}
    return small(base, **settings | changes)


def test_stages_are_refused_where_they_would_do_nothing():
    config = config_of("")
    validate(config)
    with pytest.raises(
        UserError, match=r"stages\.head_epochs would do nothing: it is for --config\.i"
    ):
        refuse_unused(config, ["stages.head_epochs"])
    config = config_of("somewhere", **{"stages.head_epochs": 0})
    with pytest.raises(
        UserError, match=r"learning_rate would do nothing: it is for --config\.stages"
    ):
        refuse_unused(config, ["stages.learning_rate"])
    config = config_of("somewhere", **{"model.network": "net1"})
    with pytest.raises(UserError, match="a head can learn alone in a classification by a resnet"):
        validate(config)
