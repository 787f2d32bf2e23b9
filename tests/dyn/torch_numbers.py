"""The random weights and pictures on which torch's networks and ours are compared."""

import math
import zlib

import numpy as np

# Constants of EfficientAT's dynamic ReLU.
CONSTANTS = {"lambdas": (1.0, 1.0, 0.5, 0.5), "init_v": (1.0, 0.0, 0.0, 0.0)}


def weight(name, shape):
    """The numbers of a torch parameter, from its name alone; statistics and norms included."""
    # This generator's numbers are the same in all versions of numpy.
    random = np.random.RandomState(zlib.crc32(name.encode()))
    leaf = name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.asarray(100, np.int64)
    if leaf in CONSTANTS:
        return np.asarray(CONSTANTS[leaf], np.float32)
    if leaf == "running_var":
        return random.uniform(0.5, 2.0, shape).astype(np.float32)
    normal = random.standard_normal(shape)
    if leaf in ("bias", "basis_bias", "running_mean"):
        normal = 0.3 * normal
    elif leaf == "dft_weight":
        normal = normal / 4  # FDConv's layers multiply by half their features
    elif len(shape) == 1:
        normal = 0.6 + 0.2 * normal  # a norm's scale: blocks add up
    elif "conv" in name and (len(shape) == 2 or tuple(shape[:2]) == (1, 1)):
        normal = 0.2 * normal  # flattened: what goes into a filter cannot be told
    else:
        inputs = np.prod(shape[1:] if len(shape) < 5 else shape[2:])
        normal = normal / math.sqrt(inputs)
        # Sigmoids of a half take an eighth of what ODConv's kernels give.
        normal = 4 * normal if len(shape) == 5 else normal
    return normal.astype(np.float32)


def scale_statistics(weights, scales):
    """Multiplies the statistics of norms in place, each norm's by its number, as training would have done.

    In deep networks random numbers die out or grow from layer to layer, and the logits would hardly depend on
    the picture.
    """
    for norm, scale in scales.items():
        weights[f"{norm}.running_mean"] *= np.float32(scale)
        weights[f"{norm}.running_var"] *= np.float32(scale**2)


def pictures():
    """Two pictures that are not square, `[B, H, W, C]`."""
    return np.random.RandomState(0).standard_normal((2, 44, 36, 3)).astype(np.float32)


def contrasting_pictures(name):
    """The pictures for a mobile network, of which the second has more contrast: attention differs more."""
    channels = 1 if name.startswith("dymn") else 3
    return pictures()[..., :channels] * np.float32([[[[1]]], [[[3]]]])
