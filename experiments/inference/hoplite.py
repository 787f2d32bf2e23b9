"""Codes of recordings in a database of perch-hoplite, for search and for Perch's agile modelling."""

import importlib
import types
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from ml_collections import ConfigDict

import dyn
from experiments.audio import times
from experiments.core.errors import UserError
from experiments.inference.embeddings import Embedded
from experiments.inference.trained import Trained

FILES = ("hoplite.sqlite", "hoplite.sqlite-wal", "hoplite.sqlite-shm", "usearch.index")
_PROVENANCE = "dyn"
_BATCH = 4096  # codes that are added at once


def import_hoplite() -> types.ModuleType:
    """Returns the module of perch-hoplite's databases.

    Raises:
        UserError: with the command that installs it, if it is missing.
    """
    try:
        return importlib.import_module("perch_hoplite.db.sqlite_usearch_impl")
    except ImportError as error:
        # Its requirements have older versions of what the laboratory needs, such as ml-collections below 0.2.
        raise UserError(
            f"--hoplite needs perch-hoplite, which cannot be imported ({error}): pip install --no-deps "
            "perch-hoplite usearch numkong"
        ) from error


def check_database(folder: Path, overwrite: bool) -> None:
    """Raises a UserError if a database cannot be written: no library, or something is in the way."""
    import_hoplite()
    if folder.is_file():
        raise UserError(f"--hoplite={folder} is a file: give a folder.")
    for path in (folder / name for name in FILES):
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists: choose another --hoplite, or give --overwrite.")


def write_database(
    folder: Path, trained: Trained, embedded: Embedded, labels: Sequence[str]
) -> int:
    """Writes the codes of recordings into a new database, in place of the one in the folder.

    A folder of recordings becomes a deployment, whose project is the name of the run. Silent windows are left
    out: they are the nearest to each other in any search. Codes are rounded to float16, as the library has
    it. Labels become positive annotations of their windows.

    Args:
        folder: the folder of the database.
        trained: the network that made the codes.
        embedded: the codes.
        labels: of each code, '' for none.

    Returns:
        The number of codes in the database.
    """
    library = import_hoplite()
    positive = importlib.import_module("perch_hoplite.db.datatypes").LabelType.POSITIVE
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    config = library.get_default_usearch_config(embedded.codes.shape[1])
    database = library.SQLiteUSearchDB.create(str(folder), config)
    audio, project = trained.config.audio, trained.source.resolve().name
    run = {"run": str(trained.source), "version": f"dyn {dyn.__version__}"}
    sound = {name: audio[name] for name in ("sample_rate", "seconds", "hop")}
    database.insert_metadata("dyn", ConfigDict({**run, **sound}))
    heard = np.flatnonzero(~embedded.silent)
    deployments: dict[str, int] = {}
    recordings: dict[str, int] = {}
    for file in dict.fromkeys(embedded.files[index] for index in heard):
        place = str(PurePosixPath(file).parent)
        if place not in deployments:
            deployments[place] = database.insert_deployment(place, project)
        recordings[file] = database.insert_recording(
            file, datetime=times.parse_time(file), deployment_id=deployments[place]
        )
    for part in np.split(heard, range(_BATCH, len(heard), _BATCH)):
        rows = [
            {
                "recording_id": recordings[embedded.files[index]],
                "offsets": [float(embedded.starts[index]), float(embedded.ends[index])],
            }
            for index in part
        ]
        # All are new: the library would compare each with each.
        database.insert_windows_batch(rows, embedded.codes[part], handle_duplicates="allow")
        for index, row in zip(part, rows, strict=True):
            if labels[index]:
                database.insert_annotation(
                    **row,
                    label=labels[index],
                    label_type=positive,
                    provenance=_PROVENANCE,
                    handle_duplicates="allow",
                )
    database.commit()
    return len(heard)
