"""Tiny ImageNet-200: 200 classes of 64 by 64 pictures, prepared once from its zip or folder."""

import contextlib
import dataclasses
import io
import pathlib
import shutil
import time
from collections.abc import Mapping

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from experiments.core import digests
from experiments.core.errors import UserError
from experiments.data import paths, pictures, splits, tiny_imagenet_files
from experiments.data.dataset import Dataset, Example

OFFICIAL_TRAIN, OFFICIAL_VAL = 100_000, 10_000


@dataclasses.dataclass
class _Config(tfds.core.BuilderConfig):
    """One prepared copy; its name is the fingerprint of the files it was made from."""

    source: str = ""


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """Writes the pictures, still encoded, into array_record files, class after class."""

    VERSION = tfds.core.Version("1.1.0")
    # TFDS would look for a list of checksums beside this file, by way of a package that it needs
    # not have brought along (importlib_resources). It downloads nothing here: there is no list.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(64, 64, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=None),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="http://cs231n.stanford.edu/",
            # In the order of the classes, so that the counts per class are all the labels.
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        files = tiny_imagenet_files.open_files(pathlib.Path(self.builder_config.source))
        layout = tiny_imagenet_files.read_layout(files)
        self.info.features["label"].names = list(layout.wnids)
        self.info.metadata.update(classes=list(layout.classes), skipped=[], counts={}, copies=[])
        seen: dict[int, list] = {}
        return {
            "train": self._generate_examples(files, layout, "train", seen),
            "val": self._generate_examples(files, layout, "val", seen),
        }

    def _generate_examples(self, files, layout, split: str, seen: dict[int, list]):
        counts = [0] * len(layout.wnids)
        for name, label in layout.members[split]:
            try:
                encoded = files.read(name)
                shape = pictures.decode_picture(encoded).shape
                reason = "" if shape == (64, 64, 3) else f"{shape[1]} by {shape[0]}, not 64 by 64"
            except Exception as error:  # Zip, zlib and Pillow all have their own.
                reason = pictures.describe_error(error)
            if reason:
                self.info.metadata["skipped"].append([name, reason])
                continue
            number = sum(counts)
            counts[label] += 1
            seen.setdefault(digests.compute_digest(encoded), []).append([split, number, name])
            yield number, {"image": encoded, "label": label}
        if not sum(counts):
            skipped = self.info.metadata["skipped"]
            raise UserError(
                f"Tiny ImageNet: {self.builder_config.source} has no usable picture below {split} "
                f"({': '.join(skipped[-1])}). Give the official zip as --config.data.source=PATH."
            )
        self.info.metadata["counts"][split] = counts
        self.info.metadata["copies"] = [same for same in seen.values() if len(same) > 1]


@dataclasses.dataclass(frozen=True, eq=False)
class _Pictures:
    """Decodes with Pillow on every machine, so that the numbers are the same everywhere."""

    records: object
    digests: np.ndarray
    names: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        record = self.records[index]
        picture = pictures.read_picture(
            record["image"], f"Picture {index} of the prepared Tiny ImageNet"
        )
        return {"inputs": picture, "label": np.int32(record["label"])}


def load(config, seed: int) -> Dataset:
    """Returns Tiny ImageNet; its official val split is the test split here.

    Args:
        config: the data part of the configuration; `source` is the zip or the extracted folder,
            '' to download the zip.
        seed: decides which training pictures are set aside for validation.

    Raises:
        UserError: if the files are missing, incomplete or cannot be downloaded.
    """
    source = paths.get_source_path(config) or tiny_imagenet_files.download(
        paths.get_data_dir(config)
    )
    builder = _prepared(source, paths.get_data_dir(config))
    metadata = builder.info.metadata
    pools = {}
    for split, counts in metadata["counts"].items():
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        if len(labels) != len(records):
            raise UserError(
                f"{builder.data_path} does not hold what it should; delete that folder and start "
                "again to prepare it anew."
            )
        picture_digests, names = _copies(metadata["copies"], split, len(labels))
        pools[split] = splits.Pool(_Pictures(records, picture_digests, names), labels)
    parts, notes = splits.make_splits(
        "tiny_imagenet", config, seed, train=pools["train"], test=pools["val"]
    )
    found = (len(pools["train"].labels), len(pools["val"].labels))
    skipped = [(name, reason) for name, reason in metadata["skipped"]]
    return Dataset(
        "tiny_imagenet",
        parts,
        list(metadata["classes"]),
        (64, 64, 3),
        _notes(*found, len(skipped)) + _absent(metadata) + notes,
        skipped,
    )


def _absent(metadata) -> list[str]:
    counts = zip(metadata["classes"], metadata["counts"]["train"], strict=True)
    absent = [name for name, count in counts if not count]
    return [f"train has no usable pictures of {', '.join(absent)}."] if absent else []


def _copies(copies: list, split: str, count: int) -> tuple[np.ndarray, dict[int, str]]:
    """The numbers of a split's contents, equal for copies, and the names of the files that have any."""
    digests = np.arange(count, dtype=np.uint64) + (len(copies) + (split == "val") * 2**32)
    names = {}
    for number, same in enumerate(copies):
        for place, position, name in same:
            if place == split:
                digests[position] = number
                names[position] = name
    return digests, names


def _notes(train: int, val: int, skipped: int) -> list[str]:
    notes = ["test is the official val split: the official test split has no labels."]
    for count, official, what in (
        (train, OFFICIAL_TRAIN, "training"),
        (val, OFFICIAL_VAL, "val"),
    ):
        if count != official:
            notes.append(f"{count:,} of the official {official:,} {what} pictures: a subset.")
    if skipped:
        notes.append(f"{skipped:,} pictures could not be used and were skipped.")
    return notes


def _prepared(source: pathlib.Path, data_dir: pathlib.Path) -> TinyImagenet:
    files = tiny_imagenet_files.open_files(source)
    # pyrefly: ignore [unexpected-keyword]
    config = _Config(name=files.fingerprint(), source=str(source), description="")
    builder = _builder(data_dir, config)
    _sweep(builder.data_path.parent)
    if builder.is_prepared():
        return builder
    tiny_imagenet_files.read_layout(files)  # Complains before anything is written.
    print(f"Preparing {source} (once) in {builder.data_path}", flush=True)
    start = time.monotonic()
    try:
        # TFDS writes beside the final place and renames at the end: all or nothing.
        with _quiet():
            builder.download_and_prepare(download_dir=data_dir / "downloads")
    except OSError as error:
        # Another process may have been first to rename: then its copy is as good as this one.
        builder = _builder(data_dir, config)
        if not builder.is_prepared():
            raise UserError(
                f"Tiny ImageNet could not be prepared in {data_dir} ({error}). Make room or "
                "choose another folder with --config.data.dir=PATH."
            ) from error
    print(f"Prepared in {time.monotonic() - start:.0f} s.", flush=True)
    return builder


def _builder(data_dir: pathlib.Path, config: _Config) -> TinyImagenet:
    with _quiet():
        return TinyImagenet(data_dir=data_dir, config=config, file_format="array_record")


def _sweep(folder) -> None:
    # What a killed preparation left behind; one that is still at work has been written to lately.
    for left in pathlib.Path(folder).glob("incomplete.*"):
        with contextlib.suppress(OSError):
            if time.time() - max(f.stat().st_mtime for f in (left, *left.iterdir())) > 3600:
                shutil.rmtree(left)


@contextlib.contextmanager
def _quiet():
    # TFDS prints sizes that it does not know, and warns that a new folder is new. Its progress
    # bars, on stderr, stay.
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
