"""The paths and links in the README and in the guides lead somewhere."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
