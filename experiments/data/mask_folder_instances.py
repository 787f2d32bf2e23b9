"""The user's own masks as objects: with a folder of object masks beside them, or connected components."""

import dataclasses

from ml_collections import ConfigDict

from experiments.data import instances, mask_folder
from experiments.data.dataset import Dataset


def load(config: ConfigDict, seed: int) -> Dataset:
    """Returns the pictures and masks of `mask_folder.load` with their objects.

    Class 0 is the background. Beside the folder of masks there may be a folder `objects` with a PNG of the
    same name for each mask, whose pixels number the objects from 1 (0: none, 255: void). Without it, objects
    are the connected components of each class of at least 50 pixels, and a note says so. Examples as in
    `experiments.data.instances`.
    """
    root, checked, classes, notes, skipped = mask_folder.check_folder(config)
    made = instances.make_dataset(root.name, config, seed, root, checked, classes)
    return dataclasses.replace(made, notes=[*notes, *made.notes], skipped=[*skipped, *made.skipped])
