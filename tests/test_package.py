"""The package's facts agree wherever they are written: version, extras, citations."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import dyn
from experiments.core.extras import EXTRAS, LABORATORY

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def list_distributions(extra):
    """The names of the distributions that an extra installs, in their normal form."""
    names = (re.match(r"[\w.-]+", line)[0] for line in PROJECT["optional-dependencies"][extra])
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def test_the_citation_has_the_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {dyn.__version__}\n" in citation


def test_the_package_is_typed():
    assert (ROOT / "dyn" / "py.typed").exists()


def test_the_modules_of_an_extra_are_those_that_it_installs():
    """So that the error about a missing module names the extra that has it."""
    owners = importlib.metadata.packages_distributions()
    for extra in ("experiments", "audio"):
        wanted = list_distributions(extra)
        for module in EXTRAS[extra]:
            found = {re.sub(r"[-_.]+", "-", name).lower() for name in owners[module]}
            assert found & wanted, module
            wanted -= found
        assert not wanted
    assert set(EXTRAS["onnx"]) <= list_distributions("onnx")
    # Whatever checks the laboratory as a whole must let an environment of the extra `onnx` pass.
    owned = {
        re.sub(r"[-_.]+", "-", name).lower() for module in LABORATORY for name in owners[module]
    }
    assert {name for name in list_distributions("experiments") if name in owned} <= (
        list_distributions("onnx")
    )


def test_every_citation_has_an_entry():
    text = (ROOT / "docs" / "citing.md").read_text(encoding="utf-8")
    entries = re.findall(r"^@\w+\{(\w+),", text, re.MULTILINE)
    cited = re.findall(r"^\| .* \| `(\w+)` \|$", text, re.MULTILINE)
    assert len(set(entries)) == len(entries) and [*cited] == [k for k in entries if k != "dyn"]
