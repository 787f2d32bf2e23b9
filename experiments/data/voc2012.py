"""Pascal VOC 2012 segmentation: 20 classes of things and the background, for every pixel."""

from experiments.core.errors import UserError
from experiments.data import masks, places, splits, voc2012_files
from experiments.data.dataset import Dataset

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
OFFICIAL = {"train": 1_464, "val": 1_449}


def load(config, seed: int) -> Dataset:
    """Returns the pictures with their masks; the official val split is the test split here.

    Pictures and masks stay in their files; every pair is read once to see whether it can be used.
    Validation is carved out of train, stratified by the rarest class of each picture.

    Args:
        config: the data part of the configuration; `source` is the official tar, the VOCdevkit
            folder or VOC2012 itself, '' to download the tar. A tar is unpacked once.
        seed: decides which training pictures are set aside for validation.

    Returns:
        The data set; examples are `inputs`, uint8 `[H, W, 3]`, and `label`, uint8 `[H, W]` with
        255 on the borders of things, which count for nothing.

    Raises:
        UserError: if the files are missing, incomplete or cannot be downloaded.
    """
    root = voc2012_files.find(places.source_path(config), places.data_dir(config))
    checked, skipped = {}, []
    for split, names in voc2012_files.read_lists(root).items():
        pairs = [
            (root / voc2012_files.picture_path(name), root / voc2012_files.mask_path(name))
            for name in names
        ]
        checked[split] = masks.check_all(root, pairs, len(CLASSES))
        skipped += checked[split].skipped
        if not len(checked[split].pairs):
            raise UserError(
                f"VOC 2012: none of the {len(names):,} pictures of {split}.txt in {root} can be "
                f"used ({': '.join(skipped[-1])}). Give the complete VOCdevkit folder or the "
                "official tar as --config.data.source=PATH."
            )
    parts, notes = splits.arrange(
        "voc2012", config, seed, train=checked["train"].pool(), test=checked["val"].pool()
    )
    named = {"train": checked["train"], "test": checked["val"]}
    return Dataset(
        "voc2012",
        parts,
        list(CLASSES),
        masks.common_shape(checked["train"].sizes | checked["val"].sizes),
        _notes(checked, len(skipped)) + masks.absence_notes(named, CLASSES) + notes,
        skipped,
    )


def _notes(checked: dict[str, masks.Checked], skipped: int) -> list[str]:
    notes = ["test is the official val split: the official test split has no public masks."]
    for split, official in OFFICIAL.items():
        count = len(checked[split].pairs)
        if count != official:
            notes.append(f"{count:,} of the official {official:,} {split} pictures: a subset.")
    if skipped:
        notes.append(f"{skipped:,} pictures could not be used and were skipped.")
    return notes
