"""Folders of runs, as training leaves them, commands up to where they would compile, and what runs share."""

import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image


@pytest.fixture(scope="module")
def compiled_once():
    """The folder of compiled programs, under the promotion that Optax needs."""
    before = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_numpy_dtype_promotion", before)


@pytest.fixture
def standard_promotion():
    """Sets the promotion that the loop runs under: Optax fails under the strict one."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def slow_writer(monkeypatch):
    """Makes every save take longer, in the background, than a few small steps."""
    # Not at once: Orbax takes a second, and few tests need it.
    from experiments.runs.checkpoints import Checkpoints

    write = Checkpoints._write_checksums

    def write_slowly(self):
        time.sleep(0.5)
        write(self)

    monkeypatch.setattr(Checkpoints, "_write_checksums", write_slowly)


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


@pytest.fixture
def size_of():
    """Returns a function: width and height of a PNG in inches; it fails if nothing is drawn."""

    from experiments.figures.style import DPI

    def measure(path):
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert len(image.convert("RGB").getcolors(2**24)) > 10
            return tuple(side / DPI for side in image.size)

    return measure


class Compiles(Exception):
    """The command would compile now."""


def stop_before_compiling(*_):
    raise Compiles


@pytest.fixture
def ask(monkeypatch, capsys, tmp_path):
    """Returns a function that runs `experiments.main` and returns the answer, or None if it would go on.

    The config that it goes on with is `ask.seen.config`.
    """
    # Not at once: the tests of data need nothing of it.
    from experiments import main as command
    from experiments.core import cli
    from experiments.train import loop as train
    from experiments.train import validate

    monkeypatch.chdir(Path(command.__file__).parents[1])
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cache = jax.config.jax_compilation_cache_dir
    loop, seen = train.train, SimpleNamespace(config=None)

    def noticed(config, workdir, **options):
        seen.config = config
        seen.train(config, workdir, **options)

    monkeypatch.setattr(train, "train", noticed)
    monkeypatch.setattr(jax.stages.Lowered, "compile", stop_before_compiling)

    def run(*words, deep=True):
        words = ["main.py", *words]
        if not any(word.startswith("--workdir") for word in words):
            words.append(f"--workdir={tmp_path / 'run'}")
        monkeypatch.setattr(sys, "argv", words)  # ml_collections reads the overrides from here
        # Optax does not pass strict promotion.
        with flagsaver.flagsaver(), jax.numpy_dtype_promotion("standard"):
            seen.train = loop if deep else lambda config, *_, **__: validate.resolve_config(config)
            with contextlib.suppress(Compiles):
                code = cli.run(command.main, words, command.__doc__, settings=command.SETTINGS)
                out, err = capsys.readouterr()
                if code == 0 and not deep:
                    return None
                assert code == 2 and out == ""
                return line_of(err)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return None

    run.seen = seen
    yield run
    jax.config.update("jax_compilation_cache_dir", cache)
    flags.FLAGS.mark_as_parsed()


def line_of(err):
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert "Traceback" not in err and len(err) < 700 and len(err.split()) > 4
    return err


@pytest.fixture
def the_line():
    """Returns a function that sees that there is one line, which says more than an exception's name."""
    return line_of
