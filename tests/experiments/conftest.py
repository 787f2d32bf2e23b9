"""Folders of runs, as training leaves them, and what runs in tests share."""

import json
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Compiled programs are kept for a module: runs that continue ask for the same ones."""
    folder = tmp_path_factory.mktemp("xla")
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        # Optax does not pass strict promotion.
        "jax_numpy_dtype_promotion": "standard",
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def write_run(tmp_path):
    """Writes a finished run below `tmp_path / "runs"` and gives its folder.

    `test` adds test metrics, keywords replace or add what is in the summary, and `without` names what is not.
    """

    def write(
        config="base",
        accuracy=0.9,
        seed=0,
        fold=None,
        dataset="digits",
        test=(),
        without=(),
        **summary,
    ):
        place = f"{config}-{dataset}-{seed}" if fold is None else f"{config}-{dataset}-fold{fold}"
        folder = Path(tmp_path, "runs", place)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"name": config, "dataset": dataset, "seed": seed, "conv": {"name": config}}
        settings |= {"data": {"fold": -1 if fold is None else fold}, "batch_size": 32}
        rows = [
            {"step": step, "split": split, "loss": 1 / step, "accuracy": accuracy - 0.1 / step}
            for step in (10, 20)
            for split in ("train", "validation")
        ]
        written = {
            "config": config,
            "dataset": dataset,
            "seed": seed,
            "fold": fold,
            "baseline": "base",
            "label": config,
            "metric": "accuracy",
            "test": {"loss": 0.5, "accuracy": accuracy, **dict(test)},
            "best": {"step": 20},
            "steps": 20,
            "parameters": 1_234_567,
            "macs": 2_000_000,
            "xla_flops_per_step": 3e9,
            "batch_size": 32,
            "step_seconds": 0.02,
            "examples_per_second": 1600.0,
            "compile_seconds": 1.5,
            "seconds": 60.0,
            "examples": {"train": 100, "test": 20},
            "devices": ["cpu"],
            "versions": {"jax": "1.2.3"},
            **summary,
        }
        written = {name: value for name, value in written.items() if name not in without}
        (folder / "config.json").write_text(json.dumps(settings))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "summary.json").write_text(json.dumps(written))
        return folder

    return write
