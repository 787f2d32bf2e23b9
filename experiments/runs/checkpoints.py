"""Checkpoints: the latest and the best, written in the background, each whole or not at all."""

import contextlib
import copy
import functools
import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from experiments.core.errors import UserError
from experiments.runs.checksums import changed_file, write_checksums
from experiments.runs.folder import finished_summary
from experiments.runs.integrity import (
    damaged_file,
    innermost,
    max_over_hosts,
    read_or_set_aside,
    refuses_writing,
    set_aside_without_metrics,
    warn,
)

NONE = -1  # no step
BESIDE_ARRAYS = (
    1_000_000  # bytes of a checkpoint that say where its arrays are, and a good deal more
)
# Orbax warns where nothing is wrong: in short runs a checkpoint often waits for the one before, and
# those between evaluations have no metrics on purpose. What it cannot write it prints with tracebacks
# before it raises it, which says all.
_NOT_SAID = (
    "Waiting for previous save to complete",
    "did not provide metrics",
    "_SignalingThread.run() raised an exception",
    "Handler Commit operations or the Commit callback",
    "Save Finalize thread",
)
logging.getLogger("absl").addFilter(
    lambda record: not any(text in str(record.msg) for text in _NOT_SAID)
)


class Checkpoints:
    """The checkpoints of a run: arrays (`state`) beside plain numbers (`progress`).

    Of those saved with metrics the two of the highest rank stay, and the two latest of all: should the
    latest turn out to be damaged, the one before and what it calls the best are there. Orbax writes under
    a temporary name and renames: what is there was complete once.
    """

    def __init__(self, directory: Path, metric: str | None = "accuracy"):
        """Opens or makes the folder; `metric` says which of two evaluations is better: see `rank`."""
        self.rank = functools.partial(rank, metric=metric)
        self._directory = directory.absolute()
        # Orbax, which reads them all to begin with, would not get over one of these.
        set_aside_without_metrics(self._directory)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                # Orbax writes the metrics beside a checkpoint only where it is told to compare
                # them; without them a run that continues would lose its best checkpoint.
                best_fn=self.rank,
                # What a process that was killed has left half written.
                cleanup_tmp_directories=True,
                # On one host, when all have written, and before the name says that it is whole.
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
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
        """Starts writing a checkpoint; one with `metrics` takes part in the choice of the best.

        Raises:
            UserError: if there is no room for it or for the one before, or the folder cannot be written.
        """
        self._make_sure_of_room(state)
        with self._storing():
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

    def _write_checksums(self) -> None:
        for folder in self._directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
            write_checksums(folder)

    def _make_sure_of_room(self, state: Any) -> None:
        """Raises a UserError where the disk is fuller than a checkpoint needs.

        Orbax comes to the same end, but with what all its threads have to say about it.
        """
        needed = BESIDE_ARRAYS + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        disk = shutil.disk_usage(self._directory)
        if disk.total and disk.free < needed:  # some file systems do not know their size
            raise UserError(
                f"A checkpoint of {needed / 1e6:.1f} MB cannot be written to {self._directory}: no space "
                f"left on device, {disk.free / 1e6:.1f} MB are free. Those before it are intact: make room, "
                "and give the same command again."
            )

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        """Says in a sentence what the storage refuses; in the background it does so a checkpoint later."""
        try:
            yield
        except Exception as error:
            if not refuses_writing(error):
                raise
            raise UserError(
                f"A checkpoint cannot be written to {self._directory} ({innermost(error)}). Those before it "
                "are intact: make room, or the folder writable, and give the same command again."
            ) from error

    def restore_latest(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Reads the newest checkpoint that can be read: (step, state, progress); None where there is none.

        One that cannot be read is named, moved to the folder `damaged`, and the one before is taken. All
        hosts come to the same one.

        Raises:
            UserError: if a checkpoint does not fit `like`, if all are damaged, or if the storage fails.
        """
        self.wait()
        while (step := max_over_hosts(max(self._manager.all_steps(), default=NONE))) != NONE:
            read = self._read_or_set_aside(step, like)
            if read is not None:
                return step, *read
        # Also where they were set aside by an earlier command: starting anew would hide the loss.
        damaged = self._directory.parent / "damaged"
        if damaged.is_dir() and any(damaged.iterdir()):
            raise UserError(
                f"No checkpoint in {self._directory} could be read; they are now in {damaged}. "
                "Start again in another --workdir."
            )
        return None

    def restore_best(self, best: dict[str, Any], like: Any) -> tuple[dict[str, Any], Any]:
        """Reads the state of the evaluation `best`: (best, state).

        Where its checkpoint is damaged or gone, the best of those that are left takes its place, with a
        warning.

        Raises:
            UserError: if there is none left, or if the storage fails.
        """
        self.wait()
        while best:
            step = best["step"]
            if step in self._manager.all_steps():
                read = self._read_or_set_aside(step, like)
                if read is not None:
                    return best, read[0]
            known = {step: self._manager.metrics(step) for step in self._manager.all_steps()}
            evaluated = {step: metrics for step, metrics in known.items() if metrics}
            left = max(evaluated, key=lambda step: (self.rank(evaluated[step]), step), default=None)
            warn(f"the checkpoint of step {step}, the best evaluation, cannot be used")
            best = {} if left is None else {"step": left, **evaluated[left]}
        raise UserError(
            f"No checkpoint with an evaluation is left in {self._directory}. Start again in another "
            "--workdir."
        )

    def _read_or_set_aside(self, step: int, like: Any) -> tuple[Any, dict[str, Any]] | None:
        compare(self._directory / str(step), like)
        read = read_or_set_aside(self._directory / str(step), lambda: self.restore(step, like))
        if read is None:
            self._manager.reload()
        return read

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Reads (state, progress) of a step; `like` gives shapes, dtypes and shardings."""
        folder = self._directory / str(step)
        if jax.process_index() == 0:
            refuse_changed(folder)
        # Not by the manager, in which a host that fails would leave the others waiting.
        state = ocp.StandardCheckpointHandler().restore(
            folder / "state", args=ocp.args.StandardRestore(like)
        )
        return state, json.loads((folder / "progress" / "metadata").read_text())

    def wait(self) -> None:
        """Returns when everything is written.

        Raises:
            UserError: if something could not be.
        """
        with self._storing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being written, and ends."""
        with self._storing():
            self._manager.close()


def refuse_changed(folder: Path) -> None:
    """Raises a ValueError if a file of a checkpoint is not what was written."""
    if file := changed_file(folder):
        raise ValueError(f"{file.name} is not what was written, by its checksum")


def compare(folder: Path, like: Any) -> None:
    """Checks that a checkpoint holds the arrays of `like`.

    Raises:
        UserError: names the first that differ, parameters before the optimiser's.
    """
    try:
        theirs = shapes_of(described(folder / "state"))
    except Exception:  # then it is damaged, which reading it will show
        return
    mine = shapes_of(like)
    differing = [
        f"{name} is {theirs.get(name, 'missing')} there and {mine.get(name, 'missing')} here"
        for name in sorted(
            {**theirs, **mine}, key=lambda name: (not name.startswith("params/"), name)
        )
        if theirs.get(name) != mine.get(name)
    ]
    if theirs and differing:
        raise UserError(
            f"The checkpoint {folder} is of another network: {'; '.join(differing[:3])}"
            f"{f'; and {len(differing) - 3} more' if len(differing) > 3 else ''}. Choose another --workdir, "
            "or the settings and data that it was made with."
        )


def described(folder: Path) -> Any:
    """What arrays a checkpoint's state consists of, by its own description."""
    return ocp.PyTreeCheckpointHandler().metadata(folder).tree


def shapes_of(state: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each array of a state, or of a checkpoint's description of one, by name."""
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): _stored(leaf).shape
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }


def _stored(leaf: Any) -> Any:
    """A random key is stored as the numbers that it consists of."""
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.eval_shape(jax.random.key_data, leaf) if is_key else leaf


def restore_arrays(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """Reads parts of a checkpoint's state, whatever they consist of, as numpy's arrays.

    Devices do not matter: a checkpoint of eight is read on one.

    Raises:
        ValueError: if one of its files is not what was written.
    """
    refuse_changed(folder)
    tree = {name: part for name, part in described(folder / "state").items() if name in names}
    arguments = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
        tree,
        is_leaf=lambda x: hasattr(x, "shape"),
    )
    return ocp.PyTreeCheckpointHandler().restore(
        folder / "state",
        args=ocp.args.PyTreeRestore(item=tree, restore_args=arguments, partial_restore=True),
    )


def rank(metrics: dict[str, float], metric: str | None) -> tuple[float, float]:
    """Which of two evaluations is better: the higher metric, then the lower loss.

    Where no metric ranks (None), all are equal, and the last is taken.
    """
    if metric is None:
        return 0.0, 0.0
    return metrics[metric], -metrics["loss"]


def with_sharding(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Gives every shape of a tree a sharding, so that a checkpoint is read for the devices of today."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def best_step(workdir: Path, flag: str = "") -> int:
    """The step of a run's best evaluation; of a run without one, that of its newest checkpoint.

    Args:
        workdir: the run's.
        flag: what the folder was given with, for messages.

    Raises:
        UserError: if there is no run, or none that has come to a checkpoint.
    """
    try:
        if summary := finished_summary(workdir):
            return summary["best"]["step"]
        steps = [
            int(folder.name)
            for folder in (workdir / "checkpoints").glob("*")
            if folder.name.isdigit()
        ]
        if not steps:
            raise UserError(
                f"{flag}{workdir} holds no run that has come to a checkpoint: give the workdir of one"
                + (", or a file of weights (.safetensors, .pth)." if flag else ".")
            )
        progress = workdir / "checkpoints" / str(max(steps)) / "progress" / "metadata"
        best = json.loads(progress.read_text()).get("best")
        return best["step"] if best else max(steps)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{flag}{workdir} cannot be read: {innermost(error)}.") from error


def best_variables(workdir: Path, flag: str = "") -> dict[str, Any]:
    """`params`, `batch_stats` and `attention` of a run's best evaluation, as it was evaluated.

    Args:
        workdir: the run's.
        flag: what the folder was given with, for messages.

    Raises:
        UserError: if there is no such run, or its checkpoint cannot be read.
    """
    folder = workdir.absolute() / "checkpoints" / str(best_step(workdir, flag))
    try:
        state = restore_arrays(folder, ("params", "average", "batch_stats", "attention"))
    except Exception as error:  # a torn file shows itself in whatever way its reader has
        raise UserError(f"{damaged_file(folder)} cannot be read: {innermost(error)}.") from error
    return {
        "params": state.get("average") or state["params"],
        "batch_stats": state.get("batch_stats") or {},
        "attention": state.get("attention") or {},
    }
