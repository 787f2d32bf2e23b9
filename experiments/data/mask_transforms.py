"""Augments and prepares pictures with masks for segmentation, and restores predictions to the picture's size.

Picture and mask go through the same geometry: pictures are interpolated, masks take the nearest pixel. The
area outside the picture has the mean colour and the ignored label 255. All randomness comes from the
generator that is passed in, so the seed decides it.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from experiments.data import transforms
from experiments.data.dataset import Example
from experiments.data.masks import IGNORE

AUGMENTATIONS = ("none", "affine_crop")

_ROTATION = 15.0  # degrees in either direction
_ZOOM = (0.8, 1.2)
_BRIGHTNESS = (0.8, 1.2)


def pad_to_square(
    image: np.ndarray, size: int, fill: int | Sequence[int] = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Fits a whole picture or mask into a square: scales it down if it is larger, then pads it.

    It is never scaled up or cropped, and lies in the upper left corner. A picture and its mask share one
    geometry.

    Args:
        image: uint8 `[H, W, C]`, a picture, or integers `[H, W]`, a mask.
        size: side S of the square; 0 changes nothing.
        fill: value of the rest of the square, one value or one per channel.

    Returns:
        `[S, S, C]` or `[S, S]`, and the geometry for `restore_size`: int32 `[4]`, H, W, and the height and
        width within the square.
    """
    height, width = image.shape[:2]
    scaled = _fit_into(height, width, size)
    geometry = np.array([height, width, *scaled], np.int32)
    image = _resize(image, *scaled)
    if not size or scaled == (size, size):
        return image, geometry
    square = np.empty((size, size, *image.shape[2:]), image.dtype)
    square[:] = fill
    square[: scaled[0], : scaled[1]] = image
    return square, geometry


def restore_size(prediction: np.ndarray, geometry: np.ndarray) -> np.ndarray:
    """Restores the prediction for a square from `pad_to_square` to the size of the picture.

    Args:
        prediction: class numbers, integers `[S, S]`, resampled to the nearest; or logits, floats `[S, S, C]`,
            interpolated before the highest is chosen (smoother if the picture was scaled down).
        geometry: the geometry that `pad_to_square` returned for the picture.

    Returns:
        Class numbers `[H, W]` of the type of `prediction`; int32 for logits.
    """
    height, width, *scaled = (int(number) for number in geometry)
    prediction = prediction[: scaled[0], : scaled[1]]
    if prediction.ndim == 2:
        return _resize(prediction, height, width)
    best = np.full((height, width), -np.inf, np.float32)
    winner = np.zeros((height, width), np.int32)
    # One class at a time: all of them at full size may not fit into memory.
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
    """Mirrors, rotates and zooms a picture and its mask, and cuts a square out of them.

    They are mirrored from left to right with a probability of one half, rotated by up to 15 degrees, and
    zoomed by 0.8 to 1.2 from the size that `pad_to_square` would give them, so that objects have about the
    size that they have in evaluation. If the result is larger than the square, a random part is cut out; if
    it is smaller, it lies at a random position; the area around it has the colour `fill` and the label 255.

    Args:
        picture: uint8 `[H, W, 3]`.
        mask: uint8 `[H, W]`.
        size: side of the square; 0 keeps H and W.
        fill: colour of the area outside the picture.
        rng: source of randomness.
    """
    mirrored = rng.random() < 0.5
    angle = np.deg2rad(rng.uniform(-_ROTATION, _ROTATION))
    zoom = rng.uniform(*_ZOOM)
    place = rng.random(2)

    scaled = _fit_into(*mask.shape, size)
    target = np.array((size, size) if size else mask.shape)
    picture, mask = _resize(picture, *scaled), _resize(mask, *scaled)
    extent = np.array(scaled)
    # The slack is the free part of the square, or, if negative, the excess of the picture; the share `place`
    # of it lies before the picture.
    centre = place * (target - extent * zoom) + extent * zoom / 2
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
    if mirrored:
        matrix[1] *= -1
    # Maps a point of the result (row, column) to the point of the picture that is seen there.
    offset = extent / 2 - matrix @ centre
    return (
        _warp(picture, matrix, offset, target, Image.Resampling.BILINEAR, tuple(fill)),
        _warp(mask, matrix, offset, target, Image.Resampling.NEAREST, IGNORE),
    )


def random_brightness(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Multiplies a uint8 picture by 0.8 to 1.2."""
    values = np.arange(256) * rng.uniform(*_BRIGHTNESS)
    return np.clip(np.round(values), 0, 255).astype(np.uint8)[picture]


@dataclasses.dataclass(frozen=True)
class PreparePair(transforms.Prepare):
    """Prepares a picture and its mask for evaluation: fits them into a square of `image_size`."""

    def __call__(self, example: Example) -> Example:
        """Returns float32 `inputs` `[S, S, 3]`, int32 `label` `[S, S]` and int32 `geometry` `[4]`.

        If `geometry` shows that nothing was scaled, `label` is the untouched mask, padded, and a score over
        it is the score at the original size. Otherwise apply `restore_size` to the prediction and compare it
        with the mask of the source.
        """
        picture, geometry = pad_to_square(example["inputs"], self.image_size, self.fill)
        label, _ = pad_to_square(example["label"], self.image_size, IGNORE)
        return {**self.normalise_pair(picture, label), "geometry": geometry}

    @property
    def fill(self) -> tuple[int, ...]:
        """The mean as a colour, which becomes nearly zero after normalisation."""
        colour = np.clip(np.round(np.multiply(self.mean, 255)), 0, 255).astype(int)
        return tuple(np.broadcast_to(colour, 3).tolist())

    def normalise_pair(self, picture: np.ndarray, label: np.ndarray) -> Example:
        """Returns the normalised picture and the mask in the types that the network takes."""
        inputs = transforms.normalise(picture, self.mean, self.std)
        return {
            "inputs": np.ascontiguousarray(inputs, np.float32),
            "label": label.astype(np.int32),
        }


@dataclasses.dataclass(frozen=True)
class AugmentPair:
    """Augments and prepares a picture and its mask for training.

    Attributes:
        augment: one of `AUGMENTATIONS`.
        prepare: the preparation for evaluation, for the size and the normalisation.
    """

    augment: str
    prepare: PreparePair

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns float32 `inputs` `[S, S, 3]` and int32 `label` `[S, S]`; `rng` decides the augmentation."""
        if self.augment == "none":
            prepared = self.prepare(example)
            return {"inputs": prepared["inputs"], "label": prepared["label"]}
        picture = random_brightness(example["inputs"], rng)
        size, fill = self.prepare.image_size, self.prepare.fill
        picture, label = random_affine_crop(picture, example["label"], size, fill, rng)
        return self.prepare.normalise_pair(picture, label)


def make_transform(
    augment: str,
    image_size: int,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    *,
    train: bool,
) -> AugmentPair | PreparePair:
    """Returns the callable that turns stored pictures with masks into the network's inputs.

    Arguments as for `transforms.make_transform`; `augment` is `none`, or `affine_crop`: mirror, rotate, zoom,
    crop and brightness. Pictures are fitted into the square of `image_size`, and `mean` is also the colour of
    the area outside of them. For evaluation, the callable adds the `geometry` for `restore_size`.
    """
    transforms.check_augmentation(augment, AUGMENTATIONS, " for pictures with masks")
    prepare = PreparePair(image_size, transforms.to_python(mean), transforms.to_python(std))
    return AugmentPair(augment, prepare) if train else prepare


def fit_long_side(height: int, width: int, size: int) -> tuple[int, int]:
    """Returns height and width scaled so that the longer one is `size`.

    Example:
        >>> fit_long_side(375, 500, 256)
        (192, 256)
    """
    longest = max(height, width)
    return max(1, round(height * size / longest)), max(1, round(width * size / longest))


def take_nearest(
    image: np.ndarray, region: tuple[float, float, float, float], height: int, width: int
) -> np.ndarray:
    """Returns a part of a map `[H, W]`, resized: the pixels that contain the centres of the new ones.

    Args:
        image: the map.
        region: top, left, bottom and right edge of the part, in pixels.
        height, width: of the result.
    """
    top, left, bottom, right = region
    rows, columns = (
        np.minimum((low + (np.arange(new) + 0.5) * ((high - low) / new)).astype(int), old - 1)
        for low, high, new, old in (
            (top, bottom, height, image.shape[0]),
            (left, right, width, image.shape[1]),
        )
    )
    return image[rows[:, None], columns]


def _fit_into(height: int, width: int, size: int) -> tuple[int, int]:
    """Returns the height and width after scaling down to a square of `size`."""
    if not size or max(height, width) <= size:
        return height, width
    return fit_long_side(height, width, size)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.ndim == 3:
        return transforms.resize(image, height, width)
    if image.shape == (height, width):
        return image
    # The nearest pixel as in Pillow.
    return take_nearest(image, (0.0, 0.0, *image.shape), height, width)


def _warp(
    image: np.ndarray,
    matrix: np.ndarray,
    offset: np.ndarray,
    target: np.ndarray,
    resampling: Image.Resampling,
    fill: int | tuple[int, ...],
) -> np.ndarray:
    """Resamples; `matrix` and `offset` map a point (row, column) of the result to one of the image.

    The origin is the image's corner, so that the centre of the first pixel is (0.5, 0.5).
    """
    (down_row, across_row), (down_column, across_column) = matrix
    data = (across_column, down_column, offset[1], across_row, down_row, offset[0])
    warped = Image.fromarray(image).transform(
        (int(target[1]), int(target[0])), Image.Transform.AFFINE, data, resampling, fillcolor=fill
    )
    return np.asarray(warped)
