"""Dynamic MobileNet (Schmid et al., TASLP 2024): dynamic kernels, activations and gates, for spectrograms.

    python -m experiments.main --config=experiments/configs/dymn.py:audio --config.data.source=PATH \
        --config.init_from=dymn10_as.pt --config.temperature.start=1.0

PATH holds recordings. `init_from` is EfficientAT's file of a network for AudioSet, which you have downloaded;
its last layer is a new one for your classes. Such networks work at a temperature of 1. Without `init_from`
and `temperature.start` the network learns from the start. `--config.model.width=25.6` is dymn04, 128 dymn20.
For several labels at once add `--config.task=tagging --config.audio.labels=multi`.

Recordings are shown as AudioSet was: 32 kHz, 128 Kaldi mels up to 15 kHz, logarithms on a fixed scale
(`--config.audio.frontend=efficientat`, see `experiments.audio.efficientat`). They are kept as 256 levels of
0.43 dB each, so that what the network sees is off by 0.01 at most; silence is -1.4, and loud sounds are 2.

The published files: not run. `:smoke` is mostly compilation.
"""

import math

from ml_collections import ConfigDict

from experiments.configs import common

DECIBELS = 110.0
AUDIO = {
    "frontend": "efficientat",
    "sample_rate": 32_000,
    "n_fft": 1024,
    "win": 800,
    "step": 320,
    "bands": 128,
    "low": 0.0,
    "high": 15_000.0,
    "decibels": DECIBELS,
}
# (log(power + 1e-5) + 4.5) / 5, from levels that are 0 at 1e-5.
_NEPERS = DECIBELS * math.log(10) / 10
NORMALISE = {"mean": ((math.log(1e5) - 4.5) / _NEPERS,), "std": (5 / _NEPERS,)}


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns DyMN for the data set that `argument` names."""
    conv = {"name": "dyconv", "num_kernels": 4}
    config = common.get_config(argument, name="dymn", network="dymn", conv=conv)
    if config.data.name == "audio":
        config.audio.update(AUDIO)
        config.normalise.update(NORMALISE)
    return config
