"""Augments spectrograms with shifts in time, gain, noise and masks, and colours and normalises them.

A spectrogram is uint8 `[H, W, 1]`. Row 0 is the highest frequency; levels are decibels in equal steps: black
is `decibels` below white. All randomness comes from the generator that is passed in.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from experiments.data.dataset import Example
from experiments.data.transforms import normalise, to_python


@dataclasses.dataclass(frozen=True)
class Distort:
    """Distorts a spectrogram randomly: shift, noise, gain and masks, each up to its limit.

    Attributes:
        decibels: range from black to white.
        masks: number of stripes of time that are blackened, and of frequency.
        mask_share: maximum width of a stripe, as a share of the side.
        noise: distance of the strongest noise from the loudest point in decibels; 0 for no noise.
        gain: maximum change of the level in decibels, up or down.
        shift: maximum roll in time, as a share of the width.
        absolute: whether levels are absolute, so that the loudest point of a picture is not white.
    """

    decibels: float
    masks: int
    mask_share: float
    noise: float
    gain: float
    shift: float = 0.0
    absolute: bool = False

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns the distorted spectrogram, uint8 `[H, W, 1]`."""
        picture = random_time_wrap(picture, rng, self.shift)
        if self.gain or self.noise:
            level = (picture.astype(np.float32) / 255 - 1) * self.decibels
            if self.noise:
                loudest = level.max() if self.absolute else 0.0
                level = add_noise(level, rng, self.noise, self.decibels, loudest)
            level += rng.uniform(-self.gain, self.gain)
            scaled = np.round((level / self.decibels + 1) * 255)
            picture = np.clip(scaled, 0, 255).astype(np.uint8)
        return random_masks(picture, rng, self.masks, self.mask_share)


def random_time_wrap(
    picture: np.ndarray, rng: np.random.Generator, share: float = 0.1
) -> np.ndarray:
    """Rolls a spectrogram in time by up to `share` of its width."""
    reach = round(share * picture.shape[1])
    return np.roll(picture, rng.integers(-reach, reach + 1), axis=1)


def add_noise(
    level: np.ndarray,
    rng: np.random.Generator,
    nearest: float,
    decibels: float,
    loudest: float = 0.0,
) -> np.ndarray:
    """Adds the power of white noise to a spectrogram in decibels.

    The power of noise in one point of a spectrogram is distributed exponentially. Its mean is drawn between
    `decibels` and `nearest` decibels below the level of the loudest point.
    """
    mean = loudest + rng.uniform(-max(decibels, nearest), -nearest)
    noise = rng.exponential(size=level.shape).astype(np.float32) * 10 ** (mean / 10)
    return 10 * np.log10(10 ** (level / 10) + noise)


def random_masks(
    picture: np.ndarray, rng: np.random.Generator, number: int = 2, share: float = 0.15
) -> np.ndarray:
    """Blackens stripes of time and of frequency, each up to `share` of the side wide.

    Source:
        Park, Chan, Zhang, Chiu, Zoph, Cubuk, Le: SpecAugment. Interspeech 2019. (Without time warping.)
    """
    picture = picture.copy()
    for axis in (0, 1):
        side = picture.shape[axis]
        for _ in range(number):
            width = rng.integers(0, round(share * side) + 1)
            start = rng.integers(0, side - width + 1)
            stripe = slice(start, start + width)
            picture[stripe if axis == 0 else (slice(None), stripe)] = 0
    return picture


@dataclasses.dataclass(frozen=True)
class Colour:
    """Colours and normalises a spectrogram for evaluation.

    Attributes:
        colour: see `experiments.audio.spectrograms.apply_colours`.
        mean: mean of the colours on the scale 0..1; one number or one per channel.
        std: their standard deviation; one number or one per channel.
    """

    colour: str
    mean: float | Sequence[float]
    std: float | Sequence[float]

    def __call__(self, example: Example) -> Example:
        """Returns float32 `inputs` and the unchanged label."""
        from experiments.audio import spectrograms

        coloured = spectrograms.apply_colours(example["inputs"][..., 0], self.colour)
        kept = {name: value for name, value in example.items() if name != "window"}
        return {**kept, "inputs": normalise(coloured, self.mean, self.std)}


@dataclasses.dataclass(frozen=True)
class DistortAndColour:
    """Distorts, colours and normalises a spectrogram for training.

    Attributes:
        distort: the distortion; None for none.
        colour: the preparation for evaluation.
    """

    distort: Distort | None
    colour: Colour

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns float32 `inputs` and the unchanged label."""
        if self.distort is not None:
            example = {**example, "inputs": self.distort(example["inputs"], rng)}
        return self.colour(example)


def make_transform(config: ConfigDict, train: bool) -> Colour | DistortAndColour:
    """Returns the callable that turns stored spectrograms into the network's inputs.

    Args:
        config: the configuration; `augment` is 'none' or 'spectrogram'.
        train: whether the callable distorts; it then takes an example and a generator.
    """
    colour = Colour(
        config.audio.colour, to_python(config.normalise.mean), to_python(config.normalise.std)
    )
    if not train:
        return colour
    distort = None
    if config.augment == "spectrogram":
        from experiments.audio import spectrograms

        absolute = spectrograms.has_absolute_levels(config.audio)
        distort = Distort(config.audio.decibels, **config.spectrogram, absolute=absolute)
    return DistortAndColour(distort, colour)
