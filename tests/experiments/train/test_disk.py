"""A disk that is full and one that is read-only, for real: small file systems of the test's own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import experiments

pytestmark = pytest.mark.process

ROOT = Path(experiments.__file__).parents[1]
# As an ordinary user: in a namespace in which one may mount.
OWN_MOUNTS = ["unshare", "--user", "--map-root-user", "--mount"]
SCRIPT = """
mount -t tmpfs -o size=1500k tmpfs "$1" || exit 77
echo "full: $("$2" -m experiments.main $3 --workdir="$1/run" 2>&1 >/dev/null; echo "exit $?")"
echo "kept: $(ls "$1/run/checkpoints" | grep -v tmp | tr '\\n' ' ')"
mount -o remount,size=64m "$1"
echo "again: $("$2" -m experiments.main $3 --workdir="$1/run" 2>&1 | tail -40; ls "$1/run")"
rm "$1/run/summary.json"
mount -o remount,ro "$1"
echo "read-only: $("$2" -m experiments.main $3 --workdir="$1/run" 2>&1 >/dev/null; echo "exit $?")"
"""


def test_a_full_and_a_read_only_disk_are_explained_and_the_run_continues(tmp_path):
    if not shutil.which("unshare") or subprocess.run([*OWN_MOUNTS, "true"]).returncode:
        pytest.skip("no file systems can be mounted here")
    flags = (
        "--config=experiments/configs/base.py:smoke --config.model.depth=10 --config.model.width=4"
    )
    flags += " --config.data.limit=32 --config.batch_size=8 --config.checkpoint_every=2"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "xla")
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        [*OWN_MOUNTS, "sh", "-c", SCRIPT, "sh", str(disk), sys.executable, flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    if done.returncode == 77:
        pytest.skip("no file systems can be mounted here")
    out = done.stdout
    full, rest = out.partition("kept: ")[::2]
    kept, again = rest.partition("again: ")[::2]
    again, read_only = again.partition("read-only: ")[::2]
    assert "exit 2" in full and "no space left on device" in full and "Traceback" not in full, out
    assert "free space" in full and kept.split(), out
    assert f"from step {max(map(int, kept.split()))}" in again and "summary.json" in again, out
    assert "exit 2" in read_only and "Read-only file system" in read_only, out
    assert "Traceback" not in read_only, out
