"""Mixing of examples on the device: mixup, CutMix and smoothed labels."""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

Array = jax.Array


def mix_examples(
    mixing: ConfigDict, inputs: Array, targets: Array, rng: Array
) -> tuple[Array, Array]:
    """Returns the mixed examples of a batch with targets `[B, num_classes]`; NaN stays NaN.

    `mixing.mixup` and `.cutmix` are the alphas of their Beta distributions, 0 for none. If both are on, each
    batch is mixed by one of them, drawn with equal probability.
    """
    ways: list[Any] = []
    if mixing.mixup:
        ways.append(lambda key: mixup(inputs, targets, mixing.mixup, key))
    if mixing.cutmix:
        ways.append(lambda key: cutmix(inputs, targets, mixing.cutmix, key))
    if not ways:
        return inputs, targets
    choose, draw = jax.random.split(rng)
    return jax.lax.switch(jax.random.randint(choose, (), 0, len(ways)), ways, draw)


def make_targets(labels: Array, num_classes: int) -> Array:
    """Returns labels `[B, C]` as they are, and one-hot vectors for labels `[B]`."""
    return labels if labels.ndim > 1 else jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)


def smooth_targets(targets: Array, smoothing: float) -> Array:
    """Returns targets `[B, C]` that sum to one, of which all classes share `smoothing`."""
    return targets * (1 - smoothing) + smoothing / targets.shape[-1]


def mixup(inputs: Array, targets: Array, alpha: float, rng: Array) -> tuple[Array, Array]:
    """Returns w x + (1 - w) x', with w from Beta(alpha, alpha) and x' the batch in reverse.

    Zhang, Cisse, Dauphin, Lopez-Paz: mixup: Beyond Empirical Risk Minimization. ICLR 2018.
    """
    w = jax.random.beta(rng, alpha, alpha)
    return _blend(inputs, w.astype(inputs.dtype)), _blend(targets, w.astype(targets.dtype))


def cutmix(inputs: Array, targets: Array, alpha: float, rng: Array) -> tuple[Array, Array]:
    """Pastes a box of x', the batch in reverse, into x; targets are weighted by what is left of x.

    The box covers the share 1 - w of the positions, w from Beta(alpha, alpha), except for what lies outside.
    Yun, Han, Oh, Chun, Choe, Yoo: CutMix. ICCV 2019.
    """
    draw, place = jax.random.split(rng)
    spatial = inputs.shape[1:-1]
    side = (1 - jax.random.beta(draw, alpha, alpha)) ** (1 / len(spatial))
    inside = jnp.ones((), bool)
    for axis, (size, key) in enumerate(
        zip(spatial, jax.random.split(place, len(spatial)), strict=True)
    ):
        centre = jax.random.uniform(key, maxval=float(size))
        positions = jnp.arange(size, dtype=jnp.float32) + 0.5
        line = jnp.abs(positions - centre) < side * size / 2
        inside = inside & line.reshape([-1 if a == axis else 1 for a in range(len(spatial))])
    w = 1 - jnp.mean(inside, dtype=jnp.float32)
    mixed = jnp.where(inside[None, ..., None], inputs[::-1], inputs)
    return mixed, _blend(targets, w.astype(targets.dtype))


def _blend(x: Array, w: Array) -> Array:
    return w * x + (1 - w) * x[::-1]
