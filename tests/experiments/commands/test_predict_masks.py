"""Predicting masks with the network of a segmentation run."""

from pathlib import Path

import numpy as np
import pytest
from finished_runs import config_with, read_table, write_finished
from PIL import Image

from experiments.core.errors import UserError
from experiments.figures.style import paint_mask
from experiments.inference.predict import predict
from experiments.load import load

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("standard_promotion")]


def test_a_segmentation_run_writes_masks_and_the_area_of_each_class(tmp_path, rng):
    config = config_with("mask_folder,smoke", image_size=16)
    write_finished(tmp_path / "run", config, ["ground", "square"], (16, 16, 3))
    trained, album, out = load(tmp_path / "run"), tmp_path / "album", tmp_path / "p.csv"
    sizes = {"a/1.png": (16, 16), "a/2.jpg": (9, 30), "b/1.png": (40, 12)}
    for name, size in sizes.items():
        (album / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(album / name)
    assert predict(trained, [str(album)], out) == (3, 0)

    rows = read_table(out)
    assert list(rows[0]) == ["file", "mask", "label", "pixels", "share"]
    for name, size in sizes.items():
        mine = [row for row in rows if row["file"] == str(album / name)]
        mask = Path(mine[0]["mask"])
        assert mask == tmp_path / "p" / f"{name}.png"
        with Image.open(mask) as image, Image.open(album / name) as picture:
            values, drawn = np.asarray(image), np.asarray(image.convert("RGB"))
            assert image.mode == "P" and values.shape == size
            np.testing.assert_array_equal(drawn, paint_mask(values))
            (prediction,) = trained([np.asarray(picture)])
        assert prediction.dtype == np.uint8 and (prediction == values).mean() > 0.99
        counts = np.bincount(values.ravel(), minlength=2)
        assert {row["label"]: int(row["pixels"]) for row in mine} == {
            label: count for label, count in zip(trained.classes, counts, strict=True) if count
        }
        assert sum(float(row["share"]) for row in mine) == pytest.approx(1)
    with pytest.raises(UserError, match="--top is for classifiers"):
        predict(trained, [str(album)], out, top=3)
    out.unlink()
    with pytest.raises(UserError, match="which has the masks, exists"):
        predict(trained, [str(album)], out)
