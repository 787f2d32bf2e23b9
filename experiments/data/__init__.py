"""Data sets: one file per data set, and one function that loads any of them."""

import difflib

from experiments.data.dataset import Dataset, Example, Source
from experiments.errors import UserError

__all__ = ["NAMES", "Dataset", "Example", "Source", "load"]

NAMES = ("digits", "tiny_imagenet", "ucr", "folder", "tfds")


def load(config, seed: int) -> Dataset:
    """Loads a data set by its name, preparing it first where that has not been done yet.

    Args:
        config: the data part of the configuration: `name` (one of `NAMES`), `source` (where the
            data is, '' where it can be found or downloaded), `dir` (where prepared data is kept,
            '' for the usual place), `variant` (which set of the UCR archive or the TFDS
            catalogue), `validation` and `test` (shares of train to set aside where the data set
            has no such split of its own), `limit` (the most examples a split may keep, 0 for all).
        seed: decides which examples are set aside.

    Returns:
        The data set with its splits `train`, `validation` and `test`.

    Raises:
        UserError: if the name is unknown, or the data is missing or unusable.
    """
    # Imported where they are needed: one data set should not wait for another's libraries.
    match config.name:
        case "digits":
            from experiments.data import digits as reader
        case "tiny_imagenet":
            from experiments.data import tiny_imagenet as reader
        case "ucr":
            from experiments.data import ucr as reader
        case "folder":
            from experiments.data import folder as reader
        case "tfds":
            from experiments.data import tfds_catalogue as reader
        case unknown:
            near = difflib.get_close_matches(str(unknown).lower(), NAMES, n=1, cutoff=0.4)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"There is no data set {unknown!r}.{hint} --config.data.name is one of "
                f"{', '.join(NAMES)}."
            )
    return reader.load(config, seed)
