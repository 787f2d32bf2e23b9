"""From a picture and its mask to what a segmentation network sees, and back to the picture's size.

Both go through the same geometry: pictures are interpolated, masks take the nearest pixel. What lies
outside the picture has its mean colour, and the label 255, which counts for nothing. Everything
random is drawn from the generator that is passed in, so a seed decides it all.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from experiments.data import transforms
from experiments.data.dataset import Example
from experiments.data.masks import IGNORE

AUGMENTATIONS = ("none", "affine_crop")

_TURN = 15.0  # degrees either way
_ZOOM = (0.8, 1.2)
_BRIGHTNESS = (0.8, 1.2)


def pad_to_square(
    image: np.ndarray, size: int, fill: int | Sequence[int] = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Brings a picture or a mask into a square, whole: scaled down where it is larger, then padded.

    Nothing is ever scaled up or cropped, and the picture lies in the upper left corner. A picture
    and its mask share one geometry.

    Args:
        image: uint8 `[H, W, C]`, a picture, or integers `[H, W]`, a mask.
        size: the side S of the square; 0 changes nothing.
        fill: what the rest of the square holds, one value or one per channel.

    Returns:
        `[S, S, C]` or `[S, S]`, and the geometry for `restore_size`: int32 `[4]`, H, W, and the height
        and width within the square.
    """
    height, width = image.shape[:2]
    scaled = _shrunk(height, width, size)
    geometry = np.array([height, width, *scaled], np.int32)
    image = _resize(image, *scaled)
    if not size or scaled == (size, size):
        return image, geometry
    square = np.empty((size, size, *image.shape[2:]), image.dtype)
    square[:] = fill
    square[: scaled[0], : scaled[1]] = image
    return square, geometry


def restore_size(prediction: np.ndarray, geometry: np.ndarray) -> np.ndarray:
    """Brings what a network says of a square from `pad_to_square` back to the size of the picture.

    Args:
        prediction: integers `[S, S]`, class numbers, of which the nearest is taken; or floats
            `[S, S, C]`, logits, which are interpolated before the highest is taken (smoother
            where the picture had been scaled down).
        geometry: as `pad_to_square` returned it for the picture.

    Returns:
        Class numbers `[H, W]`, with the type of `prediction`, or int32 from logits.
    """
    height, width, *scaled = (int(number) for number in geometry)
    prediction = prediction[: scaled[0], : scaled[1]]
    if prediction.ndim == 2:
        return _resize(prediction, height, width)
    best = np.full((height, width), -np.inf, np.float32)
    winner = np.zeros((height, width), np.int32)
    # One class after another: all of them at once, at full size, may not fit into memory.
    for number in range(prediction.shape[-1]):
        plane = Image.fromarray(np.ascontiguousarray(prediction[..., number], np.float32))
        value = np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR))
        winner[value > best] = number
        best = np.maximum(best, value)
    return winner


def random_affine_crop(
    picture: np.ndarray,
    mask: np.ndarray,
    size: int,
    fill: Sequence[int],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Mirrors, turns and zooms a picture and its mask, and cuts a square out of them.

    Every second one is mirrored from left to right. Turned by up to 15 degrees, zoomed by 0.8 to
    1.2, starting from the size that `pad_to_square` would give it, so that things have the size that they
    have in evaluation. Where the result is larger than the square, a random part of it is cut
    out; where it is smaller, it lies at a random place in it.

    Args:
        picture: uint8 `[H, W, 3]`.
        mask: uint8 `[H, W]`.
        size: the side S of the square; 0 keeps H and W.
        fill: the colour of what lies outside the picture; its label is 255.
        rng: decides it all.

    Returns:
        uint8 `[S, S, 3]` and `[S, S]`.
    """
    mirrored = rng.random() < 0.5
    angle = np.deg2rad(rng.uniform(-_TURN, _TURN))
    zoom = rng.uniform(*_ZOOM)
    place = rng.random(2)

    scaled = _shrunk(*mask.shape, size)
    target = np.array((size, size) if size else mask.shape)
    picture, mask = _resize(picture, *scaled), _resize(mask, *scaled)
    extent = np.array(scaled)
    # The slack is what is left of the square, or below zero what is too much of the picture:
    # either way its share `place` lies before the picture.
    centre = place * (target - extent * zoom) + extent * zoom / 2
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
    if mirrored:
        turned[1] *= -1
    # From a point of the result, row and column, to the point of the picture that is seen there.
    offset = extent / 2 - turned @ centre
    return (
        _warp(picture, turned, offset, target, Image.Resampling.BILINEAR, tuple(fill)),
        _warp(mask, turned, offset, target, Image.Resampling.NEAREST, IGNORE),
    )


def random_brightness(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Multiplies a uint8 picture by 0.8 to 1.2."""
    values = np.arange(256) * rng.uniform(*_BRIGHTNESS)
    return np.clip(np.round(values), 0, 255).astype(np.uint8)[picture]


@dataclasses.dataclass(frozen=True)
class Prepare:
    """What is done to an example before evaluation: no chance is involved.

    Attributes:
        image_size: the side of the square that pictures are brought into, 0 to leave them.
        mean: subtracted from pictures on the scale 0..1; one number or one per channel.
        std: pictures are divided by it.
    """

    image_size: int
    mean: float | Sequence[float]
    std: float | Sequence[float]

    def __call__(self, example: Example) -> Example:
        """Returns float32 `inputs` `[S, S, 3]`, int32 `label` `[S, S]` and int32 `geometry` `[4]`.

        Where `geometry` says that nothing was scaled, `label` is the untouched mask, padded: then
        a score over it is the score at the original size. Otherwise `restore_size` the prediction and
        compare it with the mask of the source.
        """
        picture, geometry = pad_to_square(example["inputs"], self.image_size, self.fill)
        label, _ = pad_to_square(example["label"], self.image_size, IGNORE)
        return {**self.finished(picture, label), "geometry": geometry}

    @property
    def fill(self) -> tuple[int, ...]:
        """The mean as a colour: nearly zero once it is normalised."""
        colour = np.clip(np.round(np.multiply(self.mean, 255)), 0, 255).astype(int)
        return tuple(np.broadcast_to(colour, 3).tolist())

    def finished(self, picture: np.ndarray, label: np.ndarray) -> Example:
        """Normalises the picture; types as the network takes them."""
        inputs = transforms.normalise(picture, self.mean, self.std)
        return {
            "inputs": np.ascontiguousarray(inputs, np.float32),
            "label": label.astype(np.int32),
        }


@dataclasses.dataclass(frozen=True)
class Augment:
    """What is done to an example before training.

    Attributes:
        augment: one of `AUGMENTATIONS`.
        prepare: what evaluation would do, for the size and the normalisation.
    """

    augment: str
    prepare: Prepare

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns float32 `inputs` `[S, S, 3]` and int32 `label` `[S, S]`; `rng` decides them."""
        if self.augment == "none":
            prepared = self.prepare(example)
            return {"inputs": prepared["inputs"], "label": prepared["label"]}
        picture = random_brightness(example["inputs"], rng)
        size, fill = self.prepare.image_size, self.prepare.fill
        return self.prepare.finished(
            *random_affine_crop(picture, example["label"], size, fill, rng)
        )


def make_transform(
    augment: str,
    image_size: int,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    *,
    train: bool,
) -> Augment | Prepare:
    """Returns the callable that turns stored pictures with masks into the network's.

    Args:
        augment: `none`, or `affine_crop`: mirror, turn, zoom, crop and brightness.
        image_size: the side S of the square that pictures are brought into; 0 to leave them as
            they are, where all are of one size.
        mean: subtracted from pictures on the scale 0..1, and the colour outside of them.
        std: pictures are divided by it.
        train: whether the callable augments.

    Returns:
        A function of `(example, generator)` for training, of `(example)` otherwise, which adds
        the `geometry` for `restore_size`. Both can be sent to other processes.

    Raises:
        UserError: if there is no such augmentation.
    """
    transforms.check_augmentation(augment, AUGMENTATIONS, " for pictures with masks")
    prepare = Prepare(image_size, transforms.to_python(mean), transforms.to_python(std))
    return Augment(augment, prepare) if train else prepare


def _shrunk(height: int, width: int, size: int) -> tuple[int, int]:
    """Returns the height and width that fit into a square of `size`, the larger one exactly."""
    longest = max(height, width)
    if not size or longest <= size:
        return height, width
    return max(1, round(height * size / longest)), max(1, round(width * size / longest))


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.ndim == 3:
        return transforms.resize(image, height, width)
    # The pixel in whose area the middle of the new one lies, as Pillow's own nearest neighbour.
    row, column = (
        ((np.arange(new) + 0.5) * (old / new)).astype(int)
        for old, new in zip(image.shape, (height, width), strict=True)
    )
    return image if image.shape == (height, width) else image[row[:, None], column]


def _warp(
    image: np.ndarray,
    matrix: np.ndarray,
    offset: np.ndarray,
    target: np.ndarray,
    resampling: Image.Resampling,
    fill: int | tuple[int, ...],
) -> np.ndarray:
    """Resamples; `matrix` and `offset` lead from a point (row, column) of the result to one of the image.

    Points are counted from the image's corner, so that the first pixel's middle is (0.5, 0.5).
    """
    (down_row, across_row), (down_column, across_column) = matrix
    data = (across_column, down_column, offset[1], across_row, down_row, offset[0])
    warped = Image.fromarray(image).transform(
        (int(target[1]), int(target[0])), Image.Transform.AFFINE, data, resampling, fillcolor=fill
    )
    return np.asarray(warped)
