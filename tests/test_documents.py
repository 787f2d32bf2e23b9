"""The examples of the README and of the guides run as they stand."""

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = {
    f"{path.relative_to(ROOT)}:{text[: found.start()].count(chr(10)) + 1}": found[1]
    for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
    for text in [path.read_text(encoding="utf-8")]
    for found in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
}


@pytest.mark.parametrize("place", BLOCKS)
def test_an_example_runs(place):
    # As for whoever copies it.
    with jax.numpy_dtype_promotion("standard"):
        exec(compile(BLOCKS[place], place, "exec"), {})


def test_paths_exist():
    names = {path.name for path in ROOT.rglob("tests/**/test_*.py")}
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")):
        text = path.read_text(encoding="utf-8")
        for file in re.findall(r"(?:tests|experiments|dyn)/[\w/]+\.py", text):
            # NAME.py and CONFIG.py stand for any name.
            assert (ROOT / file).exists() or Path(file).stem.isupper(), f"{path.name}: {file}"
        for name in re.findall(r"`(test_\w+\.py)`", text):
            assert name in names, f"{path.name}: {name}"


def test_links_lead_somewhere():
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
