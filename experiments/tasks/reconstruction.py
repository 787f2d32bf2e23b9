"""Reconstruction: an autoencoder and the codes of pictures.

Labels are not used: any pictures will do, spectrograms among them.
"""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn import layers, models
from experiments.core.errors import UserError
from experiments.data import Dataset
from experiments.figures.reconstruction import draw_reconstructions
from experiments.tasks.backbone import CONVS, apply_in_training, make_layer
from experiments.tasks.classification import Classification
from experiments.tasks.task import Array, Batch, Loss, Results, Task, Variables

SHOWN = 6  # test pictures in the figure


class Reconstruction(Task):
    """Encodes pictures and decodes them again: mean squared error, ranked by the signal-to-noise ratio."""

    metric = "psnr"
    augmentations = Classification.augmentations
    sections = ("autoencoder", "conv", "dtype")

    def make_model(self, num_classes: int, spatial_axes: int) -> nn.Module:
        """Returns the autoencoder, whose encoder convolves with `config.conv`."""
        del num_classes
        fields = self.config.autoencoder
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
        self, model: nn.Module, variables: Variables, batch: Batch, rng: Array, head_only: bool
    ) -> Loss:
        """Returns the mean squared error of a batch."""
        del head_only  # `validate` refuses it
        outputs, changed = apply_in_training(model, variables, batch["inputs"], rng)
        value = jnp.mean(compute_squared_errors(batch["inputs"], outputs))
        return value, ({"loss": value}, changed)

    def sum_metrics(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Returns what a batch adds to the error, and the range of each feature of its codes."""
        real = batch["mask"] > 0
        codes, errors = _encode_and_compare(model, variables, batch["inputs"])
        infinity = jnp.full_like(codes, jnp.inf)
        return {
            "loss": jnp.sum(jnp.where(real, errors, jnp.zeros_like(errors))),
            "count": jnp.sum(real, dtype=jnp.float32),
            "low": jnp.min(jnp.where(real[:, None], codes, infinity), axis=0),
            "high": jnp.max(jnp.where(real[:, None], codes, -infinity), axis=0),
        }

    def compute_metrics(
        self, sums: Iterable[Mapping[str, np.ndarray]], dataset: Dataset, split: str
    ) -> dict[str, float]:
        """Returns `loss`, the mean squared error; `psnr`, -10 log10 of it, in decibels; and `dead_features`.

        A feature of the code is dead if it has one value for the whole split.
        """
        del dataset, split
        parts = list(sums)
        low = np.min([part["low"] for part in parts], axis=0)
        high = np.max([part["high"] for part in parts], axis=0)
        total, count = (sum(float(part[name]) for part in parts) for name in ("loss", "count"))
        error = total / count
        return {
            "loss": error,
            "psnr": -10 * math.log10(max(error, np.finfo(np.float32).tiny)),
            "dead_features": int(np.sum(high <= low)),
        }

    def reference_metrics(self, dataset: Dataset) -> dict[str, float]:
        """Returns the test error of always answering with the mean training picture."""
        transform = self.make_transform(train=False)
        train, test = dataset.splits["train"], dataset.splits["test"]
        mean = sum(
            transform(train[index])["inputs"].astype(np.float64) for index in range(len(train))
        ) / len(train)
        errors = [
            np.mean(np.square(transform(test[index])["inputs"] - mean))
            for index in range(len(test))
        ]
        return {"mean_picture": float(np.mean(errors))}

    def inspect_batch(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Any]:
        """Returns the code and the error of each picture of a batch."""
        codes, errors = _encode_and_compare(model, variables, batch["inputs"])
        return {"codes": codes, "errors": errors}

    def predict(self, model: nn.Module, variables: Variables, inputs: Array) -> Array:
        """Returns the code of each picture, `[B, D]`: row by row, all features of a position together."""
        return _flatten(model.apply(variables, inputs, method="encode")[0])

    def draw_figures(self, results: Results) -> None:
        """Draws test pictures beside their reconstructions, from the least error to the largest."""
        order = np.argsort(results.inspected["errors"], kind="stable")
        shown = order[np.linspace(0, len(order) - 1, min(SHOWN, len(order))).astype(int)]
        transform, source = self.make_transform(train=False), results.dataset.splits["test"]
        inputs = np.stack([transform(source[int(index)])["inputs"] for index in shown])
        # On this host alone: the others do not call this.
        variables = jax.device_get(dict(results.variables))
        apply = jax.jit(partial(results.model.apply, train=False))
        outputs = np.asarray(apply(variables, inputs), np.float32)
        draw_reconstructions(
            inputs,
            outputs,
            [f"{results.inspected['errors'][index]:.4f}" for index in shown],
            f"Test pictures and reconstructions: mean squared error {results.metrics['loss']:.4f}",
            "From the least error to the largest. The mean picture's: "
            f"{results.metrics['mean_picture']:.4f}.",
            results.workdir / "figures" / "reconstructions.png",
        )


def compute_squared_errors(inputs: Array, outputs: Array) -> Array:
    """Returns the mean over pixels and channels of each example, float32 `[B]`."""
    difference = outputs.astype(jnp.float32) - inputs.astype(jnp.float32)
    return jnp.mean(jnp.square(difference), axis=tuple(range(1, inputs.ndim)))


def _encode_and_compare(
    model: nn.Module, variables: Variables, inputs: Array
) -> tuple[Array, Array]:
    """Returns the code of each picture, `[B, D]`, and the error of its reconstruction, `[B]`."""

    def encode_and_decode(model: nn.Module, x: Array) -> tuple[Array, Array]:
        code, switches = model.encode(x)
        return code, model.decode(code, switches, channels=x.shape[-1])

    codes, outputs = model.apply(variables, inputs, method=encode_and_decode)
    return _flatten(codes), compute_squared_errors(inputs, outputs)


def _flatten(codes: Array) -> Array:
    return codes.reshape(codes.shape[0], -1).astype(jnp.float32)
