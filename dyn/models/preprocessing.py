"""Turns pictures into a network's inputs, with the numbers that the network was trained with.

Resampling has the numbers of Pillow, which torchvision, timm and `experiments` use too: a picture that
shrinks is averaged over all its pixels, not sampled. Rows are resampled first. Newer versions of Pillow start
with the columns of some pictures: where the sides shrink differently, pixels then differ by one level of 255
(bilinear), or by up to 25 in random pictures (bicubic).
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

_BITS = 22  # of the fraction of Pillow's weights


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


# A filter, and half its width in pixels of the input where that grows.
_FILTERS = {"bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0)}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resizes and crops a picture, and normalises it: `(x / 255 - mean) / std`.

    The shorter side is resized to `resize`, and the middle square of `size` cut out. Sizes are rounded as by
    torchvision's `Resize` and `CenterCrop`, and without `resize` as in the evaluation of `experiments`. Of a
    picture longer than four of its shorter sides only the middle is resized.

    Attributes:
        mean: on the scale 0..1, one number or one for each channel.
        std: on the same scale.
        size: side of the square in pixels; None leaves all pictures as large as they are.
        resize: the shorter side before cropping; None for `size`.
        interpolation: 'bilinear' or 'bicubic'.

    Example:
        >>> import numpy as np
        >>> from dyn.models import Preprocessing
        >>> prepare = Preprocessing((0.5,), (0.25,), size=4)
        >>> picture = np.full((8, 6, 3), 255, np.uint8)
        >>> inputs = prepare([picture, picture])
        >>> inputs.shape, inputs.dtype, float(inputs.max())
        ((2, 4, 4, 3), dtype('float32'), 2.0)
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    size: int | None = 224
    resize: int | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: for values that no picture can be prepared with.
        """
        for name in ("mean", "std"):
            values = np.atleast_1d(getattr(self, name)).tolist()
            if not values or not all(
                isinstance(value, int | float) and math.isfinite(value) for value in values
            ):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must be numbers, one or one for each channel."
                )
            object.__setattr__(self, name, tuple(map(float, values)))
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std} must be positive.")
        for name in ("size", "resize"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name}={value!r} must be a number of pixels, or None.")
        if self.resize is not None and (self.size is None or self.resize < self.size):
            raise ValueError(f"resize={self.resize} must be at least size={self.size}.")
        if self.interpolation not in _FILTERS:
            raise ValueError(
                f"interpolation={self.interpolation!r} is unknown: write 'bilinear' or 'bicubic'."
            )

    def __call__(self, pictures: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Returns the network's input, float32 `[B, size, size, C]`.

        Args:
            pictures: uint8 `[B, H, W, C]`, or a list of pictures `[H, W, C]`, arrays or Pillow's, which may
                differ in size.

        Raises:
            ValueError: if a picture has another dtype or shape.
        """
        prepared = [self._prepare(np.asarray(picture)) for picture in pictures]
        shapes = {picture.shape for picture in prepared}
        if len(shapes) > 1:
            raise ValueError(
                f"the pictures have the shapes {sorted(shapes)}: pass them one by one."
            )
        if not prepared:
            raise ValueError("there are no pictures: pass at least one.")
        return np.stack(prepared)

    def _prepare(self, picture: np.ndarray) -> np.ndarray:
        if picture.dtype != np.uint8 or picture.ndim != 3 or not picture.size:
            raise ValueError(
                f"a picture must be uint8 [H, W, C]; got {picture.dtype} {list(picture.shape)}. Pass a batch "
                "of pictures, or a list of them: arrays, or Pillow's Image.open(FILE).convert('RGB')."
            )
        channels = picture.shape[-1]
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, channels):
                raise ValueError(
                    f"{name}={getattr(self, name)} is for {len(getattr(self, name))} channels, and the "
                    f"picture has {channels}."
                )
        if self.size is not None:
            if self.resize is None:
                picture = crop_to_square(picture, self.size, self.interpolation)
            else:
                picture = resize_and_crop(picture, self.resize, self.size, self.interpolation)
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (picture.astype(np.float32) / np.float32(255) - mean) / std


def crop_to_square(picture: np.ndarray, size: int, interpolation: str = "bilinear") -> np.ndarray:
    """Resizes the shorter side of a picture `[H, W, C]` to `size` and cuts out the middle square.

    It rounds as the evaluation of `experiments`.
    """
    if picture.shape[:2] == (size, size):
        return picture
    picture = cut_ends(picture)
    height, width = picture.shape[:2]
    scale = size / min(height, width)
    shape = max(size, round(height * scale)), max(size, round(width * scale))
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return resize_picture(picture, *shape, interpolation)[top : top + size, left : left + size]


def resize_and_crop(
    picture: np.ndarray, resize: int, size: int, interpolation: str = "bilinear"
) -> np.ndarray:
    """Resizes the shorter side of a picture `[H, W, C]` and cuts out the middle square of `size`.

    It rounds as torchvision's `Resize(resize)` and `CenterCrop(size)`.
    """
    picture = cut_ends(picture)
    shorter = min(picture.shape[:2])
    height, width = (int(resize * side / shorter) for side in picture.shape[:2])
    top, left = round((height - size) / 2), round((width - size) / 2)
    resized = resize_picture(picture, height, width, interpolation)
    return resized[top : top + size, left : left + size]


def cut_ends(picture: np.ndarray) -> np.ndarray:
    """Cuts off what is more than two shorter sides from the middle of a picture `[H, W, C]`.

    Resizing the whole of a 1 by N picture would take N times the memory of the crop.
    """
    height, width = picture.shape[:2]
    reach = 2 * min(height, width)
    picture = picture[max(0, height // 2 - reach) :, max(0, width // 2 - reach) :]
    return picture[: 2 * reach, : 2 * reach]


def resize_picture(
    picture: np.ndarray, height: int, width: int, interpolation: str = "bilinear"
) -> np.ndarray:
    """Resamples a picture, uint8 `[H, W, C]`, as Pillow does: along the rows, then along the columns."""
    for axis, size in ((1, width), (0, height)):
        if picture.shape[axis] != size:
            weights = make_weights(picture.shape[axis], size, interpolation)
            # Sums of whole numbers below 2^53, which float64 holds exactly.
            sums = np.moveaxis(np.tensordot(weights, picture, (1, axis)), 0, axis)
            picture = np.clip(np.floor((sums + 2 ** (_BITS - 1)) / 2**_BITS), 0, 255)
    return picture.astype(np.uint8)


def make_weights(size: int, new_size: int, interpolation: str) -> np.ndarray:
    """Returns the weights of each old position for each new one, `[new_size, size]`, in units of 2^-22."""
    function, support = _FILTERS[interpolation]
    scale = size / new_size
    stretch = max(scale, 1.0)
    centre = (np.arange(new_size) + 0.5)[:, None] * scale
    reach = support * stretch
    first = np.maximum(np.trunc(centre - reach + 0.5), 0)
    last = np.minimum(np.trunc(centre + reach + 0.5), size)
    place = np.arange(size)[None]
    weights = function((place - centre + 0.5) / stretch)
    weights = np.where((first <= place) & (place < last), weights, 0.0)
    weights /= weights.sum(1, keepdims=True)
    # Rounds halves away from zero.
    return np.copysign(np.floor(np.abs(weights) * 2**_BITS + 0.5), weights)
