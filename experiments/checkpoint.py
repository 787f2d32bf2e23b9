"""Checkpoints: the latest and the best, written in the background, each whole or not at all."""

import copy
import functools
import logging
import sys
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from experiments.errors import UserError

# Orbax warns where nothing is wrong: in short runs a checkpoint often waits for the one before, and
# those between evaluations have no metrics on purpose.
_HARMLESS = ("Waiting for previous save to complete", "did not provide metrics")
logging.getLogger("absl").addFilter(
    lambda record: not any(text in str(record.msg) for text in _HARMLESS)
)


class Checkpoints:
    """The checkpoints of a run: arrays (`state`) beside plain numbers (`progress`).

    Of those saved with metrics the two of the highest rank stay, and the two latest of all: should the
    latest turn out to be damaged, the one before and what it calls the best are there. Orbax writes under
    a temporary name and renames: what is there was complete once.
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
                        policies.LatestN(2),
                        policies.BestN(
                            get_metric_fn=self.rank, n=2, keep_checkpoints_without_metrics=False
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

    def restore_latest(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Reads the newest checkpoint that can be read: (step, state, progress); None where there is none.

        One that cannot be read is named, moved to the folder `damaged`, and the one before is taken.

        Raises:
            UserError: if a checkpoint holds other parameters than `like`, or all are damaged.
        """
        self._manager.wait_until_finished()
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return step, *self.restore(step, like)
            except Exception as error:  # a torn file shows itself in whatever way its reader has
                self._compare(step, like)
                damaged = set_aside(self._manager.directory / str(step))
                self._manager.reload()
                reason = " ".join(str(error).split())[:200]
                print(
                    f"warning: checkpoint {step} is damaged ({reason}); it is now {damaged}, and the one "
                    "before is used.",
                    file=sys.stderr,
                )
        if steps:
            raise UserError(
                f"No checkpoint in {self._manager.directory} could be read; they are now in "
                f"{damaged.parent}. Start again in another --workdir."
            )
        return None

    def _compare(self, step: int, like: Any) -> None:
        """Raises a UserError that names the first parameters of a checkpoint that do not fit."""
        try:
            saved = self._manager.item_metadata(step).state
            theirs = _parameter_shapes(saved)
        except Exception:  # then its description is damaged too
            return
        mine = _parameter_shapes(like)
        differing = [
            f"{name} is {theirs.get(name, 'missing')} there and {mine.get(name, 'missing')} here"
            for name in sorted({**theirs, **mine})
            if theirs.get(name) != mine.get(name)
        ]
        if theirs and differing:
            raise UserError(
                f"The checkpoint {self._manager.directory / str(step)} is of another network: "
                f"{'; '.join(differing[:3])}{', and more' if len(differing) > 3 else ''}. Choose another "
                "--workdir, or the settings and data that it was made with."
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


def set_aside(folder: Path) -> Path:
    """Moves a checkpoint to `damaged` beside the folder of checkpoints; returns where it is now."""
    target = folder.parent.parent / "damaged" / folder.name
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{folder.name}-{number}")
    target.parent.mkdir(exist_ok=True)
    return Path(folder).rename(target)


def _parameter_shapes(state: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of a state, or of a checkpoint's description of one, by name."""
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda x: hasattr(x, "shape"))
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }
    return {name: shape for name, shape in named.items() if name.startswith("params/")}


def rank(metrics: dict[str, float], metric: str) -> tuple[float, float]:
    """Which of two evaluations is better: the higher metric, then the lower loss."""
    return metrics[metric], -metrics["loss"]


def with_sharding(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Gives every shape of a tree a sharding, so that a checkpoint is read for the devices of today."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )
