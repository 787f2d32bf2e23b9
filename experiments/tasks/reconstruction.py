"""Reconstruction: an autoencoder, mean squared error, and what a picture's code is.

Labels are not looked at: any pictures will do, those of recordings among them.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn import layers, models
from dyn.models.autoencoder import CODE_ACTIVATIONS, POOLINGS
from experiments.core.errors import UserError
from experiments.data import Dataset, Example
from experiments.figures.reconstruction import draw_reconstructions
from experiments.tasks.backbone import CONVS, make_layer
from experiments.tasks.classification import Classification
from experiments.tasks.task import Array, Batch, Loss, Task, Variables

WORDS = {"pooling": POOLINGS, "window": (2, 4), "code_activation": tuple(CODE_ACTIVATIONS)}
SHOWN = 6  # pictures beside what comes back of them


class Reconstruction(Task):
    """Encodes pictures and decodes them again: mean squared error, ranked by the signal-to-noise ratio."""

    metric = "psnr"
    augmentations = Classification.augmentations
    sections = ("autoencoder", "conv", "dtype")

    def make_model(self, num_classes: int, spatial_axes: int) -> nn.Module:
        """Returns the autoencoder, whose encoder convolves with `config.conv`."""
        del num_classes
        fields = self.config.autoencoder
        for field, words in WORDS.items():
            if fields[field] not in words:
                raise UserError(
                    f"--config.autoencoder.{field}={fields[field]}: choose one of "
                    f"{', '.join(map(str, words))}."
                )
        if not fields.widths or not all(isinstance(w, int) and w > 0 for w in fields.widths):
            raise UserError(
                f"--config.autoencoder.widths={fields.widths}: give the features of each level, such as "
                "(64, 128, 256, 6)."
            )
        if spatial_axes != 2:
            raise UserError(
                "An autoencoder is for pictures and recordings: choose such a data set."
            )
        normalise = [tuple(self.config.normalise[name]) for name in ("mean", "std")]
        if set(normalise[0]) != {0.0} or set(normalise[1]) != {1.0}:
            raise UserError(
                f"--config.normalise={normalise[0]}, {normalise[1]}: an autoencoder returns values "
                "from 0 to 1, and so must its inputs be: set mean (0.0,) and std (1.0,)."
            )
        conv = make_layer(self.config, "conv", CONVS)
        if conv.func is layers.WarehouseConv:
            raise UserError(
                f"--config.conv.name={self.config.conv.name}: kernels are shared within the stages of "
                "a residual network, and an autoencoder has none. Choose another convolution."
            )
        return models.Autoencoder(
            **{**fields, "widths": tuple(fields.widths)},
            conv=conv,
            dtype=jnp.dtype(self.config.dtype),
        )

    def compute_loss(
        self,
        model: nn.Module,
        variables: Variables,
        batch: Batch,
        rng: Array,
        head_only: bool = False,
    ) -> Loss:
        """Returns the mean squared error of a batch."""
        del head_only  # `validate` refuses it
        inputs = batch["inputs"]
        outputs, changed = model.apply(
            variables, inputs, train=True, mutable=["batch_stats", "losses"], rngs={"dropout": rng}
        )
        value = jnp.mean(squared_errors(inputs, outputs))
        return value, ({"loss": value}, dict(changed))

    def sum_metrics(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Returns what a batch adds to the error, and the range of each feature of its codes."""
        real = batch["mask"] > 0
        code, error = _code_and_error(model, variables, batch["inputs"])
        infinity = jnp.full_like(code, jnp.inf)
        return {
            "loss": jnp.sum(jnp.where(real, error, jnp.zeros_like(error))),
            "count": jnp.sum(real, dtype=jnp.float32),
            "least": jnp.min(jnp.where(real[:, None], code, infinity), axis=0),
            "most": jnp.max(jnp.where(real[:, None], code, -infinity), axis=0),
        }

    def compute_metrics(
        self, sums: Iterable[Mapping[str, np.ndarray]], dataset: Dataset, split: str
    ) -> dict[str, float]:
        """Returns `loss`, the mean squared error; `psnr`, -10 log10 of it, in decibels; and `dead_features`.

        A feature of the code is dead if it has one value for the whole split.
        """
        del dataset, split
        parts = list(sums)
        least = np.min([part["least"] for part in parts], axis=0)
        most = np.max([part["most"] for part in parts], axis=0)
        total, count = (sum(float(part[name]) for part in parts) for name in ("loss", "count"))
        error = total / count
        return {
            "loss": error,
            "psnr": -10 * math.log10(max(error, np.finfo(np.float32).tiny)),
            "dead_features": int(np.sum(most <= least)),
        }

    def reference_metrics(self, dataset: Dataset) -> dict[str, float]:
        """Returns the test error of always answering with the mean training picture."""
        prepare = self.make_transform(train=False)
        mean = np.zeros(())
        for example in _examples(dataset, "train", prepare):
            mean = mean + example["inputs"].astype(np.float64)
        mean = mean / len(dataset.splits["train"])
        errors = [
            np.mean(np.square(example["inputs"] - mean))
            for example in _examples(dataset, "test", prepare)
        ]
        return {"mean_picture": float(np.mean(errors))}

    def inspect_batch(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Any]:
        """Returns code and error of each picture of a batch."""
        code, error = _code_and_error(model, variables, batch["inputs"])
        return {"codes": code, "errors": error}

    def predict(self, model: nn.Module, variables: Variables, inputs: Array) -> Array:
        """Returns the code of each picture, `[B, D]`: places, the last axis fastest, and then features."""
        return _flat(model.apply(variables, inputs, method="encode")[0])

    def draw_figures(
        self,
        model: nn.Module,
        variables: Variables,
        inspected: Mapping[str, Any],
        metrics: Mapping[str, Any],
        dataset: Dataset,
        workdir: Path,
        seed: int,
    ) -> None:
        """Draws test pictures beside their reconstructions, from the least error to the largest."""
        order = np.argsort(inspected["errors"], kind="stable")
        spread = np.linspace(0, len(order) - 1, min(SHOWN, len(order))).astype(int)
        prepare, source = self.make_transform(train=False), dataset.splits["test"]
        inputs = np.stack([prepare(source[int(index)])["inputs"] for index in order[spread]])
        # To this host alone: the others are not here.
        variables = jax.device_get(dict(variables))
        outputs = np.asarray(
            jax.jit(partial(model.apply, train=False))(variables, inputs), np.float32
        )
        draw_reconstructions(
            inputs,
            outputs,
            [f"{inspected['errors'][index]:.4f}" for index in order[spread]],
            f"Test pictures and what came back: mean squared error {metrics['loss']:.4f}",
            f"From the least error to the largest. The mean picture's: {metrics['mean_picture']:.4f}.",
            workdir / "figures" / "reconstructions.png",
        )


def squared_errors(inputs: Array, outputs: Array) -> Array:
    """Returns the mean over pixels and channels of each example, float32 `[B]`."""
    difference = outputs.astype(jnp.float32) - inputs.astype(jnp.float32)
    return jnp.mean(jnp.square(difference), axis=tuple(range(1, inputs.ndim)))


def _examples(dataset: Dataset, split: str, prepare: Callable[..., Example]) -> Iterable[Example]:
    source = dataset.splits[split]
    return (prepare(source[index]) for index in range(len(source)))


def _code_and_error(model: nn.Module, variables: Variables, inputs: Array) -> tuple[Array, Array]:
    def both(model: nn.Module, x: Array) -> tuple[Array, Array]:
        code, switches = model.encode(x)
        return code, model.decode(code, switches, channels=x.shape[-1])

    code, outputs = model.apply(variables, inputs, method=both)
    return _flat(code), squared_errors(inputs, outputs)


def _flat(code: Array) -> Array:
    return code.reshape(code.shape[0], -1).astype(jnp.float32)
