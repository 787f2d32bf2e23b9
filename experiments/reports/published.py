"""Published results, to stand beside ours.

Bhati, Sherawat: Comprehensive Study Dynamic CNN. Virginia Tech. Tables 3, 4 and 4b.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Published:
    """A published mean of the metric, 0 to 1, its deviation over folds, and FLOPs; None if not published."""

    mean: float
    sd: float | None = None
    flops: float | None = None


# By data set (its name in lower case, letters and digits alone) and config.
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
# The framework that the study names is a detector; its data and its metric are those of its segmentation.
_STUDY["voc2012instances"] = _STUDY["voc2012"]
_ADIAC_STATIC, _ADIAC_DYNAMIC = Published(0.571, 0.059), Published(0.653, 0.062)

_CONDITIONS = {
    "tinyimagenet": "images resized to 224 pixels, 30 epochs, number of runs not stated",
    "voc2012": "Faster R-CNN named as the framework, 30 epochs, number of runs not stated",
    "voc2012instances": "Faster R-CNN named as the framework, though mIoU needs masks, 30 epochs, number of "
    "runs not stated",
    "adiac": "its own ten folds; it does not state which of its two networks the results are from",
}
_OTHER_RESULTS = {
    "adiac": "On the archive's own split (390 training series, 391 test series) a fully convolutional "
    "network has reached 0.857 and a 1-D ResNet 0.826 (Wang, Yan, Oates 2017): compare runs without folds "
    "with those."
}


def find_published(dataset: str, config: str, settings: Mapping[str, Any]) -> Published | None:
    """Returns the study's result for a config on a data set; None if it has none.

    For series, the settings of a run tell its network.
    """
    if _normalize(dataset) != "adiac":
        return _STUDY.get(_normalize(dataset), {}).get(config)
    network = (settings.get("model") or {}).get("network")
    if network not in ("net1", "net2"):
        return None
    is_static = (settings.get("conv") or {}).get("name") == "conv"
    return _ADIAC_STATIC if is_static else _ADIAC_DYNAMIC


def describe_published(dataset: str) -> str:
    """Describes how the study's results on a data set were obtained; '' if it has none."""
    name = _normalize(dataset)
    if name not in _CONDITIONS:
        return ""
    text = (
        "The study's results are its own (Bhati and Sherawat, Comprehensive Study Dynamic CNN), under other "
        f"conditions than ours: {_CONDITIONS[name]}."
    )
    return f"{text} {_OTHER_RESULTS[name]}" if name in _OTHER_RESULTS else text


def _normalize(dataset: str) -> str:
    return "".join(filter(str.isalnum, dataset.lower()))
