"""Augments and prepares pictures with maps of objects for a detector.

Picture and map go through the same geometry: pictures are interpolated, maps take the nearest pixel. Every
result lies in the upper left corner of one square; to the right and below it is filled with zeros, the mean
colour, and void. All randomness comes from the generator that is passed in, so the seed decides it.

All squares have one size, because a batch is one array and a training step is compiled for one shape.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from experiments.core.errors import UserError
from experiments.data import mask_transforms, transforms
from experiments.data.dataset import Example
from experiments.data.instances import MAX_OBJECTS, VOID, select_objects
from experiments.data.mask_transforms import fit_long_side

SCALES = {"scale_jitter": (0.8, 1.25), "large_scale_jitter": (0.1, 2.0)}
"""Factors by which augmentations change the size of a picture that fits into the square."""

AUGMENTATIONS = ("none", *SCALES)

MIN_PIXELS = 16
"""Pixels of the smallest object in the square that a network is trained to find."""

Region = tuple[float, float, float, float]
"""Top, left, bottom and right edge of a part of a picture, in its pixels."""


def resize_region(image: np.ndarray, region: Region, height: int, width: int) -> np.ndarray:
    """Returns a part of a picture or of a map, resized.

    Args:
        image: a picture, uint8 `[H, W, 3]`, resampled bilinearly and without aliasing; or a map, integers
            `[H, W]`; see `mask_transforms.take_nearest`.
        region: the part.
        height, width: of the result.

    Returns:
        `[height, width, 3]` or `[height, width]`, of the type of `image`.
    """
    if image.ndim == 3:
        top, left, bottom, right = region
        resampled = Image.fromarray(image).resize(
            (width, height), Image.Resampling.BILINEAR, (left, top, right, bottom)
        )
        return np.asarray(resampled)
    return mask_transforms.take_nearest(image, region, height, width)


def draw_region(
    height: int, width: int, size: int, scales: tuple[float, float], rng: np.random.Generator
) -> tuple[Region, tuple[int, int]]:
    """Draws the part of a picture that a training example shows, and the size at which it shows it.

    The picture is scaled so that it fits into the square, and then by a factor between `scales`. If it is
    larger than the square, a random part of it is shown, otherwise all of it.

    Returns:
        The part, and its height and width in the square.
    """
    factor, *places = rng.uniform(*scales), rng.random(), rng.random()
    edges, shown = [], []
    for length, fitted, place in zip(
        (height, width), fit_long_side(height, width, size), places, strict=True
    ):
        scaled = max(1, round(fitted * factor))
        shown.append(min(scaled, size))
        start = place * (scaled - shown[-1]) * length / scaled
        edges.append((start, min(start + shown[-1] * length / scaled, length)))
    (top, bottom), (left, right) = edges
    return (top, left, bottom, right), (shown[0], shown[1])


@dataclasses.dataclass(frozen=True)
class PrepareObjects:
    """Prepares a picture and its objects for evaluation: its longer side becomes `image_size`.

    Attributes:
        image_size: side S of the square.
        mean, std: of the pictures on the scale 0..1; one number or one per channel.
        max_objects: G, the most objects of an example.
    """

    image_size: int
    mean: float | Sequence[float]
    std: float | Sequence[float]
    max_objects: int

    def __call__(self, example: Example) -> Example:
        """Returns what `fill_square` does, and `geometry`, int32 `[4]`.

        `geometry` is the height and width of the picture, and those within the square: pixels of the one are
        pixels of the other times the ratio, for each axis by itself. `mask_transforms.restore_size` takes it.
        """
        height, width = example["inputs"].shape[:2]
        shown = fit_long_side(height, width, self.image_size)
        prepared = self.fill_square(
            *(
                resize_region(example[name], (0, 0, height, width), *shown)
                for name in ("inputs", "label")
            ),
            example["classes"],
        )
        return {**prepared, "geometry": np.array([height, width, *shown], np.int32)}

    def fill_square(self, picture: np.ndarray, ids: np.ndarray, classes: np.ndarray) -> Example:
        """Returns a picture and its objects as the network takes them.

        Objects of fewer than 16 pixels, and the smallest of more than G, become void.

        Args:
            picture: uint8 `[h, w, 3]`, no larger than the square.
            ids: uint8 `[h, w]`, 0 background, 1 to n the objects, otherwise void.
            classes: int `[n]`.

        Returns:
            `inputs` float32 `[S, S, 3]`, `ids` uint8 `[S, S]`, `classes` int32 `[G]` (0 for no object) and
            `sizes`, int32 `[2]`, h and w.
        """
        size, (height, width) = self.image_size, ids.shape
        inputs = np.zeros((size, size, 3), np.float32)
        inputs[:height, :width] = transforms.normalise(picture, self.mean, self.std)
        kept, classes = select_objects(ids, classes, self.max_objects, MIN_PIXELS)
        square = np.full((size, size), VOID, np.uint8)
        square[:height, :width] = kept
        return {
            "inputs": inputs,
            "ids": square,
            "classes": np.pad(classes, (0, self.max_objects - len(classes))),
            "sizes": np.array([height, width], np.int32),
        }


@dataclasses.dataclass(frozen=True)
class AugmentObjects:
    """Augments and prepares a picture and its objects for training.

    Attributes:
        augment: one of `AUGMENTATIONS`.
        prepare: the preparation for evaluation, for the size and the normalisation.
    """

    augment: str
    prepare: PrepareObjects

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns what `PrepareObjects.fill_square` does; `rng` decides the augmentation."""
        picture, ids = example["inputs"], example["label"]
        size, whole = self.prepare.image_size, (0.0, 0.0, *map(float, ids.shape))
        if self.augment == "none":
            region, shown = whole, fit_long_side(*ids.shape, size)
        else:
            if rng.random() < 0.5:
                picture, ids = picture[:, ::-1], ids[:, ::-1]
            region, shown = draw_region(*ids.shape, size, SCALES[self.augment], rng)
        picture, ids = (resize_region(image, region, *shown) for image in (picture, ids))
        if self.augment != "none":
            picture = mask_transforms.random_brightness(picture, rng)
        return self.prepare.fill_square(picture, ids, example["classes"])


def make_transform(
    augment: str,
    image_size: int,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    *,
    max_objects: int,
    train: bool,
) -> AugmentObjects | PrepareObjects:
    """Returns the callable that turns stored pictures with objects into the network's inputs.

    Args:
        augment: `none`; `scale_jitter`: mirror, resize by 0.8 to 1.25 and crop, brightness; or
            `large_scale_jitter`, with 0.1 to 2. These are the two of Ghiasi et al.: Simple Copy-Paste is a
            Strong Data Augmentation Method for Instance Segmentation. CVPR 2021.
        image_size: side of the square that all pictures are fitted into.
        mean: mean of the pictures on the scale 0..1, one number or one per channel.
        std: their standard deviation.
        max_objects: the most objects of an example, up to 254.
        train: whether the callable augments.

    Returns:
        A picklable function of `(example, generator)` for training, of `(example)` otherwise, which adds the
        `geometry`. Examples have `inputs`, `label` and `classes`, as `experiments.data.instances` says; see
        `PrepareObjects` for the results.
    """
    transforms.check_augmentation(augment, AUGMENTATIONS, " for pictures with objects")
    if image_size < 1:
        raise UserError(
            f"--config.image_size={image_size}: a detector needs one size for all pictures; choose a "
            "multiple of 64, such as 512."
        )
    if not 1 <= max_objects <= MAX_OBJECTS:
        raise UserError(f"{max_objects} objects of a picture: choose 1 to {MAX_OBJECTS}.")
    prepare = PrepareObjects(
        image_size, transforms.to_python(mean), transforms.to_python(std), max_objects
    )
    return AugmentObjects(augment, prepare) if train else prepare
