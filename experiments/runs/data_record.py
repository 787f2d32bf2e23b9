"""The record of a run's data: `data.json`, and the list of its files in `data.jsonl.gz`."""

import dataclasses
import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import data
from experiments.core import files
from experiments.core.checked_json import read_json
from experiments.core.errors import UserError
from experiments.core.listing import check_regular_file
from experiments.data import groups
from experiments.data.dataset import Dataset
from experiments.data.fingerprint import (
    Entry,
    Fingerprint,
    compute_fingerprint,
    describe_changes,
)
from experiments.runs.schema import DATA, DATA_FILE

LIST_FILE, SPLITS_FILE = "data.jsonl.gz", "splits.csv"
ADVICE = (
    "Put it back, or delete it, and the data is compared with the digest in the checkpoint alone."
)
MAX_LIST_BYTES = 2**30  # unpacked; a list of ten million files


@dataclasses.dataclass(frozen=True)
class DataRecord:
    """The record of a run's data.

    Attributes:
        fingerprint: of the data of the newest step.
        changes: for each change that was accepted, the step, the change in words and the digest before it.
    """

    fingerprint: Fingerprint
    changes: Sequence[dict[str, Any]] = ()


def read_record(workdir: Path) -> DataRecord | None:
    """Reads what a run knows of its data; None for a run that has written nothing about it.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        saved = read_json(workdir / DATA_FILE, DATA, ADVICE)
    except FileNotFoundError:
        return None
    facts = (saved[name] for name in ("digest", "classes", "examples", "digests"))
    return DataRecord(Fingerprint(*facts, read_entries(workdir)), saved.get("changes", ()))


def write_record(workdir: Path, record: DataRecord, dataset: Dataset) -> None:
    """Writes what a run knows of its data, and for recordings `splits.csv`."""
    fingerprint = record.fingerprint
    lines = [json.dumps(entry) for entry in (Entry._fields, *fingerprint.entries)]
    with files.replace_file(workdir / LIST_FILE) as temporary:
        temporary.write_bytes(gzip.compress("\n".join(lines).encode(), 6, mtime=0))
    if dataset.assignment:
        files.write_csv(workdir / SPLITS_FILE, ("file", "split"), dataset.assignment)
    # Last: its digest is what counts.
    saved = {
        name: getattr(fingerprint, name) for name in ("digest", "classes", "examples", "digests")
    }
    files.write_json(workdir / DATA_FILE, {**saved, "changes": list(record.changes)})


def read_entries(workdir: Path) -> list[Entry]:
    """Reads the list of a run's files; [] if there is none, or it is damaged."""
    try:
        check_regular_file(workdir / LIST_FILE)
        with gzip.open(workdir / LIST_FILE) as file:
            lines = file.read(MAX_LIST_BYTES).decode().split("\n")
        header, *rows = map(json.loads, lines)
        entries = [Entry(*map(str, row)) for row in rows]
        return entries if header == list(Entry._fields) else []
    except (OSError, EOFError, ValueError, TypeError, RecursionError, zlib.error):
        return []


def read_known_entries(workdir: Path, record: DataRecord | None = None) -> list[Entry]:
    """Returns the files of a run with their splits; of an older run on recordings, those of `splits.csv`.

    The list of files is that of the `record`, if there is one, and is read otherwise.
    """
    entries = list(record.fingerprint.entries) if record else read_entries(workdir)
    listed = {entry.file for entry in entries}
    file = workdir / SPLITS_FILE
    if file.is_file():
        table = groups.read_splits(file)
        entries += [
            Entry(split, name, "", "", "") for name, split in table.items() if name not in listed
        ]
    return entries


def reload_data(
    config: ConfigDict, classes: Sequence[str], workdir: Path, used: Sequence[str]
) -> tuple[Dataset, str]:
    """Loads the data of a run, with a warning if the splits in `used` are not what they were.

    Files that the run knows are in their splits: what has been trained on is not tested on. The run may be a
    file of weights, which knows nothing of its data.

    Raises:
        UserError: if the data has other classes than the run, whose numbers would mean others.
    """
    record = read_record(workdir) if workdir.is_dir() else None
    known = read_known_entries(workdir, record)
    dataset = data.load(config.data, config.seed, config.get("audio"), known)
    if list(dataset.classes) != list(classes):
        more, less = (
            ", ".join(sorted(set(one) - set(other))) or "none"
            for one, other in ((dataset.classes, classes), (classes, dataset.classes))
        )
        raise UserError(
            f"{workdir} was trained on other classes than its data has now (new: {more}; missing: {less}): "
            "put the data back as it was."
        )
    if record is None:
        return dataset, ""
    before, now = record.fingerprint, compute_fingerprint(dataset)
    # Extra training pictures have a part in the digest, and are not loaded here.
    compared = [one for one in used if one != "train" or not config.data.get("extra_train")]
    if all(now.digests.get(split) == before.digests.get(split) for split in compared):
        return dataset, ""
    change = describe_changes(before, now)
    return dataset, f"the data has changed since {workdir} was trained: {change}."
