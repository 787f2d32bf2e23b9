import pytest
from PIL import Image

from experiments.figures.style import DPI


@pytest.fixture
def size_of():
    """Returns a function: width and height of a PNG in inches; it fails if nothing is drawn."""

    def measure(path):
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert len(image.convert("RGB").getcolors(2**24)) > 10
            return tuple(side / DPI for side in image.size)

    return measure
