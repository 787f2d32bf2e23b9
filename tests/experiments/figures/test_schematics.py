"""The pictures of the layers are small SVGs, the same each time."""

from xml.etree import ElementTree

from experiments.figures import schematics


def test_a_picture_is_the_same_each_time(tmp_path):
    for file in ("one.svg", "other.svg"):
        schematics.save_schematic("odconv", tmp_path / file)
    text = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "other.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    texts = {
        "".join(element.itertext()).strip() for element in root.iter() if "text" in element.tag
    }
    assert {*schematics.TITLES, "kernels", "filters"} <= texts
    assert len(text) < 30_000


def test_numbers_are_shortened_and_sizes_kept():
    text = '<svg width="518.4pt">\n  <g id="a">\n    <path d="M 0.123456 2.00"/><!-- x -->\n  </g>\n</svg>\n'
    assert schematics.shorten_svg(text) == (
        '<svg width="518.4pt">\n<g id="a">\n<path d="M 0.1 2"/>\n</g>\n</svg>\n'
    )
