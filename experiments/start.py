"""Starting from a network that another run has trained."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from ml_collections import ConfigDict

from dyn.interop import warm_start
from experiments.checkpoint import restore_arrays
from experiments.errors import UserError
from experiments.program import TrainState


def start_from_run(
    state: TrainState, config: ConfigDict, sharding: jax.sharding.Sharding
) -> TrainState:
    """A new state with the best parameters of the run `config.start.run`.

    Parameters of the same network are taken over as they are, those of a static network by
    `dyn.interop.warm_start`.

    Raises:
        UserError: if there is no such run, or its network does not fit.
    """
    trained = best_variables(Path(config.start.run).expanduser())
    mine = {"params": state.params, "batch_stats": state.batch_stats}
    try:
        if _shapes(trained) != _shapes(mine):
            key = jax.random.fold_in(jax.random.key(config.seed), 1)
            trained = warm_start(mine, trained, noise=config.start.noise, key=key)
    except ValueError as error:
        raise UserError(
            f"The network cannot start from {config.start.run}: {error} Give a run of the same network, "
            "or of its static twin, with the same --config.model fields."
        ) from error
    # Copies: a training step gives its arguments' memory away.
    params, batch_stats, average = (
        jax.device_put(jax.tree.map(jnp.array, tree), sharding)
        for tree in (
            trained["params"],
            trained["batch_stats"],
            trained["params"] if state.average else {},
        )
    )
    return state.replace(params=params, batch_stats=batch_stats, average=average)


def best_variables(workdir: Path) -> dict[str, Any]:
    """`params` and `batch_stats` of a finished run's best evaluation.

    Raises:
        UserError: if there is no finished run.
    """
    file = workdir / "summary.json"
    if not file.exists():
        raise UserError(
            f"--config.start.run={workdir} holds no finished run (it has no summary.json): give the "
            "workdir of one."
        )
    step = json.loads(file.read_text())["best"]["step"]
    folder = workdir / "checkpoints" / str(step)
    state = restore_arrays(folder, ("params", "average", "batch_stats"))
    return {
        "params": state.get("average") or state["params"],
        "batch_stats": state.get("batch_stats") or {},
    }


def _shapes(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    flat = traverse_util.flatten_dict(dict(tree), sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}
