"""Summarizes a trained network: the costs of its layers, the use of their kernels, and notable findings."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from flax import traverse_util

from dyn.diagnostics import Cost, kernel_similarity, layer_costs
from experiments.core.words import agree, count_noun

CONSTANT_SPREAD = (
    0.02  # of a mixture that does not depend on the input, as a share of the mean weight
)
SIMILAR_COSINE = 0.95  # above this cosine, two kernels are nearly the same
ATTENTION_MODULES = ("attention", "routing", "local")


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """The cost of a layer, and the part of it that its attention costs."""

    name: str
    cost: Cost
    attention: Cost


@dataclasses.dataclass(frozen=True, eq=False)
class KernelUse:
    """The use that a layer makes of its K kernels over the test examples.

    Attributes:
        name: the path of the layer.
        mean: `[K]`, the mean weight of each kernel.
        entropy: of the mixtures, from 0 (one kernel) to 1 (equal weights).
        spread: standard deviation of the weights over the examples, relative to the mean weight.
        dead: `[K]`, whether a kernel is never used.
        similarity: `[K, K]`, cosines between the kernels; None if they are not parameters.
    """

    name: str
    mean: np.ndarray
    entropy: float
    spread: float
    dead: np.ndarray
    similarity: np.ndarray | None

    @property
    def largest_cosine(self) -> float | None:
        """The largest cosine between two different kernels."""
        if self.similarity is None:
            return None
        return float(np.max(self.similarity[~np.eye(len(self.similarity), dtype=bool)]))


def measure_layers(model: nn.Module, variables: Mapping[str, Any], inputs: Any) -> list[LayerCost]:
    """Returns the cost of each layer of a model that computes something, in order.

    A layer is an outermost submodule with multiply-adds that has its own parameters or attention; a block of
    layers is not a layer. `inputs` is one example or its shape, `[1, ...]`.
    """
    costs = layer_costs(model, variables, inputs)
    leaves = traverse_util.flatten_dict(dict(variables["params"]))
    candidates = {"/".join(path[:-1]) for path in leaves}
    for path in costs:
        parent, _, name = path.rpartition("/")
        if name in ATTENTION_MODULES:
            candidates.add(parent)
    layers: list[LayerCost] = []
    for path, cost in costs.items():
        is_inside = any(path.startswith(f"{layer.name}/") for layer in layers)
        if not path or path not in candidates or not cost.macs or is_inside:
            continue
        parts = [costs[f"{path}/{n}"] for n in ATTENTION_MODULES if f"{path}/{n}" in costs]
        attention = Cost(sum(p.parameters for p in parts), sum(p.macs for p in parts), ())
        layers.append(LayerCost(path, cost, attention))
    return layers


def measure_kernel_use(
    mixtures: Mapping[str, Mapping[str, np.ndarray]], params: Mapping[str, Any]
) -> list[KernelUse]:
    """Returns the use of the kernels of each layer that mixes several.

    `mixtures` maps layers to the statistics of their mixtures, as in `artifacts.Maps`.
    """
    leaves = traverse_util.flatten_dict(dict(params))
    uses = []
    for name, statistics in mixtures.items():
        mean = np.asarray(statistics["mean"], np.float64)
        if len(mean) < 2:
            continue
        kernel = leaves.get((*name.split("/"), "kernel"))
        similarity = None
        if kernel is not None and len(kernel) == len(mean):
            similarity = np.asarray(kernel_similarity(kernel))
        uses.append(
            KernelUse(
                name=name,
                mean=mean,
                entropy=float(statistics["entropy"]),
                spread=float(statistics["spread"]) / max(float(np.abs(mean).mean()), 1e-12),
                dead=np.asarray(statistics["dead"], bool),
                similarity=similarity,
            )
        )
    return uses


def list_findings(
    layers: Sequence[LayerCost], uses: Sequence[KernelUse], network: Cost
) -> list[str]:
    """Returns sentences on what is notable about a network; `network` is the cost of all of it."""
    findings = [_describe_largest(layers, network)]
    if any(layer.attention.macs for layer in layers):
        macs = sum(layer.attention.macs for layer in layers) / network.macs
        parameters = sum(layer.attention.parameters for layer in layers) / network.parameters
        findings.append(
            f"Attention takes {macs:.2%} of the multiply-adds and {parameters:.2%} of the parameters."
        )
    if not uses:
        return [*findings, "No layer mixes kernels."]
    constant = [use.name for use in uses if use.spread < CONSTANT_SPREAD]
    if constant:
        findings.append(
            f"{len(constant)} of {len(uses)} layers {agree(len(constant), 'has', 'have')} the same mixture "
            f"for every example and could as well be static: {_shorten_list(constant)}."
        )
    else:
        layers_mixing = agree(len(uses), "the layer", f"all {len(uses)} layers")
        findings.append(f"The mixtures of {layers_mixing} vary over the examples.")
    kernels, dead = sum(len(use.dead) for use in uses), sum(int(use.dead.sum()) for use in uses)
    if dead:
        where = [f"{use.name} ({int(use.dead.sum())})" for use in uses if use.dead.any()]
        findings.append(
            f"{dead} of {kernels} kernels {agree(dead, 'is', 'are')} never used: {_shorten_list(where)}."
        )
    else:
        findings.append(f"Each of the {kernels} kernels is used by some example.")
    cosines = {use.name: use.largest_cosine for use in uses if use.largest_cosine is not None}
    similar = [name for name, cosine in cosines.items() if cosine > SIMILAR_COSINE]
    if similar:
        findings.append(
            f"In {len(similar)} of {count_noun(len(cosines), 'layer')} two kernels are nearly the "
            "same (cosine above "
            f"{SIMILAR_COSINE}): {_shorten_list(similar)}."
        )
    elif cosines:
        findings.append("In no layer are two kernels nearly the same.")
    return findings


def _describe_largest(layers: Sequence[LayerCost], network: Cost) -> str:
    slowest = max(layers, key=lambda layer: layer.cost.macs)
    largest = max(layers, key=lambda layer: layer.cost.parameters)
    macs = f"{slowest.cost.macs / network.macs:.0%}"
    parameters = f"{largest.cost.parameters / network.parameters:.0%}"
    if largest is slowest:
        return f"{slowest.name} has the most multiply-adds ({macs}) and parameters ({parameters})."
    return (
        f"{slowest.name} has the most multiply-adds ({macs}), {largest.name} the most parameters "
        f"({parameters})."
    )


def _shorten_list(names: Sequence[str], limit: int = 4) -> str:
    text = ", ".join(names[:limit])
    return f"{text} and {len(names) - limit} more" if len(names) > limit else text
