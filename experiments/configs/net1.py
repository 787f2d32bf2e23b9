"""The study's Net1 for series, static: one convolution, max pooling, a fully connected layer.

    python -m experiments.main --config=experiments/configs/net1.py:adiac --config.data.source=PATH/Adiac

Measured on one x86-64 core (jax 0.10.2), ten folds of Adiac by `experiments.study`: accuracy 0.794 +- 0.049.
"""

from ml_collections import ConfigDict

from experiments.configs import common

# Not the study's recipe, which is not known. No augmentation: one convolution and a linear classifier of
# all places have nothing to be robust with.
RECIPE = {
    "augment": "none",
    "batch_size": 32,
    "epochs": 100,
    "optimizer": {"learning_rate": 5e-3},
    "temperature": {"schedule": "linear", "epochs": 50},
}


def get_config(
    argument: str | None = None, name: str = "net1", recipe: dict = RECIPE
) -> ConfigDict:
    """Net1 with static convolutions on the series that `argument` names; without one, Adiac."""
    config = common.get_config(argument, default="adiac")
    config.name = config.baseline = config.model.network = name
    if not config.dataset.endswith("-smoke") and "recipe=strong" not in (argument or ""):
        config.update(recipe)
    return config
