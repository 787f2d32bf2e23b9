"""The examples of the README and of the guides run as they stand."""

import re
from pathlib import Path

import jax
import pytest

pytestmark = pytest.mark.matrix

ROOT = Path(__file__).parents[1]
BLOCKS = {
    f"{path.relative_to(ROOT)}:{text[: found.start()].count(chr(10)) + 1}": found[1]
    for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")))
    for text in [path.read_text(encoding="utf-8")]
    for found in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
}


@pytest.mark.parametrize("place", BLOCKS)
def test_an_example_runs(place):
    # As for whoever copies it.
    with jax.numpy_dtype_promotion("standard"):
        exec(compile(BLOCKS[place], place, "exec"), {})
