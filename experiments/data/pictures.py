"""Reading picture files with Pillow: whatever is in the file, uint8 RGB comes out."""

import io
import pathlib
import warnings

import numpy as np
from PIL import Image, ImageOps


def decode(file: bytes | str | pathlib.Path, channels: int = 3) -> np.ndarray:
    """Reads a picture completely, upright as its EXIF rotation says.

    Args:
        file: the encoded bytes, or the path of a file that holds them.
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8 `[H, W, channels]`; grey, palette, CMYK and 16-bit pictures are converted,
        transparency is dropped.

    Raises:
        OSError, ValueError, SyntaxError: Pillow's own, if the picture cannot be decoded.
    """
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        upright = _rgb(ImageOps.exif_transpose(image))
        return np.asarray(upright) if channels == 3 else np.asarray(upright.convert("L"))[..., None]


def check(path: str | pathlib.Path) -> tuple[tuple[int, int] | None, str]:
    """Decodes a picture as cheaply as it goes to find out whether it can be used.

    Args:
        path: the picture's file.

    Returns:
        `((height, width), '')` of the upright picture, or `(None, reason)` if it cannot be used.
    """
    try:
        with warnings.catch_warnings():
            # Remarks on odd metadata are no reason to doubt the picture.
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(path) as image:
                width, height = image.size
                if image.getexif().get(0x0112, 1) >= 5:  # The rotations by a quarter turn.
                    width, height = height, width
                # A JPEG read at an eighth of its size is still read to its last byte.
                image.draft("RGB", (1, 1))
                image.load()
    except Image.DecompressionBombError:
        return None, "more pixels than Pillow allows"
    except Exception as error:  # Pillow's decoders raise whatever their formats suggest.
        return None, _reason(error)
    return (height, width), ""


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture that Pillow can read"
    return " ".join(str(error).split()) or type(error).__name__


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip, not scale.
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray(np.clip(wide >> 8, 0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
