"""Pictures of a generator, and real pictures to compare them with."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn.models import ACGAN
from experiments.data import Example, Source

READ_PER_CLASS = 40  # examples that are read in search of those to show


@partial(jax.jit, static_argnums=(0, 4))
def _generate(
    model: ACGAN, variables: Any, noise: jax.Array, labels: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    made = model.apply(variables, noise, labels, shape, method="generate")
    return made.astype(jnp.float32)


def generate_pictures(
    model: ACGAN,
    variables: Mapping[str, Any],
    noise: np.ndarray,
    labels: np.ndarray,
    shape: Sequence[int],
    batch_size: int,
) -> np.ndarray:
    """Returns generated pictures as they are stored, uint8 `[N, H, W, C]`.

    All batches have one shape, so that the generator is compiled once.
    """
    batches = [np.zeros((0, *shape), np.uint8)]
    for start in range(0, len(noise), batch_size):
        part = slice(start, start + batch_size)
        missing = batch_size - len(noise[part])
        z = np.pad(noise[part], [(0, missing), (0, 0)])
        y = np.pad(labels[part], (0, missing))
        pictures = np.asarray(_generate(model, variables, z, y, tuple(shape)))
        batches.append(to_uint8(pictures)[: batch_size - missing])
    return np.concatenate(batches)


def draw_noise(seed: int, labels: np.ndarray, numbers: np.ndarray, latent: int) -> np.ndarray:
    """Returns the noise of pictures, `[N, latent]`; each depends on its own label and number alone."""
    noise = np.zeros((len(labels), latent), np.float32)
    for index, (label, number) in enumerate(zip(labels, numbers, strict=True)):
        rng = np.random.default_rng((seed, int(label), int(number)))
        noise[index] = rng.standard_normal(latent)
    return noise


def to_uint8(pictures: np.ndarray) -> np.ndarray:
    """Returns pictures from -1 to 1 as uint8, 0 to 255: undoes their normalisation."""
    return np.clip(np.round((pictures.astype(np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def choose_real(
    source: Source,
    transform: Callable[[Example], Example],
    classes: Iterable[int],
    number: int,
    seed: int,
) -> dict[int, np.ndarray]:
    """Returns a few real pictures of each class, `[n, H, W, C]` uint8, by class number.

    A bounded number of examples is read, so there may be fewer than `number` pictures of a rare class; a
    class that does not occur among these examples is left out.
    """
    pictures: dict[int, list[np.ndarray]] = {label: [] for label in classes}
    order = np.random.default_rng(seed).permutation(len(source))
    for index in order[: READ_PER_CLASS * len(pictures)]:
        example = source[int(index)]
        mine = pictures.get(int(example["label"]))
        if mine is not None and len(mine) < number:
            mine.append(to_uint8(transform(example)["inputs"]))
        if all(len(of_class) == number for of_class in pictures.values()):
            break
    return {label: np.stack(of_class) for label, of_class in pictures.items() if of_class}


def measure_diversity(pictures: Mapping[int, np.ndarray]) -> float:
    """Returns how different the pictures of a class are.

    That is the root of the mean variance of a pixel within a class; classes with one picture are left out.
    """
    variances = [
        of_class.astype(np.float64).var(axis=0, ddof=1).mean()
        for of_class in pictures.values()
        if len(of_class) > 1
    ]
    return float(np.sqrt(np.mean(variances))) if variances else 0.0
