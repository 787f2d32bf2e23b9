"""Commands in processes of their own: help, mistakes, signals, and an export in another program."""

import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from finished_runs import config_with, write_finished
from small_runs import ROOT

from experiments.inference.export import export
from experiments.load import load

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("standard_promotion")]

ODCONV = "--config=experiments/configs/odconv.py:smoke"
COMMANDS = (
    "main", "study", "augmentation", "report", "predict", "embed", "generate", "export", "inspect",
)  # fmt: skip
ELSEWHERE = """
import sys
import jax, numpy as np
from jax import export

folder = sys.argv[1]
model = export.deserialize(bytearray(open(f"{folder}/model.stablehlo", "rb").read()))
pictures = np.load(f"{folder}/pictures.npy")
for batch in (1, 3, 32):
    np.save(f"{folder}/{batch}.npy", model.call(pictures[:batch]))
assert model.platforms == ("cpu", "cuda", "tpu")
assert not {"flax", "dyn", "experiments"} & set(sys.modules)
"""


def run_command(module, *words):
    line = [sys.executable, "-m", f"experiments.{module}", *words]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=180)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name):
    code, out, err = run_command(name, "--help")
    assert (code, err) == (0, "") and f"python -m experiments.{name}" in out


def test_a_page_of_help_may_be_cut_by_its_reader():
    line = f"{sys.executable} -m experiments.main --help | head -n 1"
    done = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert (done.stdout, done.stderr) == ("Trains one experiment, or continues it.\n", "")


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["main", "--config=experiments/configs/odcon.py"], "did you mean 'odconv'?"),
        (["main", ODCONV, "--config.epochs=None", "--debug"], "whole number"),
        (["study", "--configs=bas"], "'base'"),
        (["report", "/nowhere"], "/nowhere"),
        (["report", "{runs}", "--out={runs}/file"], "cannot be written"),
        (["report", "{runs}", "--out"], "out"),
        (["report", "{runs}", "--output=out"], "--out"),
        (["benchmarks.train_step", "--layers=odcnv"], "'odconv'"),
    ],
)
def test_mistakes(words, fragment, tmp_path, the_line):
    (tmp_path / "file").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "error.txt").write_text("out of luck")
    code, out, err = run_command(*(word.replace("{runs}", str(tmp_path)) for word in words))
    assert (code, out) == (2, "")
    *trace, line = err.splitlines(keepends=True)
    assert fragment in the_line(line)
    assert bool(trace) == ("--debug" in words)


def test_stablehlo_runs_in_a_program_with_jax_alone(tmp_path, rng):
    pictures = rng.integers(0, 256, (32, 8, 8, 1), np.uint8)
    np.save(tmp_path / "pictures.npy", pictures)
    write_finished(tmp_path / "run", config_with(), "abc", (8, 8, 1))
    trained = load(tmp_path / "run")
    export(trained, "stablehlo", tmp_path / "model.stablehlo")
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path)]
    subprocess.run(command, check=True, timeout=180, cwd=tmp_path)
    expected = trained(pictures)
    for batch in (1, 3, 32):
        probabilities = jax.nn.softmax(np.load(tmp_path / f"{batch}.npy"))
        np.testing.assert_allclose(probabilities, expected[:batch], 1e-5, 1e-5, err_msg=str(batch))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_saves_its_step_after_a_signal(tmp_path, number):
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "experiments.main", f"--workdir={workdir}"),
            *("--config=experiments/configs/base.py:smoke", "--config.epochs=100000"),
            *("--config.model.width=4", "--config.early_stopping.patience=0"),
        ],
        cwd=ROOT,
        env={**os.environ, "HOME": str(tmp_path), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 600
        rows = workdir / "metrics.jsonl"
        while not (rows.exists() and rows.stat().st_size) and process.poll() is None:
            assert time.monotonic() < deadline, "the run does not begin"
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 128 + number, (out, err)
    # Nothing else either: no warnings of the libraries, no complaints of threads at the end.
    words = r"\nstopped after step ([\d,]+) \(saved\); the same command continues there\n"
    step = int(re.fullmatch(words, err)[1].replace(",", ""))
    assert step == max(int(p.name) for p in (workdir / "checkpoints").iterdir())
