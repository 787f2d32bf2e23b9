"""Classifies birdsong in windows of two seconds: a ResNet-18 on log-mel spectrograms.

    python -m experiments.main --config=experiments/configs/birdsong_classifier.py --config.data.source=PATH

PATH holds a folder of recordings for each class. `:songs` is a set of made-up sounds, `:smoke` a run of half
a minute on it. It is `base.py:audio`; the other layers classify recordings in the same way, such as
`dcd.py:audio` (the published dynamic convolutions with their dynamic classifier) and `odconv.py:audio`.

The recipe (Adam at 1e-3, batches of 32, 40 epochs) and the networks are those with which Fu et al. (2023)
compare static and dynamic kernels; the spectrograms are ours: 128 mel bands over 80 decibels.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns a classifier of birdsong for the recordings that `argument` names."""
    config = common.get_config(argument, default="audio")
    config.name = config.baseline = "birdsong_classifier"
    return config
