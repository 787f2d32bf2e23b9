"""Pictures out of a generator, real ones beside them, and how different either are."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn.models import ACGAN
from experiments.data import Example, Source

READ = 40  # examples for each class that are looked through for those to be shown


@partial(jax.jit, static_argnums=(0, 4))
def _generate(
    model: ACGAN, variables: Any, noise: jax.Array, labels: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    made = model.apply(variables, noise, labels, shape, method="generate")
    return made.astype(jnp.float32)


def make_pictures(
    model: ACGAN,
    variables: Mapping[str, Any],
    noise: np.ndarray,
    labels: np.ndarray,
    shape: Sequence[int],
    batch_size: int,
) -> np.ndarray:
    """Generated pictures as they are stored, uint8 `[N, H, W, C]`.

    All batches have one shape, so that the generator is compiled once.

    Args:
        model: both networks.
        variables: theirs.
        noise: `[N, latent]`.
        labels: `[N]`.
        shape: of a picture, `(H, W, C)`.
        batch_size: pictures that are made at once.
    """
    made = []
    for start in range(0, len(noise), batch_size):
        part = slice(start, start + batch_size)
        missing = batch_size - len(noise[part])
        z = np.pad(noise[part], [(0, missing), (0, 0)])
        y = np.pad(labels[part], (0, missing))
        found = _generate(model, variables, z, y, tuple(shape))
        made.append(levels(np.asarray(found))[: batch_size - missing])
    return np.concatenate(made) if made else np.zeros((0, *shape), np.uint8)


def noise_of(seed: int, labels: np.ndarray, numbers: np.ndarray, latent: int) -> np.ndarray:
    """The noise of some pictures, `[N, latent]`: each has its own, whatever else is made.

    Args:
        seed: of them all.
        labels: `[N]`.
        numbers: which picture of its label each is, `[N]`.
        latent: size of the noise.
    """
    return np.array(
        [
            np.random.default_rng((seed, int(label), int(number))).standard_normal(latent)
            for label, number in zip(labels, numbers, strict=True)
        ],
        np.float32,
    ).reshape(len(labels), latent)


def levels(pictures: np.ndarray) -> np.ndarray:
    """Pictures from -1 to 1 as uint8, 0 to 255: what they would be before they are normalised."""
    return np.clip(np.round((pictures.astype(np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def labelled(
    source: Source,
    transform: Callable[[Example], Example],
    classes: Iterable[int],
    number: int,
    seed: int,
) -> dict[int, np.ndarray]:
    """Some real pictures of each class, `[n, H, W, C]` uint8 by the class's number.

    A bounded number of examples is read: of a rare class there may be fewer, and a class of which there is
    none among them is not there.

    Args:
        source: examples with one label each.
        transform: what is done to them before the networks see them.
        classes: whose pictures are wanted.
        number: of each class, at most.
        seed: decides which.
    """
    found: dict[int, list[np.ndarray]] = {label: [] for label in classes}
    order = np.random.default_rng(seed).permutation(len(source))
    for index in order[: READ * len(found)]:
        example = source[int(index)]
        mine = found.get(int(example["label"]))
        if mine is not None and len(mine) < number:
            mine.append(levels(transform(example)["inputs"]))
        if all(len(pictures) == number for pictures in found.values()):
            break
    return {label: np.stack(pictures) for label, pictures in found.items() if pictures}


def diversity(pictures: Mapping[int, np.ndarray]) -> float:
    """How different the pictures of a class are: the root of the mean variance of a pixel within a class."""
    spread = [
        many.astype(np.float64).var(axis=0, ddof=1).mean()
        for many in pictures.values()
        if len(many) > 1
    ]
    return float(np.sqrt(np.mean(spread))) if spread else 0.0
