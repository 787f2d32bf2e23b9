"""Loads the data of a run, and keeps a run from being continued with other data unnoticed."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from experiments import data
from experiments.core.console import print_line
from experiments.core.errors import UserError
from experiments.core.files import to_json
from experiments.core.hosts import hosts_agree
from experiments.data import Dataset
from experiments.data.fingerprint import (
    Entry,
    Fingerprint,
    compute_fingerprint,
    describe_changes,
)
from experiments.runs.data_record import (
    DataRecord,
    read_known_entries,
    read_record,
    write_record,
)
from experiments.runs.folder import has_results
from experiments.runs.schema import CHECKPOINTS, list_steps, read_progress

ADVICE = (
    "Restore the data to continue that run, or choose another --workdir for the new data. If you mean to "
    "continue with it, add --accept_new_data: the run notes the change, and files that it knows keep their "
    "splits."
)


def load_run_data(
    config: ConfigDict, workdir: Path, accept_new_data: bool
) -> tuple[Dataset, DataRecord]:
    """Loads the data of a run, and checks that it is the data that the run has had so far.

    All processes check; process 0 writes what the run knows of its data. A run from before there was such a
    record has one from now on.

    Raises:
        UserError: says what has changed, unless that is accepted, or that the hosts have different data.
    """
    continues = has_results(workdir)
    record = read_record(workdir) if continues else None
    is_process_0 = jax.process_index() == 0
    known = read_known_entries(workdir, record) if continues else ()
    dataset, fingerprint = _load(config, known, workdir if is_process_0 else None)
    if not hosts_agree(fingerprint.digest):
        raise UserError(
            f"{config.data.name}: the processes see different data. Give all of them the same files "
            "(--config.data.source), then run the same command again."
        )
    step = max(list_steps(workdir), default=0) if continues else 0
    change = _describe_change(workdir, step, record, fingerprint)
    if change and not accept_new_data:
        raise UserError(f"{workdir} holds a run on other data: {change}. {ADVICE}")
    changes = list(record.changes) if record else []
    if change:
        before = record.fingerprint.digest if record else ""
        changes.append({"step": step, "change": change, "digest": before})
    new_record = DataRecord(fingerprint, changes)
    # Not before all processes have read the old one.
    if hosts_agree(fingerprint.digest) and is_process_0:
        if change:
            print_line(f"note: this run continues with other data: {change}")
        if change or record is None or not record.fingerprint.entries:
            write_record(workdir, new_record, dataset)
    # The list may have millions of files, and is not needed any more.
    return dataset, DataRecord(dataclasses.replace(fingerprint, entries=()), changes)


def describe_new_data(config: ConfigDict, workdir: Path, one_of_many: bool) -> str:
    """Returns a sentence if the data of a finished run is not what it was; '' if it is, or nobody knows.

    Of `one_of_many` runs in this process the data is loaded once.
    """
    record = read_record(workdir)
    if record is None:
        return ""
    compute = _compute_digest_once if one_of_many else _compute_digest
    try:
        if compute(_make_key(config)) == record.fingerprint.digest:
            return ""
        _, fingerprint = _load(config, read_known_entries(workdir, record), None)
    except UserError as error:
        return f"The data of this run could not be compared with what is there now: {error}"
    change = describe_changes(record.fingerprint, fingerprint)
    return f"The data has changed since this run: {change}." if change else ""


def _load(
    config: ConfigDict, known: Sequence[Entry], output: Path | None
) -> tuple[Dataset, Fingerprint]:
    """Loads the data, the files of the run in the splits that they had, and computes its fingerprint."""
    dataset = data.load_for_training(
        config.data,
        config.seed,
        audio=config.get("audio"),
        image_size=config.get("image_size", 0),
        workdir=output,
        known=known,
    )
    return dataset, compute_fingerprint(dataset)


def _describe_change(
    workdir: Path, step: int, record: DataRecord | None, fingerprint: Fingerprint
) -> str:
    """Returns what has changed in words; without `data.json`, if the digest in the checkpoint differs."""
    if record:
        return describe_changes(record.fingerprint, fingerprint)
    try:
        saved = read_progress(workdir / CHECKPOINTS / str(step)).get("data") if step else None
    except OSError:
        saved = None  # whoever reads the checkpoint says what is wrong with it
    if saved in (None, fingerprint.digest):
        return ""
    return (
        "its digest differs from the checkpoint's, and data.json, which would say more, is missing"
    )


def _make_key(config: ConfigDict) -> str:
    sections = {"data": config.data.to_dict(), "seed": config.seed}
    if "audio" in config:
        sections["audio"] = config.audio.to_dict()
    return json.dumps(to_json(sections), sort_keys=True)


def _compute_digest(key: str) -> str:
    sections = ConfigDict(json.loads(key))
    dataset = data.load_for_training(
        sections.data, sections.seed, audio=sections.get("audio"), image_size=1
    )
    return compute_fingerprint(dataset).digest


_compute_digest_once = functools.lru_cache(maxsize=256)(_compute_digest)
