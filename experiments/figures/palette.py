"""Pascal VOC's colours: each class number has one, made from the number's own bits."""

import numpy as np


def colour_map() -> np.ndarray:
    """Returns the colour of every index, uint8 `[256, 3]`.

    The bits of an index are dealt out to red, green and blue in turn, the lowest first, and fill
    each of them from its highest bit down: near numbers have far colours. Index 255, which marks
    the pixels that count for nothing, becomes (224, 224, 192) by the same rule.

    Source: the development kit of the PASCAL VOC challenge.
    """
    index = np.arange(256)[:, None]
    channel = np.arange(3)
    colours = np.zeros((256, 3), np.int64)
    for turn in range(3):  # The third turn leaves only two bits: the blue one is 0.
        bit = (index >> (3 * turn + channel)) & 1
        colours |= bit << (7 - turn)
    return colours.astype(np.uint8)


def colours(mask: np.ndarray) -> np.ndarray:
    """Paints class numbers in their colours.

    Args:
        mask: `[..., H, W]` integers, 0 to 255.

    Returns:
        uint8 `[..., H, W, 3]`.

    Raises:
        ValueError: if a number is no integer or has no colour.
    """
    mask = np.asarray(mask)
    if mask.dtype.kind not in "iu":
        raise ValueError(f"a mask holds integers, not {mask.dtype}")
    if mask.size and not (0 <= mask.min() and mask.max() <= 255):
        raise ValueError(f"class numbers are {mask.min()} to {mask.max()}, not within 0 to 255")
    return colour_map()[mask]
