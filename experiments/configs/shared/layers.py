"""The layers that configs choose by name, and the fields beside the name that are settings as well."""

import collections.abc
import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from dyn import models

CONVS = models.CONVOLUTIONS
ATTENTIONS = {"none": None, **models.ATTENTIONS}
CLASSIFIERS = models.CLASSIFIERS
HEADS = {"fcn": models.FCN, "deeplabv3plus": models.DeepLabV3Plus}

# The layers of each section that holds the name of one. Its other settings are fields of the layer.
SECTIONS: dict[str, Mapping[str, Any]] = {
    "conv": CONVS,
    "attention": ATTENTIONS,
    "classifier": CLASSIFIERS,
    "head": HEADS,
}
# Fields that the network decides on for each of its layers.
DECIDED = (
    "name", "parent", "features", "kernel_size", "strides", "padding", "input_dilation", "kernel_dilation",
    "feature_group_count", "num_classes", "backbone", "output_stride", "fine_stage", "spatial_axes",
    "warehouse", "place", "use_running_average", "use_bias", "dtype", "param_dtype", "token_axes",
)  # fmt: skip
# Fields of that name that a network leaves to the config.
CHOSEN = (("attention", "kernel_size"), ("head", "features"))
_EXAMPLES = {bool: True, int: 4, float: 0.5, str: "text"}


def list_layer_fields(section: str, layer: object) -> dict[str, Any]:
    """Returns the default of each field of a layer that may be set, or a value of its type if it has none.

    There are none if the section has no layer of that name.
    """
    chosen = SECTIONS[section].get(layer) if isinstance(layer, str) else None
    if chosen is None:
        return {}
    examples = {
        field.name: _find_example(field)
        for field in dataclasses.fields(chosen)
        if field.name not in DECIDED or (section, field.name) in CHOSEN
    }
    return {name: example for name, example in examples.items() if example is not None}


def has_default(section: str, layer: str, name: str) -> bool:
    """Returns whether a field of a layer has a default; if not, the layer decides."""
    fields = {field.name: field for field in dataclasses.fields(SECTIONS[section][layer])}
    return isinstance(fields[name].default, bool | int | float | str)


def _find_example(field: dataclasses.Field) -> Any:
    """Returns a field's default if it is a scalar, or an example of its type; None for other types."""
    if isinstance(field.default, bool | int | float | str):
        return field.default
    kinds = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else ()
    known = [_EXAMPLES[kind] for kind in kinds if kind in _EXAMPLES]
    has_sequences = any(typing.get_origin(kind) is collections.abc.Sequence for kind in kinds)
    return known[0] if known and not has_sequences else None
