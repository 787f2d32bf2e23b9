import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Bright squares on dark ground, of different sizes, with a border that does not count."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("squares")
    for split, number in (("train", 12), ("test", 5)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for index in range(number):
            height, width = rng.integers(14, 30, 2)
            mask = np.zeros((height, width), np.uint8)
            mask[3:9, 4:10] = 255
            mask[4:8, 5:9] = 1
            picture = np.where(mask[..., None] == 1, 220, 30) + rng.integers(
                0, 20, (height, width, 3)
            )
            Image.fromarray(picture.astype(np.uint8)).save(root / split / "images" / f"{index}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{index}.png")
    (root / "classes.txt").write_text("ground\nsquare\n")
    return root
