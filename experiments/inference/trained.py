"""A trained network that predicts, batch by batch."""

import dataclasses
import functools
import itertools
import math
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from experiments.audio.detections import Interval
from experiments.configs.shared.limits import LARGEST
from experiments.core.differences import describe_differences
from experiments.core.errors import UserError
from experiments.core.memory import check_fits, explain_out_of_memory
from experiments.data import Example, transforms
from experiments.data.ucr import Series, prepare_like_training
from experiments.inference.audio_windows import cut_samples, make_audio_settings
from experiments.runs.folder import list_versions
from experiments.tasks import Task, make_task
from experiments.tasks.event_detection import EventDetection

Key = TypeVar("Key")
MAX_SIDE = 8192  # pixels, as of image_size


class Outputs(NamedTuple, Generic[Key]):
    """The outputs of a network for a batch of B examples.

    Attributes:
        keys: of the examples.
        examples: as the network saw them.
        predictions: of the task, not postprocessed: an array `[B, ...]` or a tree of them.
        features: float32 `[B, D]`: the codes of an autoencoder, otherwise the inputs of the module `head`,
            for event detection their mean over the frames; `[B, 0]` unless `with_features`.
        seconds: that the network took, without compilation.
    """

    keys: list[Key]
    examples: list[Example]
    predictions: Any
    features: np.ndarray
    seconds: float


def check_network(trained: "Trained") -> None:
    """Checks that the settings, classes and shape of a network are those of its arrays.

    Raises:
        UserError: if the network cannot be made, or has arrays of other shapes; it names the first ones.
    """
    _check_size(trained)
    try:
        expected = trained.shape_variables()
    except UserError as error:
        text = str(error).replace("--config.", "")
        raise UserError(f"{trained.source}: its network cannot be made: {text}") from error
    except Exception as error:  # Layers raise errors of many types.
        text = " ".join(str(error).split())[:200]
        raise UserError(
            f"{trained.source}: the network that its settings describe cannot be made ({text})."
        ) from error
    ours, theirs = (_list_shapes(tree) for tree in (expected, trained.variables))
    # A collection may lack what a younger version of a layer keeps in it; parameters are all needed.
    names = {
        n for n in {**ours, **theirs} if n.startswith("params/") or (n in ours and n in theirs)
    }
    differences = describe_differences(
        theirs,
        ours,
        template="{name} is {old} there and {new} by the settings, classes and shape",
        names=sorted(names),
        missing="missing",
        limit=3,
    )
    if differences:
        raise UserError(
            f"{trained.source} holds another network than its settings describe: {differences}. Give the "
            "folder or file as training or experiments.export left it."
        )


def _check_size(trained: "Trained") -> None:
    """Raises a UserError if examples do not have the size that they are resized to."""
    size = 0 if trained.is_audio else trained.config.get("image_size", 0)
    if size and trained.shape[:2] != (size, size):
        raise UserError(
            f"{trained.source}: its image_size is {size}, and the shape of an example {trained.shape}."
        )
    if trained.is_picture and max(trained.shape[:2]) > MAX_SIDE:
        raise UserError(
            f"{trained.source}: pictures of {trained.shape} are larger than any that can be trained on."
        )
    if trained.is_picture == (trained.config.data.name == "ucr"):
        kind = "pictures" if trained.is_picture else "series"
        raise UserError(
            f"{trained.source}: its network is not for {kind}, of the shape {trained.shape}."
        )


def _stack_and_fill(examples: Sequence[Example], name: str, size: int) -> np.ndarray:
    """Returns a part of some examples as a batch of `size`, filled up with zeros."""
    stacked = np.stack([example[name] for example in examples])
    return np.pad(stacked, [(0, size - len(examples))] + [(0, 0)] * (stacked.ndim - 1))


def _list_shapes(variables: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    return {name: tuple(np.shape(leaf)) for name, leaf in flat.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A trained network and everything that is needed to use it.

    Attributes:
        config: the experiment.
        classes: names of the classes, in the order of their numbers.
        shape: of one example as the network sees it, `(H, W, C)` or `(L, C)`.
        variables: `params`, `batch_stats` and `attention` of the best evaluation.
        source: the workdir or file that it was loaded from.
    """

    config: ConfigDict
    classes: Sequence[str]
    shape: tuple[int, ...]
    variables: Mapping[str, Any]
    source: Path = Path()

    def __call__(self, inputs: np.ndarray | Sequence[np.ndarray]) -> Any:
        """Returns the predictions for some examples.

        Args:
            inputs: pictures, uint8 `[H, W, C]` each and of any sizes, or series, `[L]` or `[L, C]` each.

        Returns:
            For a classification run the probabilities, float32 `[N, classes]`; for a segmentation run a list
            of the classes of all pixels, uint8 `[H, W]` each; for a detector a list of
            `tasks.objects.Objects`; for a reconstruction run the codes, float32 `[N, D]`; for a run of event
            detection the probabilities in all frames, float32 `[N, T, classes]`.

        Raises:
            ValueError: if an example has another shape or dtype than the network's.
        """
        examples = ((None, self.prepare(raw)) for raw in inputs)
        predictions = [prediction for _, prediction in self.predict(examples)]
        if self.keeps_size:
            return predictions
        if self.config.task in ("reconstruction", "event_detection") and predictions:
            return np.array(predictions, np.float32)
        return np.array(predictions, np.float32).reshape(len(predictions), len(self.classes))

    def sounds(self, samples: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the windows of a sound and the predictions for them, for a run on recordings.

        Args:
            samples: floats `[n]`.
            rate: samples per second.

        Returns:
            The starts and ends of the windows in seconds, float64 `[windows, 2]`, and the scores of the
            classes, float32 `[windows, classes]`. The last window is padded; its end is that of the sound.
            For a run of event detection, of the frames instead, whose scores are smoothed.

        Raises:
            ValueError: if the run was not on recordings, or the samples are invalid.
        """
        if not self.is_audio:
            raise ValueError(f"the run was on {self.config.data.name}, not on recordings")
        audio = make_audio_settings(self.config.audio)
        predictions = list(
            self.list_scores(self.predict(cut_samples(samples, rate, audio, self.prepare)))
        )
        places = [(window.start, window.end) for window, _ in predictions]
        scores = [score for _, score in predictions]
        return np.array(places, np.float64), np.array(scores, np.float32)

    def list_scores(
        self, windows: Iterable[tuple[Interval, np.ndarray]]
    ) -> Iterator[tuple[Interval, np.ndarray]]:
        """Yields the scores of a recording's windows; for a run of event detection, those of its frames.

        Args:
            windows: places and predictions, in the order of time.
        """
        if not isinstance(self.task, EventDetection):
            yield from windows
            return
        places, scores = zip(*windows, strict=True)
        for stretch in self.task.join_frames(places, scores):
            yield from stretch.list_frames()

    @property
    def is_audio(self) -> bool:
        """True for a run on recordings, whose network sees spectrograms."""
        return self.config.data.name == "audio"

    @property
    def is_picture(self) -> bool:
        """True if the network sees pictures or spectrograms, False if it sees series."""
        return len(self.shape) == 3

    @property
    def keeps_size(self) -> bool:
        """True if predictions are of the size of the picture: classes of pixels, or objects."""
        return self.config.task in ("segmentation", "instance_segmentation")

    @functools.cached_property
    def task(self) -> Task:
        """The task that the network was trained for."""
        return make_task(self.config)

    @functools.cached_property
    def model(self) -> nn.Module:
        """The Flax module."""
        return self.task.make_model(len(self.classes), spatial_axes=len(self.shape) - 1)

    def shape_variables(self) -> Mapping[str, Any]:
        """Returns the shapes of the variables that a new network has; nothing is computed.

        Those of a pruned network are those of its arrays, after a check that it takes them.
        """
        one = jax.ShapeDtypeStruct((1, *self.shape), np.float32)
        if self.config.get("conv", {}).get("pruned", False):
            jax.eval_shape(lambda v, x: self.model.apply(v, x, train=False), self.variables, one)
            return self.variables
        return jax.eval_shape(lambda x: self.model.init(jax.random.key(0), x, train=False), one)

    def make_metadata(self) -> dict[str, Any]:
        """Returns what is written beside the arrays: the settings, classes, shape and versions."""
        return {
            "config": self.config.to_dict(),
            "classes": list(self.classes),
            "shape": list(self.shape),
            "versions": list_versions(),
        }

    def prepare(self, raw: np.ndarray) -> Example:
        """Returns an example for the network from raw user input.

        Args:
            raw: a picture, uint8 `[H, W, C]`, or a series, `[L]` or `[L, C]`, NaN where values are missing;
                for a run on recordings a spectrogram, uint8 `[H, W]` or `[H, W, 1]`, not coloured yet.

        Raises:
            ValueError: if the network cannot see it; the message is the end of a sentence.
        """
        raw = np.asarray(raw)
        channels = 1 if self.is_audio else self.shape[-1]
        raw = raw[..., None] if raw.ndim == len(self.shape) - 1 and channels == 1 else raw
        if raw.ndim != len(self.shape) or raw.shape[-1] != channels:
            raise ValueError(f"of the shape {raw.shape}; the network was trained with {self.shape}")
        if not raw.size:
            raise ValueError(f"of the shape {raw.shape}, which is empty")
        return self.transform(self._fit_picture(raw) if self.is_picture else self._fit_series(raw))

    def transform(self, raw: np.ndarray) -> Example:
        """Returns an example for the network from one stored in the run's data set.

        Raises:
            ValueError: if it has another size than those of the run.
        """
        stored = {
            "inputs": raw,
            "label": np.zeros(raw.shape[:2] if self.keeps_size else (), np.uint8),
        }
        if self.config.task == "instance_segmentation":
            stored["classes"] = np.zeros(0, np.int32)
        example = self._transform(stored)
        if example["inputs"].shape != self.shape:
            raise ValueError(
                f"of the shape {raw.shape}; all examples of the run have {self.shape} and are not resized"
            )
        return example

    def predict(
        self, examples: Iterable[tuple[Key, Example]], batch_size: int = 0
    ) -> Iterator[tuple[Key, Any]]:
        """Yields the key of each example and its prediction, in order; see `predict_batches`."""
        for batch in self.predict_batches(examples, batch_size):
            for row, (key, example) in enumerate(zip(batch.keys, batch.examples, strict=True)):
                prediction = jax.tree.map(operator.itemgetter(row), batch.predictions)
                yield key, self.task.postprocess(prediction, example)

    def predict_batches(
        self,
        examples: Iterable[tuple[Key, Example]],
        batch_size: int = 0,
        *,
        with_features: bool = False,
    ) -> Iterator[Outputs[Key]]:
        """Yields the outputs of the network for each batch of examples, in order.

        Takes no more than a batch of the examples at once: pairs of any key and what `prepare` returned. The
        last batch is padded, so that all have one shape and the network is compiled once.

        Raises:
            UserError: if there are no features: the network has no module named head.
        """
        size, examples = batch_size or self.config.batch_size, iter(examples)
        if size >= LARGEST:
            raise UserError(f"--batch_size={size}: choose {LARGEST} or less.")
        advice = "choose a smaller --batch_size"
        # Twice: on the host and on the device, which on a CPU are the same.
        num_bytes = 2 * size * math.prod(self.shape) * np.dtype(np.float32).itemsize
        check_fits(num_bytes, f"A batch of {size:,} examples", advice)
        while batch := list(itertools.islice(examples, size)):
            keys, taken = (list(column) for column in zip(*batch, strict=True))
            inputs = [_stack_and_fill(taken, name, size) for name in self.task.network_inputs]
            network = self._compile(inputs, with_features)
            started = time.perf_counter()
            with explain_out_of_memory(advice):
                outputs = jax.device_get(network(self._device_variables, *inputs))
            seconds = time.perf_counter() - started
            outputs = jax.tree.map(operator.itemgetter(slice(len(batch))), outputs)
            yield Outputs(keys, taken, *outputs, seconds)

    def _compile(self, inputs: Sequence[np.ndarray], with_features: bool) -> Any:
        """Returns the network compiled for inputs of these shapes; compiles it once per shape."""
        key = inputs[0].shape, with_features
        if key not in self._programs:
            function = jax.jit(functools.partial(self._run_network, with_features))
            self._programs[key] = function.lower(self._device_variables, *inputs).compile()
        return self._programs[key]

    def _run_network(
        self,
        with_features: bool,
        variables: Mapping[str, Any],
        inputs: jax.Array,
        *others: jax.Array,
    ) -> tuple[Any, jax.Array]:
        """Returns predictions and features of a batch. Traced by JAX."""
        features = []

        def keep_head_inputs(call: Any, args: tuple, kwargs: dict, context: Any) -> Any:
            is_head = context.module.name == "head" and context.method_name == "__call__"
            # A detector's head takes a list of arrays, which are no features.
            if is_head and isinstance(args[0], jax.Array):
                features.append(args[0])
            return call(*args, **kwargs)

        with nn.intercept_methods(keep_head_inputs):
            predictions = self.task.predict(self.model, variables, inputs, *others)
        if not with_features:
            return predictions, jnp.zeros((len(inputs), 0))
        if self.config.task == "reconstruction":
            return predictions, predictions
        if not features:
            raise UserError("The network has no features: it has no module named head.")
        found = features[-1]
        if isinstance(self.task, EventDetection):
            found = found.mean(axis=1)
        return predictions, found.reshape(len(inputs), -1).astype(jnp.float32)

    @functools.cached_property
    def _programs(self) -> dict[tuple[tuple[int, ...], bool], Any]:
        return {}

    @functools.cached_property
    def _device_variables(self) -> Any:
        return jax.device_put(dict(self.variables))

    @functools.cached_property
    def _transform(self) -> Callable[..., Example]:
        return self.task.make_transform(train=False)

    def _fit_picture(self, raw: np.ndarray) -> np.ndarray:
        if raw.dtype != np.uint8:
            raise ValueError(f"of {raw.dtype}; pictures are uint8, 0 to 255")
        height, width = self.shape[:2]
        resized_later = self.is_audio or self.keeps_size
        if resized_later or self.config.image_size or height != width:
            return raw
        # The run's pictures were all of one size.
        return transforms.crop_to_square(raw, height)

    def _fit_series(self, raw: np.ndarray) -> np.ndarray:
        # Missing values at the end are padding if there is one channel; several channels may differ.
        series = Series(0, "", list(raw.astype(np.float64).T), padded=raw.shape[-1] == 1)
        return prepare_like_training(series, self.shape)
