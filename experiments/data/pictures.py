"""Reading picture files with Pillow: whatever is in the file, uint8 RGB comes out."""

import contextlib
import io
import os
import pathlib
import stat
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image

from experiments.core.errors import UserError

MAX_PIXELS = 89_478_485
"""Pictures with more are refused: as RGB this is a quarter of a gigabyte, where Pillow begins to warn."""

# Others are refused. Pillow runs Ghostscript for some: PostScript is a program, not a picture.
FORMATS = (
    "AVIF",
    "BMP",
    "GIF",
    "JPEG",
    "JPEG2000",
    "MPO",
    "PNG",
    "PPM",
    "TGA",
    "TIFF",
    "WEBP",
)
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_WIDE_MODES = ("I", "I;16", "I;16L", "I;16B")
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


@contextlib.contextmanager
def open_picture(file: bytes | str | pathlib.Path) -> Iterator[Image.Image]:
    """Opens a picture for the time of a `with`; no pixel is decoded yet.

    Raises:
        OSError, ValueError, SyntaxError: Pillow's own, or if the file is no picture of a format that
            is read, or is larger than is safe to decode.
    """
    if not isinstance(file, bytes):
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):  # One would wait for a pipe for ever.
            raise ValueError("not a regular file")
        if not status.st_size:
            raise ValueError("the file is empty")
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        if image.format not in FORMATS:
            raise ValueError(f"the format {image.format} is not read")
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"{width:,} by {height:,}, more pixels than the {MAX_PIXELS:,} allowed"
            )
        yield image


def decode_picture(file: bytes | str | pathlib.Path, channels: int = 3) -> np.ndarray:
    """Reads a picture completely, upright as its EXIF rotation says; of an animation, the first frame.

    Args:
        file: the encoded bytes, or the path of a file that holds them.
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8 `[H, W, channels]`; grey, palette, CMYK and 16-bit pictures are converted,
        transparency is dropped.

    Raises:
        OSError, ValueError, SyntaxError: Pillow's own, if the picture cannot be decoded.
    """
    with open_picture(file) as image:
        _check_mode(image)
        turn = _UPRIGHT.get(_orientation(image))
        upright = _rgb(image if turn is None else image.transpose(turn))
        return np.asarray(upright) if channels == 3 else np.asarray(upright.convert("L"))[..., None]


def read_picture(file: bytes | str | pathlib.Path, name: object, channels: int = 3) -> np.ndarray:
    """Decodes a picture that could be read before the run began.

    Raises:
        UserError: naming it, if it cannot be read any more.
    """
    try:
        return decode_picture(file, channels)
    except Exception as error:  # Pillow's decoders raise whatever their formats suggest.
        raise UserError(describe_unreadable(name, error)) from error


def describe_unreadable(name: object, error: Exception) -> str:
    """What to say of a file that could be read before the run began, and cannot be read any more."""
    return (
        f"{name} cannot be read any more ({describe_error(error)}). Restore it as it was, and the same "
        "command continues the run."
    )


def check_picture(path: str | pathlib.Path) -> tuple[tuple[int, int] | None, str]:
    """Decodes a picture as cheaply as it goes to find out whether it can be used.

    Args:
        path: the picture's file.

    Returns:
        `((height, width), '')` of the upright picture, or `(None, reason)` if it cannot be used.
    """
    try:
        with open_picture(path) as image:
            width, height = image.size
            if _orientation(image) in _SIDEWAYS:
                width, height = height, width
            _check_mode(image)
            # A JPEG read at an eighth of its size is still read to its last byte.
            image.draft("RGB", (1, 1))
            image.load()
    except Exception as error:  # Pillow's decoders raise whatever their formats suggest.
        return None, describe_error(error)
    return (height, width), ""


@contextlib.contextmanager
def silence_pillow() -> Iterator[None]:
    """Keeps Pillow's remarks back while many pictures are looked at.

    Odd metadata is no reason to doubt a picture, and one that is too large is refused anyway. Filters
    are the process's: this goes around threads, not into them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def describe_error(error: Exception) -> str:
    """Why a picture cannot be used, in a few words without a full stop."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture that Pillow can read"
    if isinstance(error, Image.DecompressionBombError):
        return f"more pixels than the {MAX_PIXELS:,} allowed"
    return " ".join(str(error).split()) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except (
        Exception
    ):  # Metadata that cannot be read says nothing, also nothing against the picture.
        return 1


def _check_mode(image: Image.Image) -> None:
    # A TIFF's whole numbers of 32 bits and its fractions have no white that all programs agree on.
    wide = image.mode in _WIDE_MODES and (image.mode != "I" or image.format != "TIFF")
    if image.mode not in _MODES and not wide:
        raise ValueError(
            f"its pixels are of the kind {image.mode}; save it as RGB or grey with 8 or 16 bits"
        )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip, not scale.
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray(np.clip(wide >> 8, 0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
