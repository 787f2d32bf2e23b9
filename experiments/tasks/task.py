"""The interface of a task: everything that training, evaluation and inference ask of one."""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from experiments.data import Dataset, Example, spectrogram_transforms, transforms

Array = jax.Array
Batch = Mapping[str, Array]
Variables = Mapping[str, Any]
Transform = Callable[..., Example]
# (loss, (metrics, the variable collections that changed)), as `jax.grad(..., has_aux=True)` takes it.
Loss = tuple[Array, tuple[dict[str, Array], dict[str, Any]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
    """A network, the run that trains it, and its results on a split.

    Attributes:
        model: the network.
        variables: as they were evaluated; in the end those of the best evaluation.
        dataset: what is trained and tested on.
        workdir: the run's folder.
        seed: decides which examples are shown.
        metrics: of the split: during training validation, in the end test.
        inspected: what `Task.inspect_batch` returned for all test examples, without padding.
        validation: the same of the validation split, for a task that `needs_validation`.
    """

    model: nn.Module
    variables: Variables
    dataset: Dataset
    workdir: Path
    seed: int
    metrics: Mapping[str, Any]
    inspected: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    validation: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Task(Protocol):
    """Model, loss, metrics and figures of one kind of learning problem.

    A task is made once from a config. It keeps only the parts of the config that it uses, and none of those
    that runs with one compiled program may differ in: seed, paths of the data, name. B is the batch size,
    C the number of classes.

    A new task also needs its line in `TASKS`, and in `configs/shared/settings.py` its name in `RUN["task"]`
    and its sections.

    Attributes:
        metric: name of the metric to rank evaluations by, higher is better; None if the latest is the best.
        augmentations: the values that `config.augment` may have.
        sections: the parts of the config that the task keeps beside those of its inputs, where they exist.
        network_inputs: the parts of an example that `predict` takes, first `inputs`.
        config: these parts.
        is_audio: whether the examples are spectrograms of recordings.
    """

    metric: ClassVar[str | None]
    augmentations: ClassVar[tuple[str, ...]]
    sections: ClassVar[tuple[str, ...]]
    network_inputs: ClassVar[tuple[str, ...]] = ("inputs",)
    config: ConfigDict
    is_audio: bool

    def __init__(self, config: ConfigDict) -> None:
        """Keeps `sections` of an experiment's config."""
        inputs = ("augment", "image_size", "normalise", "audio", "spectrogram")
        kept = [name for name in (*inputs, *self.sections) if name in config]
        self.config = FrozenConfigDict({name: config[name] for name in kept})
        self.is_audio = config.data.name == "audio"

    @abstractmethod
    def make_model(self, num_classes: int, spatial_axes: int) -> nn.Module:
        """Returns the network, without parameters; `spatial_axes` is 1 for series, 2 for pictures.

        Raises:
            UserError: if the config names a layer, a field or a value that does not exist or does not fit.
        """

    def make_transform(self, train: bool) -> Transform:
        """Returns the picklable function that turns a stored example into the network's.

        In training it augments and is called with (example, random generator), otherwise with (example).
        By default, examples are pictures, series or spectrograms with one label or with several.
        """
        if self.is_audio:
            return spectrogram_transforms.make_transform(self.config, train)
        pictures = {}  # series have no size and come normalised
        if "normalise" in self.config:
            pictures = {"image_size": self.config.image_size, **self.config.normalise}
        return transforms.make_transform(self.config.augment, **pictures, train=train)

    @abstractmethod
    def compute_loss(
        self, model: nn.Module, variables: Variables, batch: Batch, rng: Array, head_only: bool
    ) -> Loss:
        """Returns the mean loss of a training batch. Traced by JAX.

        Args:
            model: the network.
            variables: its `params`, `batch_stats` and `attention`; the same holds below.
            batch: `inputs [B, *spatial, channels]` and `label`.
            rng: decides dropout and everything else that is drawn.
            head_only: whether only the module `head` trains and all below it runs as in inference; for
                classification and tagging.

        Returns:
            (loss, (metrics, changed)): `metrics` are scalars to log; `changed` are the variable collections
            that changed, with `losses`, the auxiliary losses that layers have sown.
        """

    @abstractmethod
    def sum_metrics(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Returns what `compute_metrics` needs to know about a batch. Traced by JAX.

        The batch is not augmented, and has a `mask [B]`: 0 for padding, which must not count.
        """

    @abstractmethod
    def compute_metrics(
        self, sums: Iterable[Mapping[str, np.ndarray]], dataset: Dataset, split: str
    ) -> dict[str, Any]:
        """Returns the metrics of a split, `loss` and `metric` among them.

        `sums` are the results of `sum_metrics` for all batches of the split, in order.
        """

    @abstractmethod
    def inspect_batch(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Any]:
        """Returns what `draw_figures` needs of each example of a batch, `[B, ...]` each. Traced by JAX."""

    @abstractmethod
    def predict(self, model: nn.Module, variables: Variables, inputs: Array) -> Any:
        """Returns the predictions, an array `[B, ...]` or a tree of them. Traced by JAX.

        The inputs are `[B, *spatial, channels]`; further arguments are those of `network_inputs`.
        """

    def postprocess(self, prediction: Any, example: Example) -> Any:
        """Returns the final prediction for one transformed example; by default its row of `predict`."""
        del example
        return prediction

    @property
    def needs_validation(self) -> bool:
        """True if `draw_figures` also looks at the validation split; by default it does not."""
        return False

    def reference_metrics(self, dataset: Dataset) -> dict[str, float]:
        """Returns test metrics of a trivial model to compare with; by default none."""
        del dataset
        return {}

    @abstractmethod
    def draw_figures(self, results: Results) -> None:
        """Draws a finished run's figures into `workdir/figures` and writes its tables beside them."""

    def draw_progress(self, results: Results, step: int) -> list[str]:
        """Draws the state of training after an evaluation, and returns warnings; by default nothing."""
        del results, step
        return []
