"""Pascal VOC 2012 with its objects: those of SegmentationObject, or connected components without it."""

import dataclasses

from ml_collections import ConfigDict

from experiments.data import instances, paths, voc2012
from experiments.data.dataset import Dataset


def load(config: ConfigDict, seed: int) -> Dataset:
    """Returns the pictures of `voc2012.load` with their objects; the official val split is the test split.

    An object has the one class that `SegmentationClass` has for its pixels; pictures in which one has two are
    skipped. If the folder `SegmentationObject` is missing, objects are the connected components of each
    class of at least 50 pixels, and a note says so. Examples as in `experiments.data.instances`.
    """
    root = voc2012.find_root(paths.get_source_path(config), paths.get_data_dir(config))
    checked, skipped = voc2012.check_lists(root)
    by_split = {"train": checked["train"], "test": checked["val"]}
    made = instances.make_dataset(
        "voc2012_instances", config, seed, root, by_split, voc2012.CLASSES
    )
    return dataclasses.replace(
        made,
        notes=[*voc2012.describe_subset(checked), *made.notes],
        skipped=[*skipped, *made.skipped],
    )
