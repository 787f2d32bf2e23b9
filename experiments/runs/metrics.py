"""Selects the metrics of a run that are shown to people."""

from collections.abc import Mapping
from typing import Any


def select_scalars(metrics: Mapping[str, Any], num_classes: int | None) -> dict[str, float]:
    """Returns the metrics that are one number each and say something.

    Left out are those that are one minus another, and the top-5 accuracy of at most five classes, which is 1.
    The number of classes is None if it is not known.
    """
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    return {
        name: value
        for name, value in numbers.items()
        if not name.endswith("_error") and (name != "top5" or (num_classes or 6) > 5)
    }


def count_classes(summary: Mapping[str, Any]) -> int | None:
    """Returns the number of classes of a finished run; None if its summary does not have them."""
    classes = summary.get("classes")
    return len(classes) if isinstance(classes, list) else None
