"""Classification sets of the TFDS catalogue that are already prepared on disk in array_record."""

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from experiments.core import digests
from experiments.core.errors import UserError
from experiments.data import paths, pictures, splits
from experiments.data.dataset import Dataset, Example

_SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


@dataclasses.dataclass(frozen=True, eq=False)
class _Records:
    """Examples of a TFDS split; only their pictures and labels are parsed."""

    records: Sequence[bytes]
    features: tfds.features.FeaturesDict
    image: str
    label: str
    split: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        example = self._parse(self.records[index])
        # Pillow decodes the same numbers on every machine.
        channels = 1 if self.features[self.image].shape[-1] == 1 else 3
        picture = pictures.read_picture(
            example[self.image], f"Record {index} of {self.split}", channels
        )
        return {"inputs": picture, "label": np.int32(example[self.label])}

    @functools.cached_property
    def labels_and_digests(self) -> tuple[np.ndarray, np.ndarray]:
        """Label of every example, and digest of every encoded picture; no picture is decoded."""
        labels = np.empty(len(self.records), np.int32)
        picture_digests = np.empty(len(self.records), np.uint64)
        for index, raw in enumerate(self.records):
            example = self._parse(raw)
            labels[index] = example[self.label]
            picture_digests[index] = digests.compute_digest(example[self.image])
        return labels, picture_digests

    @property
    def labels(self) -> np.ndarray:
        """Label of every example."""
        return self.labels_and_digests[0]

    @property
    def digests(self) -> np.ndarray:
        """Digest of every encoded picture."""
        return self.labels_and_digests[1]

    @property
    def names(self) -> list[str]:
        """Name of every example for messages."""
        return [f"record {index} of {self.split}" for index in range(len(self.records))]

    def _parse(self, raw: bytes) -> dict:
        skip = {self.image: tfds.decode.SkipDecoding()}
        return self.features.deserialize_example_np(raw, decoders=skip)


def load(config: ConfigDict, seed: int) -> Dataset:
    """Returns a prepared set of pictures; labels are read once, pictures when they are needed.

    `variant` is the catalogue's name, such as `cifar10`, and `source` the TFDS data folder, '' for the usual.
    """
    if not config.variant:
        raise UserError(
            "No TFDS data set is named; set --config.data.variant=NAME, such as cifar10."
        )
    builder = _open_builder(config.variant, paths.get_source_path(config))
    features = builder.info.features
    image = _find_feature(builder, tfds.features.Image, "picture")
    label = _find_feature(builder, tfds.features.ClassLabel, "class label")
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
        labels, _ = records.labels_and_digests
        if (labels < 0).any():
            notes.append(f"The {name} split has no labels and is not used.")
        else:
            pools[split] = splits.Pool(records, labels)
    if "train" not in pools:
        raise UserError(
            f"{builder.info.full_name} has no labelled train split, only "
            f"{', '.join(builder.info.splits)}; choose another set."
        )
    parts, split_notes = splits.make_splits(config.variant, config, seed, **pools)
    height, width, channels = features[image].shape
    return Dataset(
        config.variant,
        parts,
        list(features[label].names or map(str, range(features[label].num_classes))),
        (height or 0, width or 0, 1 if channels == 1 else 3),
        notes + split_notes,
    )


def _open_builder(name: str, source: Path | None) -> tfds.core.DatasetBuilder:
    """Opens a set from its files alone, so that no code of the catalogue runs."""
    where = source or "TFDS's data folder (~/tensorflow_datasets or $TFDS_DATA_DIR)"
    _check_features(name, source)
    try:
        if source and (source / "dataset_info.json").is_file():
            builder = tfds.builder_from_directory(source)
        else:
            builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=source)
    except Exception as error:  # TFDS raises many kinds of errors for a missing set.
        raise UserError(
            f"The TFDS data set {name!r} is not prepared in {where}. Prepare it in an environment with "
            f"TensorFlow, `tfds build {name} --file_format=array_record`, and either copy the result there "
            "or give its data folder as --config.data.source=PATH."
        ) from error
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{builder.data_path} is in the format {builder.info.file_format.value}, which cannot be read "
            "without TensorFlow. Prepare it again in an environment with TensorFlow: "
            f"`tfds build {name} --file_format=array_record`."
        )
    return builder


def _check_features(name: str, source: Path | None) -> None:
    """Refuses features of third-party classes, because TFDS would import their modules."""
    data_dir = source or Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
    data_dir = data_dir.expanduser()
    below = (data_dir / name.partition(":")[0]).rglob("features.json")
    for path in (data_dir / "features.json", *below):
        try:
            class_names = list(_list_classes(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, RecursionError):
            continue  # TFDS itself explains damaged files.
        for class_name in class_names:
            if not class_name.startswith("tensorflow_datasets."):
                raise UserError(
                    f"{path} would run the code of {class_name}. Only sets with TFDS's own features can be "
                    "used."
                )


def _list_classes(tree: object) -> Iterator[str]:
    """Yields the names of the Python classes in the description of features."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key in ("type", "pythonClassName", "python_class_name") and "." in str(value):
                yield str(value)
            yield from _list_classes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _list_classes(value)


def _find_feature(builder: tfds.core.DatasetBuilder, kind: type, description: str) -> str:
    """Returns the name of the first feature of a kind; supervised ones take precedence."""
    features = builder.info.features
    keys = [key for key in features if isinstance(features[key], kind)]
    supervised = builder.info.supervised_keys or ()
    keys = [key for key in keys if key in supervised] or keys
    if not keys:
        raise UserError(
            f"{builder.info.full_name} has no {description}; only pictures with class labels can be used."
        )
    return keys[0]
