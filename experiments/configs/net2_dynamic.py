"""The study's Net2 for series, dynamic: its kernels are those of a trained static Net2, and frozen.

    python -m experiments.study --dataset=adiac --configs=net2,net2_dynamic --folds=10 --source=PATH/Adiac
    python -m experiments.main --config=experiments/configs/net2_dynamic.py:adiac
        --config.start.run=RUN --config.data.source=PATH/Adiac

RUN is the workdir of a finished `net2.py`. `--config.start.freeze=False` lets the kernels learn,
`--config.start.config=` (nothing behind the sign) starts from scratch.

MEASURED
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """Net2 with DynamicConv on the series that `argument` names; without one, Adiac.

    Attention sees the outline of the series: the mean of a z-normalised one says nothing.
    """
    config = common.get_config(argument, default="adiac")
    config.name, config.baseline = "net2_dynamic", "net2"
    config.model.network = "net2"
    config.conv = {"name": "dyconv", "num_kernels": 4, "attention_norm": "layer"}
    config.series.context = "series"
    if not config.dataset.endswith("-smoke"):  # a run of seconds has nothing to start from
        config.start.update({"config": "net2", "noise": 0.3, "freeze": True})
    return config
