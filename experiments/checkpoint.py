"""Checkpoints: the latest and the best, written in the background, each whole or not at all."""

import copy
import functools
import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

# Orbax warns where nothing is wrong: in short runs a checkpoint often waits for the one before, and
# those between evaluations have no metrics on purpose.
_HARMLESS = ("Waiting for previous save to complete", "did not provide metrics")
logging.getLogger("absl").addFilter(
    lambda record: not any(text in str(record.msg) for text in _HARMLESS)
)


class Checkpoints:
    """The checkpoints of a run: arrays (`state`) beside plain numbers (`progress`).

    Of those saved with metrics the one of the highest rank stays, and the latest of all. Orbax writes
    under a temporary name and renames: what is there is complete.
    """

    def __init__(self, directory: Path, metric: str = "accuracy"):
        """Opens or makes the folder; of two evaluations the one with the higher `metric` is better."""
        self.rank = functools.partial(rank, metric=metric)
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                # Orbax writes the metrics beside a checkpoint only where it is told to compare
                # them; without them a run that continues would lose its best checkpoint.
                best_fn=self.rank,
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(1),
                        policies.BestN(
                            get_metric_fn=self.rank, n=1, keep_checkpoints_without_metrics=False
                        ),
                    ]
                ),
            ),
        )

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: Any,
        progress: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Starts writing a checkpoint; one with `metrics` takes part in the choice of the best."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                # Written in the background, when the caller may have changed it already.
                progress=ocp.args.JsonSave(copy.deepcopy(progress)),
            ),
            metrics=metrics,
            force=True,
        )

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Reads (state, progress) of a step; `like` gives shapes, dtypes and shardings."""
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(like), progress=ocp.args.JsonRestore()
            ),
        )
        return restored.state, restored.progress

    def restore_arrays(self, step: int) -> dict[str, Any]:
        """Reads the state of a step as nested dictionaries of arrays, whatever it consists of."""
        args = ocp.args.Composite(state=ocp.args.StandardRestore())
        return self._manager.restore(step, args=args).state

    def wait(self) -> None:
        """Returns when everything is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being written, and ends."""
        self._manager.close()


def rank(metrics: dict[str, float], metric: str) -> tuple[float, float]:
    """Which of two evaluations is better: the higher metric, then the lower loss."""
    return metrics[metric], -metrics["loss"]


def with_sharding(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Gives every shape of a tree a sharding, so that a checkpoint is read for the devices of today."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )
