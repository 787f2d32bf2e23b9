"""Trains a linear classifier on the features of a trained network, and puts it in the place of its head."""

import dataclasses
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict
from scipy.special import expit, log_softmax, softmax

from experiments import data
from experiments.audio import spectrograms
from experiments.configs.shared.assemble import complete_config
from experiments.configs.shared.limits import SETTINGS, check_limits
from experiments.configs.shared.overrides import override
from experiments.core import files
from experiments.core.console import format_value, print_facts, print_line, print_result
from experiments.core.errors import UserError
from experiments.data import Dataset, Source
from experiments.data.fingerprint import list_entries
from experiments.inference.trained import Trained, check_network
from experiments.runs import weights
from experiments.runs.data_record import SPLITS_FILE, read_known_entries
from experiments.tasks import Results
from experiments.tasks.classification import write_confusion
from experiments.tasks.classifier import draw_classifier
from experiments.tasks.metrics import sum_classification
from experiments.tasks.sound_evaluation import write_sound_evaluation
from experiments.tasks.tagging_metrics import compute_masked_loss

OUT = "runs/probe"
STRENGTHS = tuple(10.0**power for power in range(-4, 4))
"""Inverse strengths of the regularisation, as scikit-learn's C, that are tried."""
_LABELS = {"class": "classification", "multi": "tagging"}
# The settings of the recordings and their labels: those of RUN were for others.
_OF_RECORDINGS = (
    *("windows", "label_pattern", "annotations", "label_column", "min_overlap", "min_fraction"),
    *("exhaustive", "group_pattern", "splits", "noise_folder", "overlay", "negatives", "upsample"),
)
_SEEN = (*spectrograms.SETTINGS, "colour")  # what the network has learned to see


class Linear(NamedTuple):
    """A linear layer: logits = f kernel + bias, of features f `[N, D]`, kernel `[D, C]` and bias `[C]`."""

    kernel: np.ndarray
    bias: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Returns the logits `[N, C]`."""
        return features @ self.kernel + self.bias


class Examples(NamedTuple):
    """The features `[N, D]` and labels of N windows: `[N]`, or `[N, C]` with NaN for unknown."""

    features: np.ndarray
    labels: np.ndarray


def fit_linear(examples: Examples, num_classes: int, strength: float) -> Linear:
    """Returns the logistic regression of labels on features, with an L2 penalty.

    Features are standardised for it; the layer that is returned takes them as they are. With several labels
    each has a regression of its own, on the examples where it is known.

    Args:
        examples: with labels from 0 to C - 1, or 0 and 1.
        num_classes: C.
        strength: scikit-learn's C, the inverse of the penalty.

    Example:
        >>> features = np.array([[0.0, 1.0], [0.2, 1.0], [0.8, 1.0], [1.0, 1.0]])
        >>> layer = fit_linear(Examples(features, np.array([0, 0, 1, 1])), 2, strength=100.0)
        >>> layer(features).argmax(axis=1).tolist()
        [0, 0, 1, 1]
    """
    features, labels = np.asarray(examples.features, np.float64), examples.labels
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale < 1e-6 * max(scale.max(), 1e-30)] = np.inf  # what never changes says nothing
    standard = (features - mean) / scale
    if labels.ndim == 1:
        kernel, bias = _fit_one(standard, labels, num_classes, strength)
    else:
        columns = [_fit_two(standard, column, strength) for column in labels.T]
        kernel, bias = (np.stack(parts, axis=-1) for parts in zip(*columns, strict=True))
    kernel = kernel / scale[:, None]
    return Linear(kernel, bias - mean @ kernel)


def _fit_one(
    features: np.ndarray, labels: np.ndarray, num_classes: int, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel and bias for one class per example; a class without examples is never predicted."""
    present = np.unique(labels)
    kernel, bias = np.zeros((features.shape[1], num_classes)), np.full(num_classes, -100.0)
    if len(present) == 1:
        bias[present] = 0.0
        return kernel, bias
    found = _make_regression(strength).fit(features, labels)
    rows, offsets = found.coef_, found.intercept_
    if len(present) == 2:  # scikit-learn has one row of two classes.
        rows, offsets = (
            np.stack([-rows[0] / 2, rows[0] / 2]),
            np.array([-offsets[0], offsets[0]]) / 2,
        )
    kernel[:, present], bias[present] = rows.T, offsets
    return kernel, bias


def _fit_two(
    features: np.ndarray, label: np.ndarray, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel `[D]` and bias for a label that is 1, 0 or NaN."""
    known = ~np.isnan(label)
    positives, total = int((label[known] == 1).sum()), int(known.sum())
    if positives in (0, total):  # Without examples of both the rate is all that is known.
        rate = (positives + 1) / (total + 2)
        return np.zeros(features.shape[1]), np.array(np.log(rate / (1 - rate)))
    found = _make_regression(strength).fit(features[known], label[known] == 1)
    return found.coef_[0], found.intercept_[0]


def _make_regression(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=2000)


def compute_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean cross-entropy of classes `[N]`, or of the known labels `[N, C]`."""
    if labels.ndim == 1:
        return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())
    return float(compute_masked_loss(labels, logits, "known"))


def choose_linear(
    train: Examples, validation: Examples, num_classes: int
) -> tuple[Linear, float, list[tuple[float, float]]]:
    """Returns the regression with the lowest validation loss, its strength, and (strength, loss) of all."""
    fitted = [fit_linear(train, num_classes, strength) for strength in STRENGTHS]
    losses = [compute_loss(one(validation.features), validation.labels) for one in fitted]
    best = int(np.argmin(losses))
    return fitted[best], STRENGTHS[best], list(zip(STRENGTHS, losses, strict=True))


def train_probe(
    trained: Trained,
    source: str,
    out: str | Path = OUT,
    *,
    labels: str = "",
    changes: Mapping[str, str] | None = None,
    seed: int = 0,
    batch_size: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a network with a new head for the labels of recordings, and its results; returns `probe.json`.

    The options are the flags of `experiments.probe`.

    Raises:
        UserError: if the network cannot be used, `out` exists, or the recordings cannot be trained on.
    """
    started = time.monotonic()
    out = Path(out).expanduser()
    _check_arguments(trained, out, overwrite)
    config = make_probe_config(trained.config, source, labels, changes or {}, seed)
    dataset = data.load_for_training(config.data, seed, audio=config.audio, workdir=out)
    several = config.audio.labels == "multi"
    if len(dataset.classes) < 2 and not several:
        raise UserError(f"{dataset.name} has one class: there is nothing to tell it from.")
    dataset = dataclasses.replace(
        dataset, notes=[*dataset.notes, *_describe_heard(trained, dataset)]
    )
    _print_data(trained, dataset)
    clock = time.monotonic()
    splits = compute_features(trained, dataset, batch_size)
    feature_seconds = time.monotonic() - clock
    clock = time.monotonic()
    layer, strength, tried = choose_linear(
        splits["train"], splits["validation"], len(dataset.classes)
    )
    fit_seconds = time.monotonic() - clock
    probe = replace_head(trained, config, dataset, layer)
    results = _evaluate(probe, dataset, layer, splits, out)
    files.write_csv(out / "probe.csv", ["strength", "validation_loss"], tried)
    if dataset.assignment:
        files.write_csv(out / "splits.csv", ["file", "split"], dataset.assignment)
    summary = {
        "run": str(trained.source),
        "features": int(layer.kernel.shape[0]),
        "strength": strength,
        "windows": {name: len(split) for name, split in dataset.splits.items()},
        "notes": list(dataset.notes),
        **results,
        "feature_seconds": round(feature_seconds, 1),
        "fit_seconds": round(fit_seconds, 1),
        "seconds": round(time.monotonic() - started, 1),
    }
    files.write_json(out / "probe.json", summary)
    weights.write_weights(
        out / weights.MODEL, probe.variables, probe.make_metadata()
    )  # last: the folder is complete
    shown = ("map", "auroc") if several else ("accuracy", "f1", "map", "auroc")
    scores = (f"{name} {format_value(results['test'][name])}" for name in shown)
    print_result(
        "finished",
        [
            ("test", ", ".join(scores)),
            ("strength", f"C = {strength:g}, the best of {len(STRENGTHS)} by the validation loss"),
            ("time", f"{summary['seconds']:.0f} s, {fit_seconds:.0f} s of it fitting"),
            ("folder", f"{out}, for experiments.predict"),
        ],
    )
    return summary


def _describe_heard(trained: Trained, dataset: Dataset) -> list[str]:
    """Returns a warning for each split with recordings that the network itself was trained on."""
    known = read_known_entries(trained.source)
    heard = {entry.content for entry in known if entry.split == "train"} - {""}
    notes = []
    for split in ("validation", "test"):
        if split not in dataset.splits:
            continue
        entries = list_entries(split, dataset.splits[split], dataset.classes)
        if number := sum(entry.content in heard for entry in entries):
            notes.append(
                f"The network was trained on {number:,} of the {len(entries):,} recordings of {split}: "
                f"scores on {split} are too good. Use --override=audio.splits={trained.source / SPLITS_FILE}."
            )
    return notes


def _print_data(trained: Trained, dataset: Dataset) -> None:
    """Prints what is learned from."""
    numbers = (f"{len(split):,} {name}" for name, split in dataset.splits.items())
    names = ", ".join(dataset.classes[:8]) + ", ..." * (len(dataset.classes) > 8)
    rows = [
        ("windows", ", ".join(numbers)),
        ("classes", f"{len(dataset.classes):,}: {names}"),
        *(("note", note) for note in dataset.notes),
    ]
    print_facts(f"a linear classifier on {trained.source}", rows)
    print_line()


def _check_arguments(trained: Trained, out: Path, overwrite: bool) -> None:
    """Raises a UserError for a run or a folder that cannot be used."""
    if not trained.is_audio or trained.config.task not in _LABELS.values():
        raise UserError(
            f"{trained.source} is no classifier or tagger of recordings: give a run of "
            "birdsong_classifier.py or species_multilabel.py, for example."
        )
    weights.check_new_folder(out, overwrite)


def make_probe_config(
    config: ConfigDict, source: str, labels: str, changes: Mapping[str, str], seed: int
) -> ConfigDict:
    """Returns the config of a network for other recordings and labels, with a linear head.

    Args:
        config: of the trained network.
        source: the folder of the recordings.
        labels: 'class' or 'multi'; '' for those of the config.
        changes: texts by dotted path, of settings of the recordings and their labels.
        seed: decides the split.

    Raises:
        UserError: if a setting is invalid, or one that the network depends on.
    """
    if labels not in ("", *_LABELS):
        raise UserError(f"--labels={labels}: choose class or multi.")
    for path in changes:
        section, _, name = path.partition(".")
        if section not in ("data", "audio") or path in ("data.name", "audio.labels"):
            raise UserError(f"--override={path}: only settings of data and audio can be changed.")
        if section == "audio" and name in _SEEN:
            raise UserError(
                f"--override={path}: the network has learned from spectrograms as they are; leave it out."
            )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.audio.labels = labels or config.audio.labels
        config.task = _LABELS[config.audio.labels]
        config.classifier = ConfigDict({"name": "dense"})
        config = complete_config(config)
    with config.unlocked():
        config.seed = seed
        for name in _OF_RECORDINGS:
            config.audio[name] = SETTINGS[f"audio.{name}"].default
        config.data.update(
            {"source": source, "variant": "", "classes": "", "limit": 0, "extra_train": ""}
        )
        for path, value in changes.items():
            override(config, path, value)
    check_limits(config)
    return config


def compute_features(
    trained: Trained, dataset: Dataset, batch_size: int = 0
) -> dict[str, Examples]:
    """Returns the features and labels of the windows of each split."""
    computed: dict[int, Examples] = {}  # a split may stand for another one
    for source in dataset.splits.values():
        if id(source) not in computed:
            computed[id(source)] = _compute_features(trained, source, batch_size)
    return {name: computed[id(source)] for name, source in dataset.splits.items()}


def _compute_features(trained: Trained, source: Source, batch_size: int) -> Examples:
    labels = []

    def read() -> Iterator[tuple[int, Any]]:
        for index in range(len(source)):
            example = source[index]
            labels.append(example["label"])
            yield index, trained.transform(example["inputs"])

    size = min(batch_size or trained.config.batch_size, len(source))
    outputs = trained.predict_batches(read(), size, with_features=True)
    features = np.concatenate([batch.features for batch in outputs])
    return Examples(features, np.stack(labels))


def replace_head(trained: Trained, config: ConfigDict, dataset: Dataset, layer: Linear) -> Trained:
    """Returns the network with a linear layer as its head, for the classes of a data set."""
    head = {
        ("params", "head", name): np.asarray(value, np.float32)
        for name, value in layer._asdict().items()
    }
    old = traverse_util.flatten_dict(dict(trained.variables))
    kept = {path: leaf for path, leaf in old.items() if path[1] != "head"}
    variables = traverse_util.unflatten_dict(kept | head)
    probe = Trained(
        config,
        list(dataset.classes),
        trained.shape,
        {**{name: {} for name in trained.variables}, **variables},
        trained.source,
    )
    check_network(probe)
    return probe


def _evaluate(
    probe: Trained,
    dataset: Dataset,
    layer: Linear,
    splits: Mapping[str, Examples],
    out: Path,
) -> dict[str, Any]:
    """Writes the tables and figures of a probe, and returns its metrics on validation and test."""
    several = probe.config.task == "tagging"
    inspected, metrics = {}, {}
    for name in ("validation", "test"):
        features, labels = splits[name]
        logits = np.asarray(layer(features), np.float32)
        inspected[name] = {"labels": labels, "logits": logits, "mixtures": {}}
        sums: dict[str, Any] = {"logits": logits, "labels": labels, "mask": np.ones(len(labels))}
        if not several:
            arrays = map(jnp.asarray, (logits, labels, np.ones(len(labels), np.float32)))
            sums = sum_classification(*arrays) | sums
        metrics[name] = probe.task.compute_metrics([sums], dataset, name)
    results = Results(
        probe.model,
        probe.variables,
        dataset,
        out,
        probe.config.seed,
        metrics["test"],
        inspected["test"],
        inspected["validation"],
    )
    convert = expit if several else partial(softmax, axis=-1)
    probabilities, scores = (convert(inspected[name]["logits"]) for name in ("test", "validation"))
    transform = probe.task.make_transform(train=False)
    if several:
        threshold = probe.config.tagging.threshold
        draw_classifier(results, probabilities, transform, threshold)
    else:
        write_confusion(results)
        draw_classifier(results, probabilities, transform)
    write_sound_evaluation(results, probabilities, scores, probe.config.audio.precision)
    return metrics
