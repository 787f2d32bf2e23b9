"""Frequency dynamic convolution (Nam et al., Interspeech 2022): a mixture of kernels for each frequency.

For spectrograms, whose rows are frequencies here. `--config.conv.axis=time` has a mixture for each moment.

    python -m experiments.main --config=experiments/configs/fdy.py:audio

Not run beyond the smoke test.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns FrequencyDynamicConv with four kernels for the data set that `argument` names."""
    conv = {"name": "fdy", "num_kernels": 4, "axis": "frequency", "attention_norm": "layer"}
    return common.get_config(argument, name="fdy", conv=conv)
