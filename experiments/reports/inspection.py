"""What is inside a trained network: the cost of its layers, how kernels are used, and what that says."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from flax import traverse_util

from dyn.diagnostics import Cost, kernel_similarity, layer_costs

SAME = 0.02  # below this share of the mean weight, a mixture is the same for every input
ALIKE = 0.95  # cosine above which two candidates are hardly two
# What decides inside a layer.
DECIDES = ("attention", "routing", "local")


@dataclasses.dataclass(frozen=True)
class Layer:
    """What one layer costs, and what of that decides instead of convolving."""

    name: str
    cost: Cost
    attention: Cost


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """How a layer mixes its K kernels over the test examples.

    Attributes:
        name: the layer's path.
        mean: `[K]`, of each kernel's weight.
        entropy: 0 (one kernel) to 1 (all alike).
        spread: standard deviation of the weights over the examples, over their mean.
        dead: `[K]`, kernels that are never used.
        similarity: `[K, K]`, cosines between the kernels; None where they are not parameters.
    """

    name: str
    mean: np.ndarray
    entropy: float
    spread: float
    dead: np.ndarray
    similarity: np.ndarray | None

    @property
    def most_alike(self) -> float | None:
        """The largest cosine between two different kernels."""
        if self.similarity is None:
            return None
        return float(np.max(self.similarity[~np.eye(len(self.similarity), dtype=bool)]))


def layers_of(model: nn.Module, variables: Mapping[str, Any], inputs: Any) -> list[Layer]:
    """The layers of a model that compute something, in their order.

    A layer is an outermost submodule with multiply-adds that has parameters of its own or decides something;
    a block of layers is none.

    Args:
        model: applied to `(variables, inputs)`.
        variables: the model's, arrays or their shapes.
        inputs: of one example, or their shape: `[1, ...]`.
    """
    costs = layer_costs(model, variables, inputs)
    leaves = traverse_util.flatten_dict(dict(variables["params"]))
    own = {"/".join(path[:-1]) for path in leaves}
    own |= {path.rpartition("/")[0] for path in costs if path.rpartition("/")[2] in DECIDES}
    found: list[Layer] = []
    for path, cost in costs.items():
        inner = any(path.startswith(f"{layer.name}/") for layer in found)
        if not path or path not in own or not cost.macs or inner:
            continue
        parts = [costs[f"{path}/{part}"] for part in DECIDES if f"{path}/{part}" in costs]
        attention = Cost(sum(p.parameters for p in parts), sum(p.macs for p in parts), ())
        found.append(Layer(path, cost, attention))
    return found


def mixtures_of(
    mixtures: Mapping[str, Mapping[str, np.ndarray]], params: Mapping[str, Any]
) -> list[Mixture]:
    """How each layer mixes, from what a run's `maps.npz` has of it and its parameters."""
    found, leaves = [], traverse_util.flatten_dict(dict(params))
    for name, one in mixtures.items():
        mean = np.asarray(one["mean"], np.float64)
        if len(mean) < 2:
            continue
        kernel = leaves.get((*name.split("/"), "kernel"))
        similarity = None
        if kernel is not None and len(kernel) == len(mean):
            similarity = np.asarray(kernel_similarity(kernel))
        scale = max(float(np.abs(mean).mean()), 1e-12)
        found.append(
            Mixture(
                name,
                mean,
                float(one["entropy"]),
                float(one["spread"]) / scale,
                np.asarray(one["dead"], bool),
                similarity,
            )
        )
    return found


def findings(layers: Sequence[Layer], mixtures: Sequence[Mixture], whole: Cost) -> list[str]:
    """Sentences on what to notice first."""
    said = []
    heaviest = max(layers, key=lambda layer: layer.cost.macs)
    largest = max(layers, key=lambda layer: layer.cost.parameters)
    also = "and" if largest is heaviest else largest.name
    said.append(
        f"{heaviest.name} has the most multiply-adds, {heaviest.cost.macs / whole.macs:.0%} of all, "
        f"{also} the most parameters, {largest.cost.parameters / whole.parameters:.0%}."
    )
    if any(layer.attention.macs for layer in layers):
        macs = sum(layer.attention.macs for layer in layers) / whole.macs
        parameters = sum(layer.attention.parameters for layer in layers) / whole.parameters
        said.append(
            f"What decides takes {macs:.2%} of the multiply-adds and {parameters:.2%} of the parameters."
        )
    if not mixtures:
        return [*said, "No layer mixes kernels."]
    same = [one.name for one in mixtures if one.spread < SAME]
    if same:
        said.append(
            f"{len(same)} of {len(mixtures)} layers mix the same for every example, and might as well be "
            f"static: {_some(same)}."
        )
    else:
        said.append(f"All of the {len(mixtures)} layers mix differently for different examples.")
    dead = [f"{one.name} ({int(one.dead.sum())})" for one in mixtures if one.dead.any()]
    total = sum(len(one.dead) for one in mixtures)
    number = sum(int(one.dead.sum()) for one in mixtures)
    said.append(
        f"{number} of {total} kernels are never used: {_some(dead)}."
        if dead
        else f"Each of the {total} kernels is used by some example."
    )
    compared = [one for one in mixtures if one.most_alike is not None]
    alike = [one.name for one in compared if one.most_alike > ALIKE]
    if alike:
        said.append(
            f"In {len(alike)} of {len(compared)} layers two kernels hardly differ (cosine above {ALIKE}): "
            f"{_some(alike)}."
        )
    elif compared:
        said.append("In no layer are two kernels nearly the same.")
    return said


def _some(names: Sequence[str], most: int = 4) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
