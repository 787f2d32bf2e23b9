"""A trained network, ready to be asked."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from experiments.configs import common
from experiments.data import Example, transforms
from experiments.data.ucr import Series, prepare_like_training
from experiments.tasks import Task, make_task

Key = TypeVar("Key")


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A trained network, and what has to be known to ask it.

    Attributes:
        config: the experiment.
        classes: their names, in the order of their numbers.
        shape: of one example as the network sees it, `(H, W, C)` or `(L, C)`.
        variables: `params`, `batch_stats` and `attention` of the best evaluation.
    """

    config: ConfigDict
    classes: Sequence[str]
    shape: tuple[int, ...]
    variables: Mapping[str, Any]

    def __call__(self, inputs: np.ndarray | Sequence[np.ndarray]) -> Any:
        """What the network says of some examples.

        Args:
            inputs: pictures, uint8 `[H, W, C]` each and of any sizes, or series, `[L]` or `[L, C]` each.

        Returns:
            Of a classification run the probabilities, float32 `[N, classes]`; of a segmentation run a list
            of the classes of all pixels, uint8 `[H, W]` each; of a reconstruction run the codes, float32
            `[N, D]`.

        Raises:
            ValueError: if an example is none that the network could see.
        """
        examples = ((None, self.prepare(one)) for one in inputs)
        found = [said for _, said in self.answers(examples)]
        if self.config.task == "segmentation":
            return found
        width = -1 if found and self.config.task == "reconstruction" else len(self.classes)
        return np.array(found, np.float32).reshape(len(found), width)

    def sounds(self, samples: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
        """What the network of a run on recordings hears in a sound, window by window.

        Args:
            samples: `[n]`.
            rate: samples per second.

        Returns:
            Where the windows lie, float64 `[windows, 2]`, their starts and ends in seconds; and the scores,
            float32 `[windows, classes]`. The last window is padded, its end that of the sound.

        Raises:
            ValueError: if the run was on something else, or the samples are none that could be heard.
        """
        from experiments.inference import (
            audio_windows as listening,  # nothing else needs its libraries
        )

        places, examples = [], []
        for window, example in listening.windows_of(self, samples, rate):
            places.append((window.start, window.end))
            examples.append((None, example))
        found = np.array([said for _, said in self.answers(examples)], np.float32)
        return np.array(places, np.float64), found

    @property
    def hears(self) -> bool:
        """Whether it was trained on recordings: it sees spectrograms."""
        return self.config.data.name == "audio"

    @functools.cached_property
    def task(self) -> Task:
        """The task that it was trained for."""
        return make_task(self.config)

    @functools.cached_property
    def model(self) -> nn.Module:
        """The network."""
        return self.task.make_model(len(self.classes), spatial_axes=len(self.shape) - 1)

    def prepare(self, raw: np.ndarray) -> Example:
        """One example as the network sees it: what evaluation does.

        Args:
            raw: a picture, uint8 `[H, W, C]`, or a series, `[L]` or `[L, C]`, NaN where values are missing;
                of a run on recordings a spectrogram, uint8 `[H, W]` or `[H, W, 1]`, not coloured yet.

        Raises:
            ValueError: says in a few words why it cannot be used.
        """
        raw = np.asarray(raw)
        channels = 1 if self.hears else self.shape[-1]
        raw = raw[..., None] if raw.ndim == len(self.shape) - 1 and channels == 1 else raw
        if raw.ndim != len(self.shape) or raw.shape[-1] != channels:
            raise ValueError(f"of the shape {raw.shape}; the network was trained with {self.shape}")
        if not raw.size:
            raise ValueError(f"of the shape {raw.shape}, which is empty")
        return self.prepared(self._picture(raw) if len(self.shape) == 3 else self._series(raw))

    def prepared(self, raw: np.ndarray) -> Example:
        """What `prepare` ends with, for an example that is as data sets have them.

        Raises:
            ValueError: if it does not have the size of the run's.
        """
        label = np.zeros(raw.shape[:2] if self.config.task == "segmentation" else (), np.uint8)
        example = self._transform({"inputs": raw, "label": label})
        if example["inputs"].shape != self.shape:
            raise ValueError(
                f"of the shape {raw.shape}; the run's were all of {self.shape} and none was resized"
            )
        return example

    def answers(
        self, examples: Iterable[tuple[Key, Example]], batch_size: int = 0
    ) -> Iterator[tuple[Key, np.ndarray]]:
        """What the network says of each example, in their order, a batch at a time.

        No more than a batch of the examples is asked for ahead. All batches have one shape: the last one is
        filled up, so that the network is compiled once.

        Args:
            examples: anything to know the example by, and what `prepare` gave.
            batch_size: 0 for the run's.
        """
        batch_size, batch = batch_size or self.config.batch_size, []
        for pair in examples:
            batch.append(pair)
            if len(batch) == batch_size:
                yield from self._answer(batch, batch_size)
                batch = []
        if batch:
            yield from self._answer(batch, batch_size)

    def _answer(self, batch: list, batch_size: int) -> Iterator[tuple[Any, np.ndarray]]:
        examples = [example for _, example in batch]
        said = self._of_a_batch(self._compiled, examples, batch_size)
        for (key, example), one in zip(batch, said, strict=True):
            yield key, self.task.postprocess(one, example)

    def features(self, examples: Sequence[Example], batch_size: int = 0) -> np.ndarray:
        """What a network has made of some examples, before it says anything of their classes.

        Args:
            examples: what `prepare` gave; a batch of them at most.
            batch_size: 0 for the run's.

        Returns:
            float32 `[N, D]`: of a reconstruction run the codes, of others what comes into the module `head`.

        Raises:
            ValueError: if there is no such module.
        """
        if self.config.task == "reconstruction":
            return self._of_a_batch(self._compiled, examples, batch_size or self.config.batch_size)
        return self.answers_and_features(examples, batch_size)[1]

    def answers_and_features(
        self, examples: Sequence[Example], batch_size: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """What a classifier says of a batch of examples at most, and the `features` it says it by.

        Raises:
            ValueError: if the network has no module `head`.
        """
        return self._of_a_batch(self._features, examples, batch_size or self.config.batch_size)

    def _of_a_batch(self, compiled: Any, examples: Sequence[Example], size: int) -> Any:
        inputs = np.stack([example["inputs"] for example in examples])
        inputs = np.pad(inputs, [(0, size - len(inputs))] + [(0, 0)] * (inputs.ndim - 1))
        said = compiled(self._on_device, inputs)
        return jax.tree.map(lambda values: np.asarray(values)[: len(examples)], said)

    @functools.cached_property
    def _compiled(self) -> Any:
        return jax.jit(functools.partial(self.task.predict, self.model))

    @functools.cached_property
    def _features(self) -> Any:
        return jax.jit(
            functools.partial(into_head, functools.partial(self.task.predict, self.model))
        )

    @functools.cached_property
    def _on_device(self) -> Any:
        return jax.device_put(dict(self.variables))

    @functools.cached_property
    def _transform(self) -> Any:
        return self.task.make_transform(train=False)

    def _picture(self, raw: np.ndarray) -> np.ndarray:
        if raw.dtype != np.uint8:
            raise ValueError(f"of {raw.dtype}; pictures are uint8, 0 to 255")
        height, width = self.shape[:2]
        if (
            self.hears
            or self.config.image_size
            or self.config.task == "segmentation"
            or height != width
        ):
            return raw
        # The run's pictures were all of one size.
        return transforms.crop_to_square(raw, height)

    def _series(self, raw: np.ndarray) -> np.ndarray:
        raw = raw.astype(np.float64)
        # An end of missing values belongs to all channels or to none.
        row = Series(0, "", list(raw.T), padded=raw.shape[-1] == 1)
        return prepare_like_training(row, self.shape)


def into_head(
    ask: Callable[..., jax.Array], variables: Mapping[str, Any], inputs: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What a network says, and what comes into its module `head`, the classifier: float32 `[B, D]`.

    Args:
        ask: (variables, inputs) to what the network says.
        variables: the network's.
        inputs: `[B, ...]`.

    Raises:
        ValueError: if there is none.
    """
    seen = []

    def notice(call: Any, args: tuple, kwargs: dict, context: Any) -> Any:
        if context.module.name == "head" and context.method_name == "__call__":
            seen.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(notice):
        said = ask(variables, inputs)
    if not seen:
        raise ValueError("the network has no module named head")
    return said, seen[-1].reshape(len(inputs), -1).astype(np.float32)


def config_of(settings: Mapping[str, Any]) -> ConfigDict:
    """The config that `settings` were written from; a setting younger than they are has its default."""
    young = traverse_util.flatten_dict(common.get_config().to_dict(), sep=".")
    known = traverse_util.flatten_dict(dict(settings), sep=".")
    # JSON has no tuples.
    known = {name: tuple(v) if isinstance(v, list) else v for name, v in known.items()}
    return ConfigDict(traverse_util.unflatten_dict({**young, **known}, sep="."))
