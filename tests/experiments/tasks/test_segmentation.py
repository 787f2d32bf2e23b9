"""Segmentation through the loop, on a folder of toy pictures; what it counts, and what it leaves out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.configs import base, odconv
from experiments.data import load
from experiments.tasks import make_task, segmentation
from experiments.train.loop import train

TINY = {"model.width": 4, "batch_size": 4, "epochs": 1, "image_size": 16, "log_every": 1}


@pytest.fixture(scope="module", autouse=True)
def ordinary_promotion():
    """Optax does not pass strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
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


def small(config_file, folder, **changes):
    config = config_file.get_config("mask_folder,smoke")
    with config.unlocked():
        config.update_from_flattened_dict({**TINY, "data.source": str(folder), **changes})
    return config


@pytest.mark.parametrize("head", ["fcn", "deeplabv3plus"])
def test_it_trains_and_leaves_its_pictures(head, folder, tmp_path):
    fields = {"head.name": head} if head == "fcn" else {"head": {"name": head, "features": 8}}
    config = small(odconv, folder)
    config.update(fields) if head != "fcn" else config.update_from_flattened_dict(fields)
    summary = train(config, tmp_path)
    assert summary["metric"] == "miou" and set(summary["test"]["iou"]) == {"ground", "square"}
    assert 0 <= summary["test"]["miou"] <= 1 and np.isfinite(summary["test"]["loss"])
    assert {"curves.png", "samples.png", "iou.png"} <= {
        p.name for p in (tmp_path / "figures").iterdir()
    }
    assert (tmp_path / "samples.npz").exists()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["split"] == "test" and "iou" in rows[-1]


def outputs_of(dataset, config, predict):
    """What `sum_metrics` would give for a network that says `predict(prepared example)`."""
    prepare = make_task(config).make_transform(train=False)
    source = dataset.splits["test"]
    for index in range(len(source)):
        example = prepare(source[index])
        yield {
            "loss": np.float32(3.0),
            "count": np.float32(2.0),
            # A batch of two, of which the second is padding.
            "predictions": np.stack([predict(example)] * 2).astype(np.uint8),
            "geometry": np.stack([example["geometry"]] * 2),
            "mask": np.array([1.0, 0.0]),
        }


def test_who_predicts_the_truth_has_a_miou_of_one(folder):
    config = small(base, folder, image_size=32)
    dataset = load(config.data, 0)
    truth = outputs_of(
        dataset, config, lambda example: np.where(example["label"] == 255, 0, example["label"])
    )
    found = make_task(config).compute_metrics(truth, dataset, "test")
    assert found["miou"] == found["accuracy"] == 1.0 and found["loss"] == 1.5


def test_who_predicts_ground_everywhere_is_counted_by_hand(folder):
    config = small(base, folder, image_size=8)  # far smaller than the pictures
    dataset = load(config.data, 0)
    source = dataset.splits["test"]
    masks = [source[index]["label"] for index in range(len(source))]
    ground = sum(int((mask == 0).sum()) for mask in masks)
    square = sum(int((mask == 1).sum()) for mask in masks)
    nothing = outputs_of(dataset, config, lambda example: np.zeros((8, 8)))
    found = make_task(config).compute_metrics(nothing, dataset, "test")
    assert found["accuracy"] == pytest.approx(ground / (ground + square))
    assert found["iou"] == {"ground": pytest.approx(ground / (ground + square)), "square": 0.0}
    assert found["miou"] == pytest.approx(ground / (ground + square) / 2)


def test_pixels_of_255_count_for_nothing():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 3, 4)), jnp.float32)
    labels = np.random.default_rng(1).integers(0, 4, (2, 3, 3))
    labels[0, 0], labels[1, 2, 2] = 255, 255
    total, right, count = segmentation.sum_pixels(logits, jnp.asarray(labels))
    log = np.asarray(jax.nn.log_softmax(logits))
    counted = np.argwhere(labels != 255)
    want = -sum(log[(*at, labels[tuple(at)])] for at in counted)
    assert float(total) == pytest.approx(want, rel=1e-5) and float(count) == len(counted) == 14
    assert float(right) == sum(log[tuple(at)].argmax() == labels[tuple(at)] for at in counted)


def test_a_crop_in_which_nothing_counts_has_a_loss_of_zero_and_gradients(folder):
    config = small(base, folder)
    model = make_task(config).make_model(2, 2)
    batch = {"inputs": jnp.ones((2, 16, 16, 3)), "label": jnp.full((2, 16, 16), 255)}
    variables = model.init(jax.random.key(0), batch["inputs"])

    def loss(params):
        return make_task(config).compute_loss(
            model, {**variables, "params": params}, batch, jax.random.key(1)
        )[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(variables["params"])
    assert float(value) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
