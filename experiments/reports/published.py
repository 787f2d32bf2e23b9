"""The numbers that the study and others have published, to stand beside ours.

Bhati, Sherawat: Comprehensive Study Dynamic CNN. Virginia Tech. Tables 3, 4 and 4b.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Published:
    """A published result.

    Attributes:
        mean: of the metric, 0 to 1.
        sd: its standard deviation over folds; None for a single number.
        flops: as published; None where they are not.
    """

    mean: float
    sd: float | None = None
    flops: float | None = None


# By data set, its name in small letters and digits alone, and config.
_STUDY = {
    "tinyimagenet": {
        "base": Published(0.652, flops=1.5e9),
        "global_soft": Published(0.701, flops=1.8e9),
        "local_soft": Published(0.715, flops=2.0e9),
        "hard": Published(0.687, flops=2.1e9),
        "odconv": Published(0.734, flops=2.3e9),
    },
    "voc2012": {
        "base": Published(0.675),
        "global_soft": Published(0.6960),
        "local_soft": Published(0.7017),
        "hard": Published(0.7069),
        "odconv": Published(0.7309),
    },
}
_CNN, _DYNAMIC_CNN = Published(0.571, 0.059), Published(0.653, 0.062)

_SETTINGS = {
    "tinyimagenet": "pictures enlarged to 224 pixels, 30 epochs, the number of runs not given",
    "voc2012": "Faster R-CNN named as the framework, 30 epochs, the number of runs not given",
    "adiac": "ten folds of its own; which of its two networks the numbers belong to is not said",
}
_OTHERS = {
    "adiac": "On the archive's own split (390 training series, 391 test series) a fully convolutional "
    "network has reached 0.857 and a 1-D ResNet 0.826 (Wang, Yan, Oates 2017): compare runs without folds "
    "with those."
}


def study(dataset: str, config: str, settings: Mapping[str, Any]) -> Published | None:
    """What the study reports for a config on a data set; None where it has nothing.

    Args:
        dataset: the data set's name.
        config: the config's.
        settings: of a run: which network it has, for series.
    """
    if _plain(dataset) != "adiac":
        return _STUDY.get(_plain(dataset), {}).get(config)
    network = (settings.get("model") or {}).get("network")
    if network not in ("net1", "net2"):
        return None
    return _CNN if (settings.get("conv") or {}).get("name") == "conv" else _DYNAMIC_CNN


def remark(dataset: str) -> str:
    """What must be said beside the study's numbers for a data set; '' where it has none."""
    name = _plain(dataset)
    if name not in _SETTINGS:
        return ""
    text = (
        "The study's numbers are its own (Bhati and Sherawat, Comprehensive Study Dynamic CNN), in other "
        f"settings than ours: {_SETTINGS[name]}."
    )
    return f"{text} {_OTHERS[name]}" if name in _OTHERS else text


def _plain(dataset: str) -> str:
    return "".join(filter(str.isalnum, dataset.lower()))
