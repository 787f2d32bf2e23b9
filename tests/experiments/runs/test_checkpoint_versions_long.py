"""A run of the oldest versions that pyproject.toml allows is continued by the newest, in two environments."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib

import pytest
from small_runs import ROOT, command

pytestmark = pytest.mark.long

TOOLS = ["pytest", "pytest-xdist", "chex"]
# Parts that use most of JAX, Flax and Orbax, and of what reads and draws.
TESTS = ["tests/dyn/layers/test_od_conv.py", "tests/experiments/runs/test_checkpoints.py"]
EPOCHS = 20  # of four steps
NO_NETWORK = "NewConnectionError|NameResolutionError|ConnectTimeout|ProxyError"


def list_requirements(oldest):
    """The requirements of the library and the laboratory, each at its lower bound or as it stands."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["experiments"] + TOOLS
    return [re.sub(r">=([\d.]+)", r"==\1", text) if oldest else text for text in wanted]


def make_environment(folder, interpreter, requirements):
    """Makes an environment and gives its Python; without a network the test is skipped."""
    subprocess.run([interpreter, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--retries=1", *requirements]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode and re.search(NO_NETWORK, done.stderr):
        pytest.skip(f"makes environments, for which pip needs a network: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    return python


def find_newest_python():
    """The newest versions of JAX need a newer Python than the oldest that is supported."""
    for name in ("python3.13", "python3.12"):
        path = shutil.which(name)
        if path and subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return path
    return sys.executable


def run(python, arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    for name in ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS"):  # of other versions
        environment.pop(name, None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([python, *arguments], cwd=ROOT, env=environment, **pipes)


def train_until_stopped(python, workdir):
    """Trains until a checkpoint is there, and stops the run as a shell or a scheduler does."""
    process = run(python, command(workdir, "odconv", epochs=EPOCHS)[1:])
    end = time.monotonic() + 1200
    checkpoints = workdir / "checkpoints"
    while process.poll() is None and not (checkpoints.is_dir() and any(checkpoints.glob("[4-9]"))):
        assert time.monotonic() < end, "the run does not begin"
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    words, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, words


def continue_run(python, workdir):
    """Continues the run to its end, and gives what it says."""
    process = run(python, command(workdir, "odconv", epochs=EPOCHS)[1:])
    words, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, words
    return words


@pytest.fixture(scope="module")
def oldest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("oldest")
    return make_environment(folder, sys.executable, list_requirements(oldest=True))


def test_the_lower_bounds_suffice(oldest):
    words, _ = run(
        oldest, ["-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", *TESTS]
    ).communicate()
    assert re.search(r"\d+ passed", words) and "failed" not in words and "error" not in words, words


def test_the_newest_versions_continue_a_run_of_the_oldest(oldest, tmp_path):
    newest = make_environment(
        tmp_path / "newest", find_newest_python(), list_requirements(oldest=False)
    )
    workdir = tmp_path / "run"
    train_until_stopped(oldest, workdir)
    before = (workdir / "metrics.jsonl").read_text().splitlines()
    assert "continues" in continue_run(newest, workdir)
    after = (workdir / "metrics.jsonl").read_text().splitlines()
    assert after[: len(before)] == before
    steps = [row["step"] for row in map(json.loads, after) if row.get("split", "train") == "train"]
    assert steps == list(range(1, 4 * EPOCHS + 1))
    assert json.loads((workdir / "summary.json").read_text())["best"]["step"] > 0
