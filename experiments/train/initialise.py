"""Starting from a network that another run, or torch, has trained."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from dyn.interop import warm_start
from dyn.layers import Warehouses
from experiments.core.errors import UserError
from experiments.runs import weights
from experiments.runs.checkpoints import read_best_step, restore_best_variables
from experiments.tasks import Task
from experiments.train.program import TrainState
from experiments.train.torch_start import trained_by_torch

Flat = dict[tuple[str, ...], Any]


def start_from_run(
    state: TrainState,
    config: ConfigDict,
    task: Task,
    num_classes: int,
    inputs: np.ndarray,
    sharding: jax.sharding.Sharding,
) -> tuple[TrainState, str]:
    """A new state with the parameters that `config.init_from` names, and what was taken over.

    It names a run, whose best parameters are taken, or a file of weights, exported here or torch's.
    Parameters of the same network are taken over as they are, those of a static network by
    `dyn.interop.warm_start`. The head is left as it was made where the classes are not as many.

    Args:
        state: the new state.
        config: the experiment.
        task: what makes its model.
        num_classes: of the data.
        inputs: of one example; only their shape matters.
        sharding: for the parameters.

    Raises:
        UserError: if there is no such run or file, or its network does not fit.
    """
    source = Path(config.init_from).expanduser()
    besides, begins = "", str(source)
    if weights.is_export(source):
        variables, _ = weights.read_weights(source)
    elif source.is_file():
        variables, besides = trained_by_torch(source, config, num_classes, inputs)
    else:
        variables = restore_best_variables(source, "--config.init_from=")
        begins = f"step {read_best_step(source):,} of {source}"
    trained = _flat({name: variables[name] for name in ("params", "batch_stats")})
    mine = _flat({"params": state.params, "batch_stats": state.batch_stats})
    left_out: Flat = {}
    if _shapes(trained) != _shapes(mine):
        head = head_of(task, num_classes, inputs)
        theirs, ours = (
            {k: v for k, v in tree.items() if _below(k, head)} for tree in (trained, mine)
        )
        if _shapes(theirs) != _shapes(ours):
            left_out = ours
            trained = {path: leaf for path, leaf in trained.items() if path not in theirs}
    wanted = {path: leaf for path, leaf in mine.items() if path not in left_out}
    taken = trained
    if trained.keys() == wanted.keys():
        _compare(trained, wanted, config.init_from)
    else:
        model = task.make_model(num_classes, spatial_axes=inputs.ndim - 1)
        start = partial(warm_start, noise=config.start.noise, warehouses=_warehouses(model))
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        try:
            taken = _flat(start(_nested(wanted), _nested(trained), key=key))
        except ValueError as error:
            raise UserError(
                f"The network cannot start from {config.init_from}: {error} Give a run of the same network, "
                "or of its static twin, with the same --config.model fields."
            ) from error
    both = _nested({**taken, **left_out})
    # Copies: a training step gives its arguments' memory away.
    params, batch_stats, average = (
        jax.device_put(jax.tree.map(jnp.array, tree), sharding)
        for tree in (
            both["params"],
            both["batch_stats"],
            both["params"] if state.average else {},
        )
    )
    words = _report(trained, mine, left_out)
    state = state.replace(params=params, batch_stats=batch_stats, average=average)
    return state, f"starts from {begins}: {words}{besides}"


def _warehouses(model: nn.Module) -> Warehouses | None:
    """What makes a network's convolutions, where they share their cells."""
    conv = getattr(model, "conv", None)
    if hasattr(model, "backbone"):  # of a segmentation
        conv = model.backbone.keywords.get("conv")
    return conv if isinstance(conv, Warehouses) else None


def check_start(config: ConfigDict, num_classes: int, inputs: np.ndarray) -> None:
    """Looks at what `config.init_from` names, so that mistakes are told before anything is compiled.

    Args:
        config: the experiment.
        num_classes: of the data.
        inputs: of one example; only their shape matters.

    Raises:
        UserError: if there is no such run or file, or if the file's weights do not fit.
    """
    source = Path(config.init_from).expanduser()
    if weights.is_export(source):
        weights.read_weights(source)
    elif source.is_file():
        trained_by_torch(source, config, num_classes, inputs)
    else:
        read_best_step(source, "--config.init_from=")


def _compare(trained: Flat, mine: Flat, run: str) -> None:
    """Raises a UserError that names the first parameters of a network that are of another shape here."""
    differing = [
        f"{'/'.join(path)} is {leaf.shape} there and {mine[path].shape} here"
        for path, leaf in sorted(
            trained.items(), key=lambda item: (item[0][0] != "params", item[0])
        )
        if leaf.shape != mine[path].shape
    ]
    if differing:
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"The network cannot start from {run}: {'; '.join(differing[:3])}{more}. Give a run of the same "
            "network, or of its static twin."
        )


def _report(trained: Flat, mine: Flat, left_out: Flat) -> str:
    """What was taken over and what was not, in words."""
    # `FDConv` keeps the Fourier transform of what a static layer calls its kernel.
    as_static = {
        path: (*path[:-1], "kernel") if path[-1] == "spectrum" else path
        for path in mine
        if path[0] == "params"
    }
    # The cells of warehouses hold kernels.
    new = [path for path, name in as_static.items() if name not in trained and path[-1] != "cells"]
    words = f"{len(as_static) - len(new)} of {len(as_static)} parameters taken over"
    if not new:
        return words
    named = [f"{'/'.join(path[1:])} {mine[path].shape}" for path in new[:6]]
    more = f" and {len(new) - 6} more" if len(new) > 6 else ""
    why = " (other classes)" if left_out else ""
    return f"{words}; new{why}: {', '.join(named)}{more}"


def head_of(task: Task, num_classes: int, inputs: np.ndarray) -> set[tuple[str, ...]]:
    """The layers whose parameters have other shapes where there is one class more, by path."""

    def shapes(number: int) -> dict[tuple[str, ...], tuple[int, ...]]:
        model = task.make_model(number, spatial_axes=inputs.ndim - 1)
        one = jax.ShapeDtypeStruct((1, *inputs.shape), inputs.dtype)
        made = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), one)
        return _shapes(_flat({"params": made["params"]}))

    mine, other = shapes(num_classes), shapes(num_classes + 1)
    return {path[:-1] for path, shape in mine.items() if other.get(path) != shape}


def _below(path: tuple[str, ...], layers: set[tuple[str, ...]]) -> bool:
    return any(path[: len(layer)] == layer for layer in layers)


def _flat(tree: Mapping[str, Any]) -> Flat:
    return traverse_util.flatten_dict(dict(tree))


def _nested(flat: Flat) -> dict[str, Any]:
    return {"params": {}, "batch_stats": {}, **traverse_util.unflatten_dict(flat)}


def _shapes(flat: Flat) -> dict[tuple[str, ...], tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}
