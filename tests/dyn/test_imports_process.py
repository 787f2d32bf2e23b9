"""Importing the library loads nothing beyond what jax, flax and numpy load themselves."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

LOADED = """
import sys
import jax, numpy, flax.linen
before = {name.partition(".")[0] for name in sys.modules}
import dyn.layers, dyn.models, dyn.ops, dyn.schedules, dyn.diagnostics, dyn.interop
after = {name.partition(".")[0] for name in sys.modules}
print(*sorted(after - before))
print(*sorted(after))
"""


def run_code(code):
    """Returns what a new process prints that runs some code."""
    root = Path(__file__).parents[2]
    return subprocess.check_output([sys.executable, "-c", code], text=True, cwd=root, timeout=120)


def test_importing_the_library_loads_nothing_else():
    added, loaded = (set(line.split()) for line in run_code(LOADED).splitlines())
    assert added - set(sys.stdlib_module_names) == {"dyn"}
    # If flax ever loads one of these, `added` no longer notices that the library does.
    laboratory = {"experiments", "optax", "orbax", "grain", "matplotlib", "tensorflow_datasets"}
    assert not (laboratory | {"safetensors"}) & loaded


def test_importing_the_library_does_not_load_pallas():
    """Only the lowering for TPUs needs it, and it takes a second."""
    code = "import dyn.layers, dyn.ops, sys; print('jax.experimental.pallas.tpu' in sys.modules)"
    assert run_code(code).strip() == "False"
