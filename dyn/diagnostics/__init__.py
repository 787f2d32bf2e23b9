"""Inspects a model: its costs, its attention, and class activation maps."""

from dyn.diagnostics.activation import class_activation
from dyn.diagnostics.attention import attention_statistics, kernel_similarity, sown_weights
from dyn.diagnostics.costs import Cost, count_macs, count_parameters, layer_costs
from dyn.diagnostics.outputs import layer_outputs

__all__ = [
    "Cost",
    "attention_statistics",
    "class_activation",
    "count_macs",
    "count_parameters",
    "kernel_similarity",
    "layer_costs",
    "layer_outputs",
    "sown_weights",
]
