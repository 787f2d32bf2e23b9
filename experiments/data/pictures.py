"""Reads picture files of many formats with Pillow as uint8 RGB."""

import concurrent.futures
import contextlib
import dataclasses
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.core import digests
from experiments.core.errors import UserError
from experiments.data.dataset import Example

MAX_PIXELS = 89_478_485
"""Larger pictures are refused. As RGB this is a quarter of a gigabyte; Pillow warns from there on."""

"""Note for the start of a run."""

# Other formats are refused. For PostScript, a programming language, Pillow would run Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_WIDE_MODES = ("I", "I;16", "I;16L", "I;16B")
_DEPTHS = (8, 12, 16)  # bits that the values of a picture with 16 bits may need
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


@dataclasses.dataclass(frozen=True, eq=False)
class PictureFiles:
    """Pictures that are read when they are needed; for each its label, the digest of its file and a name."""

    paths: Sequence[Path]
    labels: np.ndarray
    digests: Sequence[int]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        path = self.paths[index]
        return {"inputs": read_picture(path, path), "label": self.labels[index]}


@contextlib.contextmanager
def open_picture(file: bytes | str | Path) -> Iterator[Image.Image]:
    """Opens a picture for a `with` statement without decoding any pixel.

    Raises:
        OSError, ValueError, SyntaxError: from Pillow, or if the file is not a picture of a supported
            format, or is too large to decode safely.
    """
    if not isinstance(file, bytes):
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):  # Reading a pipe might block for ever.
            raise ValueError("not a regular file")
        if not status.st_size:
            raise ValueError("the file is empty")
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        if image.format not in FORMATS:
            raise ValueError(f"the format {image.format} is not supported")
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"{width:,} by {height:,}, more pixels than the {MAX_PIXELS:,} allowed"
            )
        yield image


def decode_picture(file: bytes | str | Path, channels: int = 3) -> np.ndarray:
    """Decodes a picture, rotated upright by its EXIF data; for an animation, its first frame.

    Args:
        file: the encoded bytes, or the path of a file that holds them.
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8 `[H, W, channels]`. Grey, palette, CMYK and 16-bit pictures are converted; transparency is
        dropped. Grey values of 16 bits up to 255 count as 8 bits and up to 4,095 as 12 bits, because cameras
        and microscopes write such files.

    Raises:
        OSError, ValueError, SyntaxError: from Pillow, if the picture cannot be decoded.
    """
    with open_picture(file) as image:
        _check_mode(image)
        _check_depth(image)
        upright = _convert_to_rgb(turn_upright(image))
        return np.asarray(upright) if channels == 3 else np.asarray(upright.convert("L"))[..., None]


def turn_upright(image: Image.Image) -> Image.Image:
    """Returns a picture as its EXIF data says that it is to be seen."""
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def read_picture(file: bytes | str | Path, name: object, channels: int = 3) -> np.ndarray:
    """Decodes a picture like `decode_picture`; raises a UserError that names it if that fails.

    For a picture that was readable when the run began.
    """
    try:
        return decode_picture(file, channels)
    except Exception as error:  # Pillow's decoders raise many kinds of errors.
        raise UserError(describe_unreadable(name, error)) from error


def describe_unreadable(name: object, error: Exception) -> str:
    """Returns the message for a file that was readable when the run began and is not any more."""
    return (
        f"{name} cannot be read any more ({describe_error(error)}). Restore the file and start the same "
        "command again to continue the run."
    )


def check_picture(path: str | Path) -> tuple[tuple[int, int] | None, str]:
    """Checks that a picture can be used, with as little decoding as possible.

    Returns:
        `((height, width), '')` of the upright picture, or `(None, reason)` if it cannot be used.
    """
    try:
        with open_picture(path) as image:
            _check_depth(image)  # before anything that loads the picture
            width, height = image.size
            if _orientation(image) in _SIDEWAYS:
                width, height = height, width
            _check_mode(image)
            # At an eighth of its size a JPEG is still read to its last byte.
            image.draft("RGB", (1, 1))
            image.load()
    except Exception as error:  # Pillow's decoders raise many kinds of errors.
        return None, describe_error(error)
    return (height, width), ""


def check_and_digest(path: Path) -> tuple[tuple[tuple[int, int], int] | None, str]:
    """Returns the size `(H, W)` of a picture and the digest of its content, or the reason to skip it."""
    size, reason = check_picture(path)
    return (size, digests.compute_file_digest(path)) if size else None, reason


@contextlib.contextmanager
def silence_pillow() -> Iterator[None]:
    """Suppresses Pillow's warnings while many pictures are checked.

    Odd metadata does not make a picture unusable, and a picture that is too large is refused anyway. Warning
    filters belong to the process: use this around threads, not inside them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def check_all(
    root: Path, files: Sequence[Path], check: Callable[[Path], tuple[Any | None, str]]
) -> tuple[dict[Path, Any], list[tuple[str, str]]]:
    """Checks many files with threads.

    Args:
        root: the folder that the names of skipped files are relative to, if they are in it.
        files: the files.
        check: returns what is known of a usable file, and None and a reason for another one.

    Returns:
        The results of the usable files, in the order of `files`, and name and reason of the others.
    """
    usable, skipped = {}, []
    with silence_pillow(), concurrent.futures.ThreadPoolExecutor() as pool:
        for path, (seen, reason) in zip(files, pool.map(check, files), strict=True):
            if seen is None:
                name = path.relative_to(root) if path.is_relative_to(root) else path
                skipped.append((str(name), reason))
            else:
                usable[path] = seen
    return usable, skipped


def get_common_shape(sizes: set[tuple[int, int]]) -> tuple[int, int, int]:
    """Returns `(H, W, 3)`; H and W are 0 if pictures differ in size."""
    return (*next(iter(sizes)), 3) if len(sizes) == 1 else (0, 0, 3)


def describe_error(error: Exception) -> str:
    """Returns a short reason why a picture cannot be used, without a full stop."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture that Pillow can read"
    if isinstance(error, Image.DecompressionBombError):
        return f"more pixels than the {MAX_PIXELS:,} allowed"
    return " ".join(str(error).split()) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # Unreadable metadata does not make a picture unusable.
        return 1


def _check_mode(image: Image.Image) -> None:
    # TIFFs with 32-bit integers or floats have no agreed value for white.
    wide = image.mode in _WIDE_MODES and (image.mode != "I" or image.format != "TIFF")
    if image.mode not in _MODES and not wide:
        raise ValueError(
            f"its pixels have the mode {image.mode}; save it as RGB or grey with 8 or 16 bits"
        )


def _check_depth(image: Image.Image) -> None:
    """Refuses colours of 16 bits of which at most 12 are used: Pillow keeps the upper 8 alone."""
    if any(";16" in str(tile.args) for tile in image.tile) and image.mode in ("RGB", "RGBA", "LA"):
        lightest = max(high for _, high in image.getextrema()[:3])
        if 0 < lightest < 16:
            raise ValueError(
                "its colours have 16 bits, of which at most 12 are used, and would be nearly black; save it "
                "with 8 bits"
            )


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    # Pillow's own conversion of 16 bits would clip instead of scaling.
    if image.mode.startswith("I"):
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 2**16 - 1)
        depth = next(bits for bits in _DEPTHS if wide.max() < 2**bits)
        image = Image.fromarray((wide >> (depth - 8)).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
