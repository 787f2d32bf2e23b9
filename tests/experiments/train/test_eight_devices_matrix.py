"""The laboratory's training on eight devices, in a process of its own: the numbers of one device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.matrix

HERE = Path(__file__).parent
FOLDERS = (HERE.parents[2], HERE, HERE.parent, HERE.parents[1] / "dyn")


@pytest.mark.parametrize(
    "name",
    [
        "microbatches of sharded parameters",
        pytest.param("deeplabv3plus", marks=pytest.mark.long),  # compiles for minutes
    ],
)
def test_eight_devices_have_the_numbers_of_one(name):
    settings = {
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": os.pathsep.join([*map(str, FOLDERS), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, str(HERE / "eight_devices.py"), name]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    assert set(errors) == {
        "data, auto",
        "data, explicit",
        "data x model, auto",
        "data x model, explicit",
    }
    assert max(errors.values()) <= 1, errors
