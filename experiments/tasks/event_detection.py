"""Sound event detection: which classes are heard from when to when, learned from annotations with times."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from dyn import models
from experiments.audio import spectrograms
from experiments.audio.detections import Interval
from experiments.audio.frames import Event, Stretch, find_events, join_windows, smooth_scores
from experiments.core import files
from experiments.core.errors import UserError
from experiments.data import Dataset
from experiments.data.sounds import LabelledFrames
from experiments.data.views import flatten
from experiments.tasks.backbone import apply_in_training, build_with_conv
from experiments.tasks.event_metrics import (
    compute_event_scores,
    compute_psds,
    count_matches,
    merge_events,
)
from experiments.tasks.tagging import compute_masked_cross_entropy
from experiments.tasks.tagging_metrics import compute_masked_loss
from experiments.tasks.task import Array, Batch, Loss, Results, Task, Variables


class EventDetection(Task):
    """Gives each frame a probability of each class: masked cross-entropy, ranked by the F1 of events."""

    metric = "event_f1"
    augmentations = ("none", "spectrogram")
    sections = ("events", "conv", "dtype")

    def make_model(self, num_classes: int, spatial_axes: int) -> nn.Module:
        """Returns a CRNN."""
        events = self.config.events
        if events.time_pools > len(events.features):
            raise UserError(
                f"--config.events.time_pools={events.time_pools}: choose at most one for each of the "
                f"{len(events.features)} convolutions in --config.events.features."
            )
        fields = {
            "features": tuple(events.features),
            **{name: events[name] for name in ("recurrent", "time_pools", "dropout")},
            "dtype": jnp.dtype(self.config.dtype),
        }
        return build_with_conv(
            self.config, lambda conv: models.CRNN(num_classes, conv, **fields), spatial_axes
        )

    def compute_loss(
        self, model: nn.Module, variables: Variables, batch: Batch, rng: Array, head_only: bool
    ) -> Loss:
        """Returns the mean cross-entropy of the frames and classes that are known."""
        del head_only  # has no such setting
        logits, changed = apply_in_training(model, variables, batch["inputs"], rng)
        targets = self._average_columns(batch["label"], logits)
        value = compute_masked_cross_entropy(logits, targets, norm="known")
        return value, ({"loss": value}, changed)

    def _average_columns(self, labels: Array, logits: Array) -> Array:
        return average_columns(labels, logits.shape[1], 2**self.config.events.time_pools)

    def sum_metrics(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Returns the logits and targets of all frames of a batch."""
        logits = model.apply(variables, batch["inputs"], train=False).astype(jnp.float32)
        targets = self._average_columns(batch["label"], logits)
        return {"logits": logits, "targets": targets, "mask": batch["mask"]}

    def compute_metrics(
        self, sums: Iterable[Mapping[str, np.ndarray]], dataset: Dataset, split: str
    ) -> dict[str, Any]:
        """Returns the loss and the scores of events, on test `psds1` and `psds2` as well.

        The windows of a recording are joined, scores are smoothed, and events are compared with the
        annotations; where windows are missing, with the parts of these that lie in the others.
        """
        batches = list(sums)
        real = np.concatenate([batch["mask"] for batch in batches]) > 0
        logits, targets = (
            np.concatenate([batch[name] for batch in batches])[real]
            for name in ("logits", "targets")
        )
        stretches, events = self._join_examples(dataset.splits[split], expit(logits))
        threshold, classes = self.config.events.threshold, dataset.classes
        counts = np.zeros((3, len(classes)), int)
        for stretch, true in zip(stretches, events, strict=True):
            counts += count_matches(true, find_events(stretch, threshold), len(classes))
        scores = compute_event_scores(counts, classes)
        if split == "test":
            scores |= compute_psds(stretches, events, len(classes))
        return {"loss": compute_masked_loss(targets, logits, "known"), **scores}

    def _join_examples(
        self, source: Any, probabilities: np.ndarray
    ) -> tuple[list[Stretch], list[list[Event]]]:
        """Returns the smoothed scores of each stretch of a recording, and its true events."""
        bases, owners, positions = flatten(source)
        by_recording: dict[tuple[int, int], dict[float, tuple[Interval, np.ndarray]]] = {}
        for owner, position, scores in zip(owners, positions, probabilities, strict=True):
            recording, place = _find_place(bases[owner], position)
            # By start: a window may be repeated.
            by_recording.setdefault((owner, recording), {})[place.start] = place, scores
        stretches, events = [], []
        for (owner, recording), by_start in by_recording.items():
            windows = [by_start[start] for start in sorted(by_start)]
            places, scores = zip(*windows, strict=True)
            for stretch in self.join_frames(places, scores):
                stretches.append(stretch)
                events.append(_cut_events(bases[owner], recording, stretch))
        return stretches, events

    def join_frames(
        self, places: Sequence[Interval], scores: Sequence[np.ndarray]
    ) -> list[Stretch]:
        """Returns the smoothed scores of all frames of a recording from those of its windows, in order.

        Args:
            places: of n windows.
            scores: of `predict`, `[T, C]` for each.
        """
        times = find_frame_times(self.config.audio, len(scores[0]), self.config.events.time_pools)
        joined = join_windows(places, scores, times)
        return [smooth_scores(stretch, self.config.events.median) for stretch in joined]

    def inspect_batch(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Any]:
        """Returns nothing: the tables need no more than the metrics."""
        return {}

    def predict(self, model: nn.Module, variables: Variables, inputs: Array) -> Array:
        """Returns the probability of each class in each frame, not smoothed, `[B, T, C]`."""
        return jax.nn.sigmoid(model.apply(variables, inputs, train=False).astype(jnp.float32))

    def draw_figures(self, results: Results) -> None:
        """Writes `events.csv`, the F1 of the events of each class on test, empty where there are none."""
        rows = [
            [name, "" if value is None else f"{value:.6f}"]
            for name, value in results.metrics["f1"].items()
        ]
        files.write_csv(results.workdir / "events.csv", ["label", "event_f1"], rows)


def average_columns(labels: Array, frames: int, width: int) -> Array:
    """Returns the targets of frames of some width, `[B, T, C]`, from the labels of columns, `[B, W, C]`.

    A target is the share of a frame's columns in which a class is present; NaN if any of them is unknown.
    Columns after the last whole frame are left out.
    """
    cut = labels[:, : frames * width]
    return jnp.mean(cut.reshape(len(labels), frames, width, -1), axis=2)


def find_frame_times(audio: Any, frames: int, time_pools: int) -> np.ndarray:
    """Returns the middles of frames in seconds after the start of a window, `[T]`."""
    width = 2**time_pools
    return spectrograms.compute_times(audio)[: frames * width].reshape(frames, width).mean(axis=1)


def _find_place(windows: LabelledFrames, position: int) -> tuple[int, Interval]:
    """Returns the number of a window's recording, and its place there."""
    owner, row = int(windows.owners[position]), windows.rows[position]
    recording = windows.recordings[owner]
    start, end = float(recording.starts[row]), float(recording.ends[row])
    return owner, Interval(start, end, bool(recording.silent[row]))


def _cut_events(windows: LabelledFrames, recording: int, stretch: Stretch) -> list[Event]:
    """Returns the annotated events of a stretch; labels of clips are no events."""
    numbers = {name: number for number, name in enumerate(windows.classes)}
    events = []
    for row in windows.annotations[recording]:
        onset, offset = max(row.start, stretch.start), min(row.end, stretch.end)
        if row.positive and not row.is_clip and row.label in numbers and onset < offset:
            events.append(Event(numbers[row.label], onset, offset))
    return merge_events(events)
