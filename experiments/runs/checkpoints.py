"""Checkpoints: the latest and the best, written in the background, each complete or absent."""

import concurrent.futures
import contextlib
import copy
import functools
import logging
import math
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from experiments.core.differences import describe_differences
from experiments.core.errors import UserError
from experiments.core.hosts import find_lost_process, max_over_hosts
from experiments.runs.folder import check_name
from experiments.runs.integrity import (
    describe_cause,
    find_damaged_file,
    restore_or_set_aside,
    set_aside_without_metrics,
    warn,
    write_checksums,
)
from experiments.runs.schema import CHECKPOINTS, list_steps, read_progress, read_summary

NO_STEP = -1
# Seconds, a hundred years: Orbax compares times of a clock that may jump, and would give up a save.
NO_TIMEOUT = 100 * 365 * 24 * 3600
METADATA_BYTES = 1_000_000  # a generous bound on everything in a checkpoint but its arrays


class Checkpoints:
    """The checkpoints of a run: arrays (`state`) beside plain numbers (`progress`).

    Of the checkpoints saved with metrics the two of the highest rank are kept, and of all the two latest: if
    the latest turns out to be damaged, the one before it, and what that one calls the best, are still there.
    Orbax writes under a temporary name and renames: what has a step for a name is complete. Leaving a `with`
    waits for what is being written.
    """

    def __init__(self, directory: Path, metric: str | None = "accuracy"):
        """Opens or creates the folder; `metric` ranks evaluations, see `rank_evaluation`."""
        self.rank = functools.partial(rank_evaluation, metric=metric)
        self._directory = directory.absolute()
        # Orbax logs warnings about what is meant here (checkpoints without metrics, waiting for the one
        # before) and tracebacks of errors that it also raises.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        ignore_closed_loops()
        check_name(directory.parent, writing=True)
        set_aside_without_metrics(self._directory, metric)
        best = policies.BestN(get_metric_fn=self.rank, n=2, keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                # Orbax stores metrics only if it is told to compare them; without them a run that
                # continues would lose its best checkpoint.
                best_fn=self.rank,
                # Remove what a killed process left half written.
                cleanup_tmp_directories=True,
                # Runs on one host, after all have written and before the folder gets its final name.
                async_options=ocp.AsyncOptions(
                    timeout_secs=NO_TIMEOUT, post_finalization_callback=self._write_checksums
                ),
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(2), best]),
            ),
        )

    def is_empty(self) -> bool:
        """Returns whether nothing has been saved yet."""
        return not self._manager.all_steps()

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
        # Orbax would wait for the one before anyway. Once that is complete, an older one may be gone.
        self.wait()
        self._check_disk_space(state)
        with self._explain_write_errors():
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

    def _check_disk_space(self, state: Any) -> None:
        """Raises a UserError if the disk has less room than a checkpoint needs."""
        needed = METADATA_BYTES + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        disk = shutil.disk_usage(self._directory)
        if disk.total and disk.free < needed:  # some file systems report no size
            raise UserError(
                f"A checkpoint of {needed / 1e6:.1f} MB cannot be written to {self._directory}: no space "
                f"left on device, {disk.free / 1e6:.1f} MB are free. The earlier checkpoints are intact: "
                "free space, then run the same command again."
            )

    @contextlib.contextmanager
    def _explain_write_errors(self) -> Iterator[None]:
        """Turns an error in writing into one sentence; one in the background surfaces a checkpoint later."""
        try:
            yield
        # tensorstore raises ValueError for a full disk.
        except (OSError, RuntimeError, ValueError) as error:
            if lost := find_lost_process(error):  # no save ends without all processes
                raise lost from None
            raise UserError(
                f"A checkpoint cannot be written to {self._directory} ({describe_cause(error)}). The earlier "
                "checkpoints are intact: free space or make the folder writable, then run the same command "
                "again."
            ) from error

    def restore_latest(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Reads the newest intact checkpoint: (step, state, progress), or None if there are none.

        A damaged one is named, moved to the folder `damaged`, and the one before it is taken. All hosts agree
        on the same one.

        Raises:
            UserError: if a checkpoint does not fit `like`, if all are damaged, or if the storage fails.
        """
        self.wait()
        while (step := max_over_hosts(max(self._manager.all_steps(), default=NO_STEP))) != NO_STEP:
            restored = self._restore_or_set_aside(step, like)
            if restored is not None:
                return step, *restored
        # Also if an earlier command set them aside: starting from scratch would hide the loss.
        damaged = self._directory.parent / "damaged"
        if damaged.is_dir() and any(damaged.iterdir()):
            raise UserError(
                f"No checkpoint in {self._directory} could be read; they are now in {damaged}. "
                "Start again in another --workdir."
            )
        return None

    def restore_best(self, best: dict[str, Any], like: Any) -> tuple[dict[str, Any], Any]:
        """Reads the state of the evaluation `best`: (best, state).

        If its checkpoint is damaged or gone, the best of those left takes its place, with a warning.

        Raises:
            UserError: if none is left, or if the storage fails.
        """
        self.wait()
        while best:
            step = best["step"]
            if step in self._manager.all_steps():
                restored = self._restore_or_set_aside(step, like)
                if restored is not None:
                    return best, restored[0]
            warn(f"the checkpoint of step {step}, the best evaluation, cannot be used")
            best = self._find_best()
        raise UserError(
            f"No checkpoint with an evaluation is left in {self._directory}. Start again in another "
            "--workdir."
        )

    def _find_best(self) -> dict[str, Any]:
        """Returns the step and the metrics of the best evaluation with a checkpoint; {} if there is none."""
        evaluations = [
            {"step": step, **metrics}
            for step in self._manager.all_steps()
            if (metrics := self._manager.metrics(step))
        ]
        return max(evaluations, key=lambda one: (self.rank(one), one["step"]), default={})

    def _restore_or_set_aside(self, step: int, like: Any) -> tuple[Any, dict[str, Any]] | None:
        folder = self._directory / str(step)
        check_structure(folder, like)
        restored = restore_or_set_aside(folder, lambda: self.restore(step, like))
        if restored is None:
            self._manager.reload()
        return restored

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Reads (state, progress) of a step; `like` gives shapes, dtypes and shardings."""
        folder = self._directory / str(step)
        # Not through the manager, in which a host that fails would leave the others waiting.
        state = ocp.StandardCheckpointHandler().restore(
            folder / "state", args=ocp.args.StandardRestore(like)
        )
        return state, read_progress(folder)

    def wait(self) -> None:
        """Waits until everything is written; a failure is a UserError."""
        with self._explain_write_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being written, and closes the folder."""
        with self._explain_write_errors():
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Closes the folder; after an error, a failure to write is a warning and hides nothing."""
        if error is None:
            self.close()
            return
        if find_lost_process(error):
            return  # without the other process a save never ends
        # In a thread of its own: here Python would make `error` the cause of the failure.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            failure = thread.submit(self.close).exception()
        if failure and str(failure) != str(error):
            warn(" ".join(str(failure).split()).removesuffix("."))


def check_structure(folder: Path, like: Any) -> None:
    """Checks that a checkpoint holds the arrays of `like`.

    Raises:
        UserError: names the first arrays that differ, parameters before the optimizer's state.
    """
    # If a coroutine of Orbax fails it drops the others, and Python warns.
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        try:
            old = list_shapes(read_structure(folder / "state"))
        except Exception:  # a damaged checkpoint is reported when it is read
            return
    new = list_shapes(like)
    parameters_first = sorted({*old, *new}, key=lambda n: (not n.startswith("params/"), n))
    template = "{name} is {old} there and {new} here"
    differences = describe_differences(
        old, new, template=template, names=parameters_first, missing="missing", limit=3
    )
    if old and differences:
        raise UserError(
            f"The checkpoint {folder} belongs to another network: {differences}. Choose another --workdir, "
            "or the settings and data that it was made with."
        )


def read_structure(folder: Path) -> Any:
    """Reads the tree of arrays that a checkpoint's state consists of, without their values."""
    return ocp.PyTreeCheckpointHandler().metadata(folder).tree


def list_shapes(state: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each array of a state, or of its structure in a checkpoint, by name."""
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): _stored_form(leaf).shape
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }


def _stored_form(leaf: Any) -> Any:
    """Returns an array as Orbax stores it: a random key as its numbers."""
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.eval_shape(jax.random.key_data, leaf) if is_key else leaf


def restore_arrays(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """Reads the named parts of a checkpoint's state as NumPy arrays, whatever devices it was saved on.

    Parts that the state lacks are left out.

    Raises:
        ValueError: if a file is missing or differs from its checksum.
    """
    ignore_closed_loops()
    if file := find_damaged_file(folder):
        raise ValueError(f"{file} is damaged: it differs from its checksum")
    structure = read_structure(folder / "state")
    tree = {name: part for name, part in structure.items() if name in names}
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    arguments = jax.tree.map(lambda _: as_numpy, tree, is_leaf=lambda x: hasattr(x, "shape"))
    return ocp.PyTreeCheckpointHandler().restore(
        folder / "state",
        args=ocp.args.PyTreeRestore(item=tree, restore_args=arguments, partial_restore=True),
    )


def ignore_closed_loops() -> None:
    """Keeps Python from printing a traceback for each array that ends after Orbax has given up.

    Orbax raises the error of the first array that cannot be written or read, and closes its event loop. The
    other arrays end later, and tensorstore reports that to the closed loop.
    """
    show = sys.unraisablehook
    if getattr(show, "ignores_closed_loops", False):
        return

    def show_others(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    show_others.ignores_closed_loops = True  # pyrefly: ignore
    sys.unraisablehook = show_others


def rank_evaluation(metrics: dict[str, float], metric: str | None) -> tuple[float, float]:
    """Returns a sort key: the higher `metric` is better, then the lower loss.

    Without a metric (None) all evaluations are equal, so that the last one is taken.
    """
    if metric is None:
        return 0.0, 0.0
    value, loss = metrics.get(metric), metrics.get("loss")
    return -math.inf if value is None else value, -math.inf if loss is None else -loss


def with_sharding(tree: Any, sharding: jax.sharding.Sharding | None) -> Any:
    """Gives every shape in a tree a sharding, so that a checkpoint is restored onto today's devices."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def read_best_step(workdir: Path, flag: str = "") -> int:
    """Returns the step of a run's best evaluation, or else that of its newest checkpoint.

    Messages begin with `flag`, which named the folder.

    Raises:
        UserError: if the folder holds no run with a checkpoint.
    """
    try:
        if (summary := read_summary(workdir)) and summary.get("best"):
            return summary["best"]["step"]
        steps = list_steps(workdir)
        if not steps:
            hint = ", or a file of weights (.safetensors, .pth)" if flag else ""
            raise UserError(
                f"{workdir} holds no run with a checkpoint: give the workdir of one{hint}."
            )
        best = read_progress(workdir / CHECKPOINTS / str(steps[-1])).get("best")
        return best["step"] if best else steps[-1]
    except UserError as error:
        raise UserError(f"{flag}{error}") from error
    except OSError as error:
        raise UserError(f"{flag}{workdir} cannot be read: {describe_cause(error)}.") from error


def restore_best_variables(workdir: Path, flag: str = "") -> dict[str, Any]:
    """Reads `params`, `batch_stats` and `attention` of a run's best evaluation, as they were evaluated.

    If the run keeps an average, the parameters are the averaged ones. Messages begin with `flag`.

    Raises:
        UserError: if the folder holds no run, or its checkpoint cannot be read.
    """
    check_name(workdir)
    folder = workdir.absolute() / CHECKPOINTS / str(read_best_step(workdir, flag))
    if not folder.is_dir():
        raise UserError(
            f"{flag}{folder} is missing: the checkpoint of the best evaluation, without which there is no "
            "network. Put it back, or train again in another --workdir."
        )
    try:
        state = restore_arrays(folder, ("params", "average", "batch_stats", "attention"))
    except Exception as error:  # readers of torn files raise whatever they come across
        raise UserError(f"{flag}{folder} cannot be read: {describe_cause(error)}.") from error
    variables = {name: state.get(name) or {} for name in ("params", "batch_stats", "attention")}
    average = state.get("average") or {}
    # Until November 2026 runs averaged parameters alone.
    return variables | (average if "params" in average or not average else {"params": average})
