"""The paths and links in the README and in the guides lead somewhere, and layers have their pages."""

import inspect
import re
from pathlib import Path
from urllib.parse import urlsplit

import flax.linen as nn

from dyn import layers
from experiments.figures import schematics

ROOT = Path(__file__).parents[1]


def test_paths_exist():
    names = {path.name for path in ROOT.rglob("tests/**/test_*.py")}
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")):
        text = path.read_text(encoding="utf-8")
        for file in re.findall(r"(?:tests|experiments|dyn)/[\w/]+\.py", text):
            # NAME.py and CONFIG.py stand for any name.
            assert (ROOT / file).exists() or Path(file).stem.isupper(), f"{path.name}: {file}"
        for name in re.findall(r"`(test_\w+\.py)`", text):
            assert name in names, f"{path.name}: {name}"


def test_links_lead_somewhere():
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_links_to_other_sites_are_addresses():
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")):
        for link in re.findall(r"\]\((https?:[^)]*)\)", path.read_text(encoding="utf-8")):
            address = urlsplit(link)
            assert address.scheme == "https" and "." in address.netloc, f"{path.name}: {link}"


def test_every_layer_has_a_page_with_a_picture():
    pages = {path.stem: path.read_text(encoding="utf-8") for path in ROOT.glob("docs/layers/*.md")}
    index = pages.pop("README")
    assert pages.keys() | {"concept"} == schematics.LAYERS.keys()
    assert {path.stem for path in ROOT.glob("docs/layers/*.svg")} == schematics.LAYERS.keys()
    for name, text in pages.items():
        assert f"]({name}.svg)" in text and f"]({name}.md)" in index, name
    # Makers of other layers are described where these are.
    makers = {"ReplacedLayers", "Warehouses"}
    for name in set(layers.__all__) - makers:
        layer = getattr(layers, name)
        if inspect.isclass(layer) and issubclass(layer, nn.Module):
            assert any(f"[`{name}`](../../dyn/layers/" in text for text in pages.values()), name


def test_figures_of_a_report_are_called_as_in_the_guide():
    guide = (ROOT / "docs" / "reading_a_report.md").read_text(encoding="utf-8")
    report = (ROOT / "experiments/reports/report.py").read_text(encoding="utf-8")
    drawn = set(re.findall(r'draw\(\s*"(\w+)"', report))
    assert drawn <= set(re.findall(r"`(\w+)\.png`", guide)) <= drawn | {"attention"}
    figures = (ROOT / "experiments/reports/map_figures.py").read_text(encoding="utf-8")
    for title in re.findall(r'`\w+\.png` \("([^"]+)"\)', guide.replace("\n", " ")):
        assert f'"{title}"' in figures


def test_the_study_is_named_where_it_is_mentioned():
    folders = ("docs", "experiments/configs", "dyn")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.*")]
    for path in (ROOT / "README.md", *paths):
        if path.suffix not in (".md", ".py"):
            continue
        text = path.read_text(encoding="utf-8")
        mention = re.search(r"\b[Tt]he study('s)?\b(?! that)", text)
        assert not mention or "Sherawat" in text, f"{path}: which study?"
