"""Predicting objects with the network of a detector's run, and exporting it."""

import json

import jax
import numpy as np
import pytest
from finished_runs import config_with, read_table, write_finished
from PIL import Image

from experiments.core.errors import UserError
from experiments.inference.export import export
from experiments.inference.predict import predict
from experiments.load import load

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("standard_promotion")]
mask = pytest.importorskip("pycocotools.mask")

CLASSES = ["background", "disc", "square"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "detector"
    changes = {"detector.name": "cond_inst", "image_size": 32}
    with jax.numpy_dtype_promotion("standard"):
        config = config_with("mask_folder_instances,smoke", **changes)
        write_finished(folder, config, CLASSES, (32, 32, 3))
        return load(folder)


def write_pictures(album, sizes, rng):
    for name, size in sizes.items():
        (album / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(album / name)


def test_a_detector_writes_results_in_cocos_format(trained, tmp_path, rng):
    album, out = tmp_path / "album", tmp_path / "p.csv"
    sizes = {"a/1.png": (40, 24), "a/2.jpg": (16, 50), "b/3.png": (32, 32)}
    write_pictures(album, sizes, rng)
    (album / "b" / "4.png").write_bytes(b"no picture")
    assert predict(trained, [str(album)], out) == (3, 1)

    results = json.loads((tmp_path / "p.coco.json").read_text())
    rows = read_table(out)
    assert len(rows) == len(results) > 0
    for row, result in zip(rows, results, strict=True):
        assert row["label"] == CLASSES[result["category_id"]] == result["category"]
        number = int(row["image_id"])
        assert number == result["image_id"] and f"/{number}." in result["file_name"]
        size = sizes[result["file_name"]]
        assert tuple(result["segmentation"]["size"]) == size
        assert mask.decode(result["segmentation"]).shape == size
        x, y, width, height = result["bbox"]
        assert min(x, y, width, height) >= 0 and 0 < result["score"] <= 1
        assert x + width <= size[1] + 0.01 and y + height <= size[0] + 0.01
    for name, size in sizes.items():
        with Image.open(tmp_path / "p" / f"{name}.png") as overlay:
            assert overlay.size == size[::-1]
    assert [row["file"] for row in read_table(tmp_path / "p.skipped.csv")] == [
        str(album / "b" / "4.png")
    ]
    out.unlink()
    with pytest.raises(UserError, match=r"p\.coco\.json, which has the results"):
        predict(trained, [str(album)], out)


@pytest.mark.long
def test_an_exported_detector_gives_the_same_objects(trained, tmp_path, rng):
    path = export(trained, "stablehlo", tmp_path / "model.stablehlo", platforms=["cpu"])
    picture = rng.integers(0, 256, (32, 32, 3), np.uint8)
    found = jax.export.deserialize(bytearray(path.read_bytes())).call(picture[None])
    (objects,) = trained([picture])
    number = len(objects.labels)
    np.testing.assert_array_equal(found["labels"][0, :number], objects.labels)
    np.testing.assert_allclose(found["boxes"][0, :number], objects.boxes, atol=1e-3)
    about = json.loads(path.with_name("model.stablehlo.json").read_text())
    assert {one["name"]: one["shape"] for one in about["outputs"]} == {
        name: ["batch", *values.shape[1:]] for name, values in found.items()
    }
    for options in ({"file_format": "onnx"}, {"file_format": "stablehlo", "fold_norms": True}):
        with pytest.raises(UserError, match="not for detectors"):
            export(trained, **options, out=tmp_path / "other")
