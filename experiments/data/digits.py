"""The 1,797 handwritten digits that come with scikit-learn: real data without a download."""

import numpy as np
from ml_collections import ConfigDict
from sklearn.datasets import load_digits

from experiments.data import splits
from experiments.data.dataset import Dataset
from experiments.data.views import Arrays


def load(config: ConfigDict, seed: int) -> Dataset:
    """Returns the digits as uint8 pictures of 8 by 8 pixels and one channel."""
    bunch = load_digits()
    # Levels 0..16 are scaled to 0..255 without loss.
    pictures = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    parts, notes = splits.make_splits(
        "digits", config, seed, train=splits.Pool(Arrays(pictures, labels), labels)
    )
    return Dataset("digits", parts, [str(digit) for digit in range(10)], (8, 8, 1), notes)
