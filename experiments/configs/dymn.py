"""Dynamic MobileNet (Schmid et al., TASLP 2024): dynamic kernels, activations and gates, for spectrograms.

    python -m experiments.main --config=experiments/configs/dymn.py:audio --config.data.source=PATH

PATH holds recordings. `--config.init_from=dymn10_as.pt` starts from EfficientAT's network for AudioSet, for
which write `--config.temperature.start=1.0`. Its spectrograms were of another kind than those here (32 kHz,
128 Kaldi mels of a window of 800, its own scale), so that its weights are a start, not a network to apply.
`--config.model.width=25.6` is dymn04, 128 dymn20.

Not run, but for `:smoke`, which is mostly compilation.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns DyMN for the data set that `argument` names."""
    conv = {"name": "dyconv", "num_kernels": 4}
    return common.get_config(argument, name="dymn", network="dymn", conv=conv)
