import json

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments.core import cli


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Returns a function that runs a benchmark in this process: (exit code, output, errors)."""

    def run(module, *words):
        words = [module.__name__, f"--out={tmp_path}", *words]
        # The flags of a process are global; this restores their values.
        with flagsaver.flagsaver(), jax.numpy_dtype_promotion("standard"):
            code = cli.run(module.main, words, module.__doc__)
        return code, *capsys.readouterr()

    yield run
    flags.FLAGS.mark_as_parsed()


@pytest.fixture
def read_results(tmp_path):
    """Returns a function that reads the numbers of a benchmark, and checks that its plot is there."""

    def read(name):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        return json.loads((tmp_path / f"{name}.json").read_text())

    return read
