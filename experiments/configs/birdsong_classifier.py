"""Which bird sings in a window of two seconds: a ResNet-18 on log-mel spectrograms.

    python -m experiments.main --config=experiments/configs/birdsong_classifier.py --config.data.source=PATH

PATH holds a folder of recordings for each class. `:conv=dcd` has the published dynamic convolutions with
their dynamic classifier, `:conv=odconv` those of ODConv; every other layer is a config of its own, such as
`dyconv.py:audio`. `:songs` is a set that is made up, `:smoke` a run of half a minute on it.

The recipe (Adam at 1e-3, batches of 32, 40 epochs) and the networks are those that Fu et al. (2023) compare
static and dynamic kernels with; the spectrograms are ours: 128 mel bands over 80 decibels.
"""

from ml_collections import ConfigDict

from experiments.configs import common, dcd, odconv
from experiments.core.errors import UserError, suggest_nearest

CONVS = ("static", "dcd", "odconv")


def get_config(argument: str | None = None) -> ConfigDict:
    """A classifier of birdsong, with the convolution and on the recordings that `argument` names."""
    argument, conv = common.take(argument, "conv")
    conv = conv or "static"
    if conv not in CONVS:
        raise UserError(f"conv={conv}: there is no such choice{suggest_nearest(conv, CONVS)}")
    config = common.get_config(argument, default=common.sound(argument))
    if conv != "static":
        layers = {"dcd": dcd, "odconv": odconv}[conv].get_config("songs")
        config.conv, config.classifier = layers.conv, layers.classifier
    config.name = "birdsong_classifier" if conv == "static" else f"birdsong_{conv}"
    config.baseline = "birdsong_classifier"
    return config
