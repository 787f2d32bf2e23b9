import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import change

from experiments.configs import base
from experiments.data import load
from experiments.tasks import make_task, segmentation

TINY = {"model.width": 4, "batch_size": 4, "epochs": 1, "image_size": 16, "log_every": 1}


pytestmark = pytest.mark.usefixtures("standard_promotion")


def small(config_file, folder, **changes):
    config = config_file.get_config("mask_folder,smoke")
    return change(config, {**TINY, "data.source": str(folder), **changes})


def outputs_of(dataset, config, predict):
    """Yields results of `sum_metrics` for a network that predicts `predict(prepared example)`."""
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


def test_the_truth_has_a_miou_of_one(squares):
    config = small(base, squares, image_size=32)
    dataset = load(config.data, 0)
    truth = outputs_of(
        dataset, config, lambda example: np.where(example["label"] == 255, 0, example["label"])
    )
    found = make_task(config).compute_metrics(truth, dataset, "test")
    assert found["miou"] == found["accuracy"] == 1.0 and found["loss"] == 1.5


def test_ground_everywhere_is_counted_by_hand(squares):
    config = small(base, squares, image_size=8)  # far smaller than the pictures
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


def test_pixels_of_255_are_not_counted():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 3, 4)), jnp.float32)
    labels = np.random.default_rng(1).integers(0, 4, (2, 3, 3))
    labels[0, 0], labels[1, 2, 2] = 255, 255
    total, right, count = segmentation.sum_pixels(logits, jnp.asarray(labels))
    log = np.asarray(jax.nn.log_softmax(logits))
    counted = np.argwhere(labels != 255)
    want = -sum(log[(*at, labels[tuple(at)])] for at in counted)
    assert float(total) == pytest.approx(want, rel=1e-5) and float(count) == len(counted) == 14
    assert float(right) == sum(log[tuple(at)].argmax() == labels[tuple(at)] for at in counted)


class Pixelwise(nn.Module):
    """Stands for a segmentation network: one layer, pixel by pixel."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(2)(x)


def test_a_crop_without_labels_has_no_loss_and_finite_gradients(squares):
    task, model = make_task(small(base, squares)), Pixelwise()
    batch = {"inputs": jnp.ones((2, 4, 4, 3)), "label": jnp.full((2, 4, 4), 255)}
    variables = model.init(jax.random.key(0), batch["inputs"])

    def loss(variables):
        return task.compute_loss(model, variables, batch, jax.random.key(1), False)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(variables)
    assert float(value) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
