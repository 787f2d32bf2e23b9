"""Augments and normalises stored examples for the network, on NumPy and Pillow.

Pictures are uint8 `[H, W, C]` until they are normalised last; series are float32 `[L, C]`. All randomness
comes from the generator that is passed in, so the seed decides it.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from experiments.core.errors import UserError
from experiments.core.words import count_noun
from experiments.data.dataset import Example

AUGMENTATIONS = ("none", "affine", "shift", "crop_flip", "resized_crop", "series", "cyclic")

# Share of the picture that a resized crop keeps, and its ratio of width to height, as for Inception.
_CROP_AREA = (0.08, 1.0)
_CROP_RATIO = (3 / 4, 4 / 3)


def resize(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resamples a picture bilinearly, without aliasing when it shrinks."""
    if picture.shape[:2] == (height, width):
        return picture
    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return resized.reshape(height, width, picture.shape[-1])


def crop_to_square(picture: np.ndarray, size: int) -> np.ndarray:
    """Resizes the shorter side to `size` and crops the middle square; size 0 changes nothing."""
    height, width = picture.shape[:2]
    if not size or (height, width) == (size, size):
        return picture
    # Resizing the whole of a 1 by N picture would take N times the memory of the crop.
    reach = 2 * min(height, width)
    picture = picture[max(0, height // 2 - reach) :, max(0, width // 2 - reach) :]
    picture = picture[: 2 * reach, : 2 * reach]
    height, width = picture.shape[:2]
    scale = size / min(height, width)
    picture = resize(picture, max(size, round(height * scale)), max(size, round(width * scale)))
    top, left = (picture.shape[0] - size) // 2, (picture.shape[1] - size) // 2
    return picture[top : top + size, left : left + size]


def random_affine(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotates a picture by up to 10 degrees, scales it by up to a tenth, moves it by up to a sixteenth."""
    size = np.array(picture.shape[:2])
    angle = np.deg2rad(rng.uniform(-10, 10))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation / rng.uniform(0.9, 1.1, 2)
    centre = (size - 1) / 2
    offset = centre - matrix @ (centre + rng.uniform(-1, 1, 2) * size / 16)
    channels = [
        ndimage.affine_transform(picture[..., c].astype(np.float32), matrix, offset, order=1)
        for c in range(picture.shape[-1])
    ]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)


def random_shift(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moves a picture by up to an eighth of its size in each direction; the gap is black."""
    height, width = picture.shape[:2]
    down, right = max(1, height // 8), max(1, width // 8)
    padded = np.pad(picture, ((down, down), (right, right), (0, 0)))
    top, left = rng.integers(0, 2 * down + 1), rng.integers(0, 2 * right + 1)
    return padded[top : top + height, left : left + width]


def random_flip(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors a picture from left to right with a probability of one half."""
    return picture[:, ::-1] if rng.random() < 0.5 else picture


def random_resized_crop(picture: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Cuts out a random part of random shape and resizes it to `size` (0: the size of the picture)."""
    height, width = picture.shape[:2]
    target = (size, size) if size else (height, width)
    for _ in range(10):  # A crop may not fit; ten draws nearly always find one that does.
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
    """Maps 0..255 to 0..1, then subtracts `mean` and divides by `std`: one number or one per channel."""
    mean, std = np.asarray(mean, np.float32).ravel(), np.asarray(std, np.float32).ravel()
    channels = picture.shape[-1]
    for name, values in (("mean", mean), ("std", std)):
        if values.size not in (1, channels):
            raise UserError(
                f"--config.normalise.{name} has {count_noun(values.size, 'value')}, but the pictures have "
                f"{count_noun(channels, 'channel')}; set one value or {channels}."
            )
    return (picture.astype(np.float32) / np.float32(255) - mean) / std


def random_jitter(series: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds Gaussian noise with a standard deviation of 0.03."""
    return series + rng.normal(0, 0.03, series.shape).astype(np.float32)


def random_scaling(series: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Multiplies each channel by a random factor around 1, with a standard deviation of 0.1."""
    return series * rng.normal(1, 0.1, series.shape[-1]).astype(np.float32)


def random_time_shift(series: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moves a series by up to a fiftieth of its length; the end value fills the gap."""
    offset = _draw_shift(series, rng)
    return series[np.clip(np.arange(len(series)) + offset, 0, len(series) - 1)]


def random_cyclic_shift(series: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rolls a closed series, such as an outline, by up to a fiftieth of its length."""
    return np.roll(series, _draw_shift(series, rng), axis=0)


def _draw_shift(series: np.ndarray, rng: np.random.Generator) -> int:
    reach = max(1, round(0.02 * len(series)))
    return int(rng.integers(-reach, reach + 1))


def random_window_warp(series: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Plays a tenth of a series at half or double speed; the length stays the same."""
    length = len(series)
    window = max(2, round(0.1 * length))
    if length < 2 * window:
        return series
    start = rng.integers(0, length - window + 1)
    speed = rng.choice([0.5, 2.0])
    # Position in the original of each moment of the warped series, rescaled to the same length.
    steps = np.ones(length - 1)
    steps[start : start + window] = speed
    moments = np.concatenate([[0.0], np.cumsum(steps)])
    moments *= (length - 1) / moments[-1]
    grid = np.arange(length)
    channels = [np.interp(moments, grid, channel) for channel in series.T]
    return np.stack(channels, axis=-1).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Prepares an example for evaluation, without randomness.

    Attributes:
        image_size: side of the square that pictures are cropped to; 0 keeps their size.
        mean: mean of the pictures on the scale 0..1; one number or one per channel.
        std: their standard deviation; one number or one per channel.
    """

    image_size: int
    mean: float | Sequence[float]
    std: float | Sequence[float]

    def __call__(self, example: Example) -> Example:
        """Returns float32 `inputs` and the int32 `label`."""
        inputs = example["inputs"]
        if inputs.ndim == 3:
            inputs = normalise(crop_to_square(inputs, self.image_size), self.mean, self.std)
        return _make_example(inputs, example["label"])


SERIES = {
    "series": (random_window_warp, random_time_shift, random_scaling, random_jitter),
    "cyclic": (random_cyclic_shift, random_scaling),
}


@dataclasses.dataclass(frozen=True)
class Augment:
    """Augments and prepares an example for training.

    Attributes:
        augment: one of `AUGMENTATIONS`.
        prepare: the preparation for evaluation, for the size and the normalisation.
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
            alternative = "one for pictures" if inputs.ndim == 3 else "'series'"
            raise UserError(
                f"The augmentation {self.augment!r} is not for {kind}; choose 'none' or {alternative}."
            )
        if self.augment in SERIES:
            for step in SERIES[self.augment]:
                inputs = step(inputs, rng)
            return _make_example(inputs, example["label"])
        size, mean, std = self.prepare.image_size, self.prepare.mean, self.prepare.std
        if self.augment == "resized_crop":
            inputs = random_flip(random_resized_crop(inputs, size, rng), rng)
        elif self.augment == "affine":
            inputs = random_affine(crop_to_square(inputs, size), rng)
        elif self.augment == "crop_flip":
            inputs = random_flip(random_shift(crop_to_square(inputs, size), rng), rng)
        else:
            inputs = random_shift(crop_to_square(inputs, size), rng)
        return _make_example(normalise(inputs, mean, std), example["label"])


@dataclasses.dataclass(frozen=True)
class AugmentFirst:
    """Applies the augmentation of a data set, and then that of a task.

    Attributes:
        augment: of the data set; see `Dataset`.
        transform: of the task, for training.
    """

    augment: Callable[[Example, np.random.Generator], Example]
    transform: Callable[[Example, np.random.Generator], Example]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns the network's inputs and the label."""
        return self.transform(self.augment(example, rng), rng)


def make_transform(
    augment: str,
    image_size: int = 0,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    *,
    train: bool,
) -> Augment | Prepare:
    """Returns the callable that turns stored examples into the network's inputs.

    Args:
        augment: `none`; for pictures `affine` (rotate, scale and move slightly: for digits), `shift` (move
            slightly), `crop_flip` (pad, crop, mirror) or `resized_crop` (random crop, resize, mirror); for
            series `series` (window warp, time shift, scaling, jitter) or `cyclic` (roll and scale: for
            outlines).
        image_size: side of the square that pictures are cropped to; 0 keeps their size.
        mean: mean of the pictures on the scale 0..1; series are already normalised.
        std: their standard deviation.
        train: whether the callable augments.

    Returns:
        A picklable function of `(example, generator)` for training, of `(example)` otherwise. Both return
        `{'inputs': float32, 'label': int32}`.
    """
    check_augmentation(augment, AUGMENTATIONS)
    prepare = Prepare(image_size, to_python(mean), to_python(std))
    return Augment(augment, prepare) if train else prepare


def check_augmentation(augment: str, known: Sequence[str], kind: str = "") -> None:
    """Raises a UserError for an unknown augmentation; `kind` is their purpose, such as ' for masks'."""
    if augment not in known:
        raise UserError(
            f"There is no augmentation {augment!r}{kind}; choose one of {', '.join(known)}."
        )


def _make_example(inputs: np.ndarray, label: np.ndarray) -> Example:
    # Multi-label examples have float labels with NaN for unknown.
    label = np.asarray(label, np.float32) if np.ndim(label) else np.int32(label)
    return {"inputs": np.ascontiguousarray(inputs, np.float32), "label": label}


def to_python(values: float | Sequence[float]) -> float | tuple[float, ...]:
    """Converts numbers to Python floats, which can be hashed and compared."""
    return tuple(float(v) for v in values) if np.ndim(values) else float(values)
