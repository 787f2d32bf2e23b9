"""The protocol: every config is traced, and every task answers its calls on a tiny network."""

import importlib
import pickle
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments.configs
from experiments.audio.annotations import Annotation
from experiments.data import Dataset
from experiments.data.sounds import LabelledFrames
from experiments.tasks import TASKS, Results, make_task

pytestmark = pytest.mark.usefixtures("standard_promotion")

FOLDER = Path(experiments.configs.__file__).parent
CONFIGS = sorted(
    file.stem
    for file in FOLDER.glob("*.py")
    if file.stem != "common" and "def get_config" in file.read_text()
)
# One of each task, small enough to compile.
TINY = {
    "classification": ("odconv", "digits,smoke", {"model.width": 4}),
    "tagging": ("species_multilabel", "digits,smoke", {"model.width": 4}),
    "segmentation": ("base", "mask_folder,smoke", {"model.width": 4, "image_size": 16}),
    "instance_segmentation": (
        "base",
        "mask_folder_instances,smoke",
        {"model.width": 4, "image_size": 32},
    ),
    "reconstruction": ("soundscape_autoencoder", "digits,smoke", {"autoencoder.widths": (4, 4)}),
    "event_detection": ("fdy_crnn", "songs,smoke", {"events.features": (4, 4)}),
    "acgan": ("dr_acgan", "digits,smoke", {"gan.widths": (8, 4, 4, 4), "image_size": 16}),
}


def get_config(name, argument):
    return importlib.import_module(f"experiments.configs.{name}").get_config(argument)


def make_example(config):
    """An example as its data set stores it."""
    if config.data.name == "ucr":
        return {"inputs": np.zeros((32, 1), np.float32), "label": np.int32(1)}
    if config.task == "instance_segmentation":
        ids = np.zeros((16, 20), np.uint8)
        ids[2:9, 3:14], ids[12:, :5] = 1, 255
        pictures = np.zeros((16, 20, 3), np.uint8)
        return {"inputs": pictures, "label": ids, "classes": np.array([2], np.int32)}
    label = np.int32(1)
    if config.task in ("segmentation", "event_detection"):  # of pixels, or of columns and classes
        label = np.ones((16, 16) if config.task == "segmentation" else (16, 3), np.uint8)
    channels = 3 if config.task == "segmentation" else 1
    return {"inputs": np.zeros((16, 16, channels), np.uint8), "label": label}


def make_source(config):
    """A split of one example."""
    if config.task != "event_detection":
        return [make_example(config)]
    recording = SimpleNamespace(starts=[0.0], ends=[0.25], silent=[False])
    place, annotations = np.zeros(1, int), [[Annotation("", 0.1, 0.2, "b")]]
    return LabelledFrames(
        [recording], place, place, np.ones((1, 3)), annotations, "abc", np.arange(16), True
    )


def prepare(config):
    """(task, model, shapes of variables, a batch of two for evaluation)."""
    task = make_task(config)
    example = task.make_transform(train=False)(make_example(config))
    batch = {name: np.stack([value] * 2) for name, value in example.items()}
    batch["mask"] = np.array([1, 0], np.float32)
    model = task.make_model(3, spatial_axes=example["inputs"].ndim - 1)
    shapes = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), batch["inputs"]
    )
    return task, model, shapes, batch


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_of_every_config_is_traced(name):
    task, model, shapes, batch = prepare(get_config(name, "smoke"))
    loss, (metrics, changed) = jax.eval_shape(
        lambda variables: task.compute_loss(model, variables, batch, jax.random.key(1), False),
        shapes,
    )
    assert loss.shape == () and loss.dtype == jnp.float32
    assert metrics["loss"].shape == () and set(changed) <= {"batch_stats", "losses", "params"}
    statistics = shapes.get("batch_stats", {})
    assert jax.tree.structure(changed.get("batch_stats", {})) == jax.tree.structure(statistics)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_answers_every_call(name):
    file, argument, changes = TINY[name]
    config = get_config(file, argument)
    config.update_from_flattened_dict(changes)
    task, model, shapes, batch = prepare(config)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: np.abs(0.1 * rng.standard_normal(leaf.shape)).astype(leaf.dtype), shapes
    )
    source = make_source(config)
    dataset = Dataset("", {"test": source, "train": source}, ("a", "b", "c"), ())

    def evaluate(variables, batch):
        inputs = [batch[part] for part in task.network_inputs]
        prediction = None if name == "acgan" else task.predict(model, variables, *inputs)
        return task.sum_metrics(model, variables, batch), prediction

    sums, predictions = jax.device_get(jax.jit(evaluate)(variables, batch))
    metrics = task.compute_metrics([sums], dataset, "test")
    assert np.isfinite(metrics["loss"]) and (task.metric is None or task.metric in metrics)
    inspected = jax.eval_shape(lambda v, b: task.inspect_batch(model, v, b), variables, batch)
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(inspected))
    if name != "acgan":
        example = {key: values[0] for key, values in batch.items()}
        first = jax.tree.map(lambda values: values[0], predictions)
        final = task.postprocess(first, example)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(final))
    assert isinstance(task.reference_metrics(dataset), dict)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_keeps_nothing_of_a_single_run(name):
    file, argument, _ = TINY[name]
    config = get_config(file, argument)
    task, transform = make_task(config), make_task(config).make_transform(train=True)
    assert not {"seed", "data", "name", "input", "init_from"} & set(task.config)
    assert pickle.loads(pickle.dumps(transform)) is not None


FIGURES = {
    "classification": {"confusion", "predictions", "mistakes", "pr_curves", "attention"},
    "tagging": {"mistakes", "pr_curves", "attention"},
    "segmentation": {"samples", "iou"},
    "instance_segmentation": {"detections", "best_and_worst", "ap", "iou"},
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_task_draws_its_figures(name, tmp_path, rng, monkeypatch):
    monkeypatch.setattr("experiments.tasks.classification.save_maps", lambda *_: None)
    file, argument, _ = TINY[name]
    config = get_config(file, argument)
    task, source = make_task(config), [make_example(config)] * 4
    labels = np.array([0, 1, 1, 0])
    if name == "segmentation":
        example = task.make_transform(train=False)(source[0])
        inspected = {
            "predictions": np.stack([example["label"]] * 4),
            "geometry": np.stack([example["geometry"]] * 4),
        }
    elif name == "instance_segmentation":
        inspected = {
            "boxes": np.full((4, 2, 4), [3, 2, 14, 9], np.float32),
            "scores": np.full((4, 2), [0.9, 0.2], np.float32),
            "labels": np.full((4, 2), [2, 1]),
            "masks": np.ones((4, 2, 4, 4), np.float32),
            "geometry": np.full((4, 4), [16, 20, 16, 20]),
        }
    else:
        inspected = {
            "labels": labels if name == "classification" else np.eye(3, dtype=np.float32)[labels],
            "logits": rng.normal(size=(4, 3)).astype(np.float32),
            "mixtures": {"conv": rng.dirichlet(np.ones(2), 4)},
        }
    dataset = Dataset("", {"test": source, "train": source}, ("a", "b", "c"), ())
    metrics = {"iou": {"a": 0.5, "b": None, "c": 1.0}, "ap50": 0.5, "objects": {"b": 0, "c": 4}}
    metrics |= {"class_ap50": {"b": None, "c": 0.5}, "class_ap": {"b": None, "c": 0.2}}
    task.draw_figures(Results(None, {}, dataset, tmp_path, 0, metrics, inspected))
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == FIGURES[name]
    tables = {path.name for path in tmp_path.iterdir() if path.suffix in (".csv", ".npz")}
    assert (
        tables
        == {
            "classification": {"confusion.csv", "per_class.csv"},
            "tagging": {"per_class.csv"},
            "segmentation": {"samples.npz"},
            "instance_segmentation": {"samples.npz", "per_class.csv"},
        }[name]
    )
