"""On eight devices no layer gathers a sharded batch, and work falls with the number of devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sharded_steps import CASES

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module", params=["explicit", "auto"])
def on_eight_devices(request):
    """Returns the report of a process with eight devices, for each type of axes."""
    settings = {
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, str(ROOT / "tests/dyn/sharded_steps.py"), request.param]
    done = subprocess.run(
        command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_no_layer_gathers_and_work_falls(name, on_eight_devices):
    """With inputs large enough for other lowerings than on four devices."""
    report = on_eight_devices[name]
    assert report["reduces"] == [4, 8]
    assert not report["gathers"]
    alone, *shares = (report["flops"][str(devices)] for devices in (1, 4, 8))
    assert shares == pytest.approx([alone / 4, alone / 8], rel=0.02)


def test_a_train_step_gathers_nothing(on_eight_devices):
    assert on_eight_devices["network"] == {"reduces": True, "gathers": []}
