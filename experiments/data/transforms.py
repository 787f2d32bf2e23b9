"""From a stored example to what the network sees: small functions on NumPy and Pillow.

Pictures are uint8 `[H, W, C]` until they are normalised last; series are float32 `[L, C]`.
Everything random is drawn from the generator that is passed in, so a seed decides it all.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from experiments.core.errors import UserError
from experiments.data.dataset import Example

AUGMENTATIONS = ("none", "affine", "shift", "crop_flip", "resized_crop", "series", "cyclic")

_CROP_AREA = (0.08, 1.0)  # Share of the picture that a resized crop keeps, and its
_CROP_RATIO = (3 / 4, 4 / 3)  # width to height, both as in the training of Inception.


def resize(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resamples a picture bilinearly, without aliasing where it shrinks."""
    if picture.shape[:2] == (height, width):
        return picture
    return _array(_image(picture).resize((width, height), Image.Resampling.BILINEAR), picture)


def crop_to_square(picture: np.ndarray, size: int) -> np.ndarray:
    """Brings the shorter side to `size` and crops the middle square; size 0 changes nothing."""
    height, width = picture.shape[:2]
    if not size or (height, width) == (size, size):
        return picture
    # Scaled whole, a picture of 1 by N would take N times the memory of what is kept of it.
    reach = 2 * min(height, width)
    picture = picture[max(0, height // 2 - reach) :, max(0, width // 2 - reach) :]
    picture = picture[: 2 * reach, : 2 * reach]
    height, width = picture.shape[:2]
    scale = size / min(height, width)
    picture = resize(picture, max(size, round(height * scale)), max(size, round(width * scale)))
    top, left = (picture.shape[0] - size) // 2, (picture.shape[1] - size) // 2
    return picture[top : top + size, left : left + size]


def random_affine(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turns a picture by up to 10 degrees, scales it by up to a tenth, moves it by up to a sixteenth."""
    size = np.array(picture.shape[:2])
    angle = np.deg2rad(rng.uniform(-10, 10))
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turned / rng.uniform(0.9, 1.1, 2)
    centre = (size - 1) / 2
    offset = centre - matrix @ (centre + rng.uniform(-1, 1, 2) * size / 16)
    channels = [
        ndimage.affine_transform(picture[..., c].astype(np.float32), matrix, offset, order=1)
        for c in range(picture.shape[-1])
    ]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)


def random_shift(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moves a picture by up to an eighth of its size each way; what comes in is black."""
    height, width = picture.shape[:2]
    down, right = max(1, height // 8), max(1, width // 8)
    padded = np.pad(picture, ((down, down), (right, right), (0, 0)))
    top, left = rng.integers(0, 2 * down + 1), rng.integers(0, 2 * right + 1)
    return padded[top : top + height, left : left + width]


def random_flip(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors every second picture from left to right."""
    return picture[:, ::-1] if rng.random() < 0.5 else picture


def random_resized_crop(picture: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Cuts out a random part of random shape and brings it to `size` (0: the picture's own)."""
    height, width = picture.shape[:2]
    target = (size, size) if size else (height, width)
    for _ in range(10):  # A crop of that shape need not fit; ten draws nearly always find one.
        area = height * width * rng.uniform(*_CROP_AREA)
        ratio = np.exp(rng.uniform(*np.log(_CROP_RATIO)))
        tall, wide = round(np.sqrt(area / ratio)), round(np.sqrt(area * ratio))
        if 0 < tall <= height and 0 < wide <= width:
            top, left = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
            return resize(picture[top : top + tall, left : left + wide], *target)
    return resize(crop_to_square(picture, min(height, width)), *target)


def normalise(
    picture: np.ndarray, mean: float | Sequence[float], std: float | Sequence[float]
) -> np.ndarray:
    """Maps 0..255 to 0..1, then subtracts `mean` and divides by `std`.

    Args:
        picture: uint8 `[H, W, C]`.
        mean: one number, or one per channel, on the scale 0..1.
        std: likewise.

    Raises:
        UserError: if there is neither one number nor one per channel.
    """
    mean, std = np.asarray(mean, np.float32).ravel(), np.asarray(std, np.float32).ravel()
    channels = picture.shape[-1]
    for name, values in (("mean", mean), ("std", std)):
        if values.size not in (1, channels):
            raise UserError(
                f"The normalisation's {name} has {values.size} values, but the pictures have "
                f"{channels} channel(s); give one value or {channels}."
            )
    return (picture.astype(np.float32) / np.float32(255) - mean) / std


def random_jitter(series: np.ndarray, rng: np.random.Generator, scale: float = 0.03) -> np.ndarray:
    """Adds Gaussian noise with the standard deviation `scale`."""
    return series + rng.normal(0, scale, series.shape).astype(np.float32)


def random_scaling(series: np.ndarray, rng: np.random.Generator, scale: float = 0.1) -> np.ndarray:
    """Multiplies each channel by a random factor around 1."""
    return series * rng.normal(1, scale, series.shape[-1]).astype(np.float32)


def random_time_shift(
    series: np.ndarray, rng: np.random.Generator, share: float = 0.02
) -> np.ndarray:
    """Moves a series by up to `share` of its length; the end values fill what opens up."""
    reach = max(1, round(share * len(series)))
    offset = rng.integers(-reach, reach + 1)
    return series[np.clip(np.arange(len(series)) + offset, 0, len(series) - 1)]


def random_cyclic_shift(
    series: np.ndarray, rng: np.random.Generator, share: float = 0.02
) -> np.ndarray:
    """Moves where a closed series begins by up to `share` of its length, for instance an outline's."""
    reach = max(1, round(share * len(series)))
    return np.roll(series, rng.integers(-reach, reach + 1), axis=0)


def random_window_warp(
    series: np.ndarray, rng: np.random.Generator, share: float = 0.1
) -> np.ndarray:
    """Runs through one window of the series at half or double speed; the length stays."""
    length = len(series)
    window = max(2, round(share * length))
    if length < 2 * window:
        return series
    start = rng.integers(0, length - window + 1)
    speed = rng.choice([0.5, 2.0])
    # Where each moment of the warped series lies in the original, stretched back to the length.
    steps = np.ones(length - 1)
    steps[start : start + window] = speed
    moments = np.concatenate([[0.0], np.cumsum(steps)])
    moments *= (length - 1) / moments[-1]
    grid = np.arange(length)
    channels = [np.interp(moments, grid, channel) for channel in series.T]
    return np.stack(channels, axis=-1).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Prepare:
    """What is done to an example before evaluation: no chance is involved.

    Attributes:
        image_size: the side of the square that pictures become, 0 to leave them as they are.
        mean: subtracted from pictures on the scale 0..1; one number or one per channel.
        std: pictures are divided by it.
    """

    image_size: int
    mean: float | Sequence[float]
    std: float | Sequence[float]

    def __call__(self, example: Example) -> Example:
        """Returns float32 `inputs` and the int32 `label`."""
        inputs = example["inputs"]
        if inputs.ndim == 3:
            inputs = normalise(crop_to_square(inputs, self.image_size), self.mean, self.std)
        return _finished(inputs, example["label"])


SERIES = {
    "series": (random_window_warp, random_time_shift, random_scaling, random_jitter),
    "cyclic": (random_cyclic_shift, random_scaling),
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
        """Returns float32 `inputs` and the int32 `label`; `rng` decides the augmentation."""
        inputs = example["inputs"]
        if self.augment == "none":
            return self.prepare(example)
        if (inputs.ndim == 3) == (self.augment in SERIES):
            kind = "pictures" if inputs.ndim == 3 else "series"
            raise UserError(
                f"The augmentation {self.augment!r} is not for {kind}; choose 'none' or "
                f"{'one for pictures' if inputs.ndim == 3 else repr('series')}."
            )
        if self.augment in SERIES:
            for step in SERIES[self.augment]:
                inputs = step(inputs, rng)
            return _finished(inputs, example["label"])
        size, mean, std = self.prepare.image_size, self.prepare.mean, self.prepare.std
        if self.augment == "resized_crop":
            inputs = random_flip(random_resized_crop(inputs, size, rng), rng)
        elif self.augment == "affine":
            inputs = random_affine(crop_to_square(inputs, size), rng)
        elif self.augment == "crop_flip":
            inputs = random_flip(random_shift(crop_to_square(inputs, size), rng), rng)
        else:
            inputs = random_shift(crop_to_square(inputs, size), rng)
        return _finished(normalise(inputs, mean, std), example["label"])


def make_transform(
    augment: str,
    image_size: int,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    *,
    train: bool,
) -> Augment | Prepare:
    """Returns the callable that turns stored examples into the network's.

    Args:
        augment: `none`; for pictures `affine` (turn, scale and move a little: for digits), `shift`
            (move a little), `crop_flip` (pad, crop, mirror) or `resized_crop` (random crop,
            resize, mirror); for series `series` (window warp, time
            shift, scaling, jitter) or `cyclic` (scaling, and another beginning: for outlines).
        image_size: the side of the square that pictures become, 0 to leave them as they are.
        mean: subtracted from pictures on the scale 0..1; series come normalised already.
        std: pictures are divided by it.
        train: whether the callable augments.

    Returns:
        A function of `(example, generator)` for training, of `(example)` otherwise. Both return
        `{'inputs': float32, 'label': int32}` and can be sent to other processes.

    Raises:
        UserError: if there is no such augmentation.
    """
    check_augmentation(augment, AUGMENTATIONS)
    prepare = Prepare(image_size, to_python(mean), to_python(std))
    return Augment(augment, prepare) if train else prepare


def check_augmentation(augment: str, known: Sequence[str], kind: str = "") -> None:
    """Returns if there is such an augmentation.

    Args:
        augment: its name.
        known: the names that there are.
        kind: what they are for, as the end of a phrase such as ' for pictures'.

    Raises:
        UserError: if there is no such augmentation.
    """
    if augment not in known:
        raise UserError(
            f"There is no augmentation {augment!r}{kind}; choose one of {', '.join(known)}."
        )


def _finished(inputs: np.ndarray, label: np.ndarray) -> Example:
    # Of several labels each is a number of its own, which may be missing.
    label = np.asarray(label, np.float32) if np.ndim(label) else np.int32(label)
    return {"inputs": np.ascontiguousarray(inputs, np.float32), "label": label}


def to_python(values: float | Sequence[float]) -> float | tuple[float, ...]:
    """A number or a tuple of numbers of Python's own, which hash and compare."""
    return tuple(float(v) for v in values) if np.ndim(values) else float(values)


def _image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)


def _array(image: Image.Image, like: np.ndarray) -> np.ndarray:
    return np.asarray(image).reshape(image.height, image.width, like.shape[-1])
