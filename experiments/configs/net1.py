"""The study's Net1 for series, static: one convolution, max pooling, a fully connected layer.

The study: Bhati and Sherawat, Comprehensive Study Dynamic CNN (Virginia Tech).

    python -m experiments.main --config=experiments/configs/net1.py:adiac --config.data.source=PATH/Adiac

Measured on one x86-64 core (jax 0.10.2), ten folds of Adiac by `experiments.study`: accuracy 0.789 +- 0.043.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import common

# Not the study's recipe, which is not known. No augmentation: one convolution and a linear classifier of all
# places have nothing to be robust with.
RECIPE = {
    "augment": "none",
    "batch_size": 32,
    "epochs": 100,
    "optimizer": {"learning_rate": 5e-3},
}
TEMPERATURE = {"schedule": "linear", "epochs": 50}


def get_config(
    argument: str | None = None,
    name: str = "net1",
    recipe: dict[str, Any] = RECIPE,
    conv: dict[str, Any] | None = None,
) -> ConfigDict:
    """Returns Net1 for the series that `argument` names; without one, for Adiac."""
    config = common.get_config(argument, default="adiac", network=name, conv=conv)
    config.name = config.baseline = name
    if not config.dataset.endswith("-smoke") and "recipe=strong" not in (argument or ""):
        config.update(recipe)
        if conv is not None:
            config.temperature.update(TEMPERATURE)
    return config
