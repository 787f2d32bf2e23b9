"""The study's Net2 for series, static: two convolutions, max pooling, a fully connected layer.

The study: Bhati and Sherawat, Comprehensive Study Dynamic CNN (Virginia Tech).

    python -m experiments.main --config=experiments/configs/net2.py:adiac --config.data.source=PATH/Adiac

Measured on one x86-64 core (jax 0.10.2), ten folds of Adiac by `experiments.study`: accuracy 0.694 +- 0.057.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import net1

# At Net1's rate three folds of ten died in the first epochs: no ReLU was active, and the loss was log 37.
RECIPE = {**net1.RECIPE, "epochs": 60, "optimizer": {"learning_rate": 2e-3}}


def get_config(argument: str | None = None, conv: dict[str, Any] | None = None) -> ConfigDict:
    """Returns Net2 for the series that `argument` names; without one, for Adiac."""
    return net1.get_config(argument, "net2", RECIPE, conv)
