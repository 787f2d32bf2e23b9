"""Runs of seconds, in this process or in others, and how two of them are compared."""

import contextlib
import json
import os
import sys
from importlib import import_module
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments.configs import odconv
from experiments.configs.shared.assemble import complete_config
from experiments.configs.shared.overrides import has_setting
from experiments.train import loop

ROOT = Path(loop.__file__).parents[2]
SMALL = {
    "model.width": 4,
    "data.limit": 32,
    "batch_size": 8,
    "epochs": 2,
    "log_every": 1,
    # Evaluations come after the 4th and the 8th of eight steps: some checkpoints lie between.
    "checkpoint_every": 3,
    # So that the plateau and the early stopping have a state to lose.
    "temperature.epochs": 1,
    "plateau.patience": 1,
    "auxiliary.epochs": 1,
    # Recordings, whose smoke runs are on made-up songs.
    "audio.picture": "linear",  # the quickest to draw
    "audio.height": 32,
    "audio.width": 32,
    "gan.widths": (8, 4, 4, 4),
    "autoencoder.widths": (4, 4, 4, 6),
}


def small(config_file=odconv, argument="digits,smoke", **changes):
    config = config_file.get_config(argument)
    return change(config, _settings(config, changes))


def change(config, changes):
    """Applies changes by dotted path, first those that decide which settings there are."""
    config = config.copy_and_resolve_references()
    layers = {path: fields for path, fields in changes.items() if isinstance(fields, dict)}
    with config.unlocked():
        for path in ("task", "data.name", "model.network", "conv.name"):
            if path in changes:
                config.update_from_flattened_dict({path: changes[path]})
        for section, fields in layers.items():
            config[section] = fields
    config = complete_config(config)
    rest = {path: value for path, value in changes.items() if path not in layers}
    config.update_from_flattened_dict(rest)
    return config


def command(workdir, name, argument="digits,smoke", **changes):
    """The command that trains `small` of a config, as a person types it."""
    config = import_module(f"experiments.configs.{name}").get_config(argument)
    return [
        *(sys.executable, "-m", "experiments.main", f"--workdir={workdir}"),
        f"--config=experiments/configs/{name}.py:{argument}",
        *(f"--config.{key}={value}" for key, value in _settings(config, changes).items()),
    ]


def _settings(config, changes):
    """Returns those of `SMALL` that the config has, and the changes."""
    return {key: value for key, value in SMALL.items() if has_setting(config, key)} | changes


def environment(cache, devices=None):
    """Returns the environment in which another process computes what this one does."""
    return {
        **os.environ,
        # Beside the flags of this process: other ones would round differently.
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
        f"--xla_force_host_platform_device_count={devices or jax.device_count()}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


class Interrupted(Exception):
    """Stands for anything that ends a run in the middle."""


@contextlib.contextmanager
def interrupted_before(step):
    """Ends the run that is trained in a `with` before it takes the batch of `step`, counted from 0."""
    real = loop.pipeline.train_batches

    def batches(*args, start_step, **options):
        for number, batch in enumerate(real(*args, start_step=start_step, **options), start_step):
            if number == step:
                raise Interrupted
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.pipeline, "train_batches", batches)
        with pytest.raises(Interrupted):
            yield


def write_series(folder, examples, length):
    """Writes a UCR set named Toy of two classes, and returns its folder."""
    folder, rng = folder / "Toy", np.random.default_rng(0)
    folder.mkdir()
    for part in ("TRAIN", "TEST"):
        label = np.arange(examples) % 2
        series = rng.normal(size=(examples, length)) + label[:, None] * np.sin(np.arange(length))
        table = np.column_stack([label + 1, series])
        np.savetxt(folder / f"Toy_{part}.tsv", table, delimiter="\t", fmt="%.4f")
    return str(folder)


def rows(workdir):
    file = workdir / "metrics.jsonl"
    if not file.exists():
        return []
    # Whoever looks while a run goes on may see half of the last line.
    return [json.loads(line) for line in file.read_text().splitlines(True) if line[-1] == "\n"]


def steps_kept(workdir):
    return sorted(int(folder.name) for folder in (workdir / "checkpoints").iterdir())


def saved_state(workdir, step):
    # On one device, whatever it was saved from.
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        folder = (workdir / "checkpoints" / str(step) / "state").absolute()
        args = ocp.args.StandardRestore(fallback_sharding=here)
        state = checkpointer.restore(folder, args=args)
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    plain = jax.random.key_data
    return {
        jax.tree_util.keystr(path): np.asarray(
            plain(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        )
        for path, x in leaves
    }


def without_times(summary):
    times = ("seconds", "compile_seconds", "step_seconds", "examples_per_second")
    return {key: value for key, value in summary.items() if key not in times}


def assert_same_run(workdir, expected):
    """Two runs are bit for bit the same: parameters, metrics, optimiser, statistics."""
    summary, other = (
        json.loads((folder / "summary.json").read_text()) for folder in (workdir, expected)
    )
    assert summary["params_sha256"] == other["params_sha256"]
    assert without_times(summary) == without_times(other)
    ours, theirs = ((folder / "metrics.jsonl").read_bytes() for folder in (workdir, expected))
    assert ours == theirs
    assert steps_kept(workdir) == steps_kept(expected)
    for step in steps_kept(expected):
        ours, theirs = saved_state(workdir, step), saved_state(expected, step)
        assert ours.keys() == theirs.keys() and any("opt_state" in path for path in ours)
        for path, values in theirs.items():
            np.testing.assert_array_equal(ours[path], values, err_msg=path)


def assert_near_run(workdir, expected, tolerance=1e-5):
    """Two runs on unequal devices have the same rows, up to rounding."""
    ours, theirs = rows(workdir), rows(expected)
    places = [[(row["step"], row["split"]) for row in found] for found in (ours, theirs)]
    assert places[0] == places[1]
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine["loss"], other["loss"], 0, tolerance, err_msg=str(mine))
