"""Classification sets of the TFDS catalogue that are already prepared on disk in array_record."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds

from experiments.core import digests as contents
from experiments.core.errors import UserError
from experiments.data import pictures, places, splits
from experiments.data.dataset import Dataset, Example

_SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


@dataclasses.dataclass(frozen=True, eq=False)
class _Records:
    """Examples of a TFDS split, of which only the picture and the label are parsed."""

    records: Sequence[bytes]
    features: tfds.features.FeaturesDict
    image: str
    label: str
    split: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        example = self._parse(self.records[index])
        # Pillow on every machine, so that the numbers are the same everywhere.
        channels = 1 if self.features[self.image].shape[-1] == 1 else 3
        picture = pictures.read(example[self.image], f"Record {index} of {self.split}", channels)
        return {"inputs": picture, "label": np.int32(example[self.label])}

    @functools.cached_property
    def seen(self) -> tuple[np.ndarray, np.ndarray]:
        """Every label, and a number for every picture's content; no picture is decoded for them."""
        labels = np.empty(len(self.records), np.int32)
        digests = np.empty(len(self.records), np.uint64)
        for index, raw in enumerate(self.records):
            example = self._parse(raw)
            labels[index] = example[self.label]
            digests[index] = contents.digest(example[self.image])
        return labels, digests

    @property
    def digests(self) -> np.ndarray:
        """The numbers of the pictures' contents."""
        return self.seen[1]

    def _parse(self, raw: bytes) -> dict:
        skip = {self.image: tfds.decode.SkipDecoding()}
        return self.features.deserialize_example_np(raw, decoders=skip)


def load(config, seed: int) -> Dataset:
    """Returns a prepared set of pictures; labels are read once, pictures when they are needed.

    Args:
        config: the data part of the configuration; `variant` is the catalogue's name, such as
            `cifar10`, and `source` the TFDS data folder ('' for TFDS's own).
        seed: decides the splits that the set does not have.

    Raises:
        UserError: if the set is not prepared here, or is not for classification.
    """
    if not config.variant:
        raise UserError(
            "No name of a TFDS data set was given; set --config.data.variant=NAME, such as cifar10."
        )
    builder = _builder(config.variant, places.source_path(config))
    features = builder.info.features
    image = _one(builder, tfds.features.Image, "picture")
    label = _one(builder, tfds.features.ClassLabel, "class label")
    used = tfds.features.FeaturesDict({key: features[key] for key in (image, label)})

    pools, notes = {}, []
    for split, names in _SPLITS.items():
        name = next((name for name in names if name in builder.info.splits), None)
        if name is None:
            continue
        raw = builder.as_data_source(
            name, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        records = _Records(raw, used, image, label, name)
        labels, _ = records.seen
        if (labels < 0).any():
            notes.append(f"The {name} split has no labels and is not used.")
        else:
            pools[split] = splits.Pool(records, labels)
    if "train" not in pools:
        raise UserError(
            f"{builder.info.full_name} has no labelled train split, only "
            f"{', '.join(builder.info.splits)}; choose another set."
        )
    parts, remarks = splits.arrange(config.variant, config, seed, **pools)
    height, width, channels = features[image].shape
    return Dataset(
        config.variant,
        parts,
        list(features[label].names or map(str, range(features[label].num_classes))),
        (height or 0, width or 0, 1 if channels == 1 else 3),
        notes + remarks,
    )


def _builder(name: str, source: pathlib.Path | None) -> tfds.core.DatasetBuilder:
    """Opens the set from its files alone, so that no code of the catalogue has to run."""
    where = source or "TFDS's data folder (~/tensorflow_datasets or $TFDS_DATA_DIR)"
    _check_features(name, source)
    try:
        if source and (source / "dataset_info.json").is_file():
            builder = tfds.builder_from_directory(source)
        else:
            builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=source)
    except Exception as error:  # TFDS has many ways to say that it found nothing.
        raise UserError(
            f"The TFDS data set {name!r} is not prepared in {where}. Prepare it in an environment "
            f"with TensorFlow, `tfds build {name} --file_format=array_record`, and either copy the "
            "result there or give its data folder as --config.data.source=PATH."
        ) from error
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{builder.data_path} is in the format {builder.info.file_format.value}, which cannot "
            "be read without TensorFlow. Prepare it again in an environment with TensorFlow: "
            f"`tfds build {name} --file_format=array_record`."
        )
    return builder


def _check_features(name: str, source: pathlib.Path | None) -> None:
    """Refuses features of other people's classes, before TFDS would import the modules they are in."""
    data_dir = source or pathlib.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
    data_dir = data_dir.expanduser()
    below = (data_dir / name.partition(":")[0]).rglob("features.json")
    for path in (data_dir / "features.json", *below):
        try:
            kinds = list(_kinds(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, RecursionError):
            continue  # TFDS says what is wrong with the files.
        for kind in kinds:
            if not kind.startswith("tensorflow_datasets."):
                raise UserError(
                    f"{path} wants the code {kind} to be run, which is not done for data. Only sets of "
                    "TFDS's own features can be used."
                )


def _kinds(tree: object) -> Iterator[str]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key in ("type", "pythonClassName", "python_class_name") and "." in str(value):
                yield str(value)
            yield from _kinds(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _kinds(value)


def _one(builder: tfds.core.DatasetBuilder, kind: type, what: str) -> str:
    features = builder.info.features
    found = [key for key in features if isinstance(features[key], kind)]
    supervised = builder.info.supervised_keys or ()
    named = [key for key in found if key in supervised] or found
    if not named:
        raise UserError(
            f"{builder.info.full_name} has no {what}; only pictures with class labels can be used."
        )
    return named[0]
