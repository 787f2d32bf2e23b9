"""A program that uses the library is checked against its types, as py.typed promises."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
PROGRAM = """
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import dyn
from dyn.layers import ODConv
from dyn.models import ResNet18
from dyn.schedules import set_temperature

version: str = dyn.__version__
conv = ODConv(features=8, kernel_size=(3, 3), num_kernels=4, attention_norm="layer")
net = ResNet18(num_classes=10, conv=partial(ODConv, num_kernels=4))
variables = net.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)))
colder: dict[str, Any] = dict(set_temperature(variables, 30.0))
logits = net.apply(colder, jnp.ones((1, 32, 32, 3)))
"""
MISTAKES = {
    'ODConv(features="eight", kernel_size=(3, 3))': "bad-argument-type",
    "ODConv(8, (3, 3), kernels=4)": "unexpected-keyword",
    "set_temperature(variables)": "missing-argument",
    "number: int = dyn.__version__": "bad-assignment",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a program, and beside it the library as it is installed."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "dyn", folder / "site" / "dyn")
    (folder / "program").mkdir()
    (folder / "program" / "pyrefly.toml").write_text('project-includes = ["*.py"]\n')
    return folder


def check_types(project, text):
    """The exit code and the output of pyrefly about a program."""
    program = project / "program" / "main.py"
    program.write_text(text)
    packages = [str(project / "site"), *(p for p in sys.path if p.endswith("site-packages"))]
    line = [sys.executable, "-m", "pyrefly", "check", "--output-format=min-text"]
    line += [word for path in packages for word in ("--site-package-path", path)]
    done = subprocess.run(
        line, cwd=program.parent, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_a_correct_program_has_no_errors(project):
    code, said = check_types(project, PROGRAM)
    assert code == 0, said


def test_mistakes_are_found(project):
    code, said = check_types(project, PROGRAM + "\n".join(MISTAKES))
    assert code == 1
    for kind in MISTAKES.values():
        assert f"[{kind}]" in said, said
