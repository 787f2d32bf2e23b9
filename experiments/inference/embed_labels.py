"""What is known of files without listening: their folders, the time of the day, or a person's table."""

import csv
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from experiments.audio import times
from experiments.core.errors import UserError


def labels_of(which: str, names: Sequence[str]) -> list[str]:
    """A label for each file name; '' where there is none.

    Args:
        which: 'folder', the one that a file is in; 'period' of the day, by the time in its name; a CSV with
            the columns `file` and `label`, whose files are paths below the folder that was given, or bare
            names; '' for folders where there are several, or else periods.
        names: paths below the folder that was given.

    Raises:
        UserError: if the table cannot be read, or says nothing of any file.
    """
    folders = [PurePosixPath(name).parent.name for name in names]
    if which == "folder" or (not which and len(set(folders)) > 1):
        return folders
    if which in ("", "period"):
        stamps = [times.parse_time(name) for name in names]
        if which and not any(stamps):
            raise UserError(
                "--labels=period: no file's name has a time such as 20190522_060000 in it."
            )
        return ["" if stamp is None else times.get_period(stamp) for stamp in stamps]
    return _from_table(Path(which).expanduser(), names)


def _from_table(path: Path, names: Sequence[str]) -> list[str]:
    if path.suffix.lower() != ".csv":
        raise UserError(f"--labels={path}: write folder, period, or give a file that ends in .csv.")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"--labels={path} cannot be read: {error}.") from error
    if not rows or not {"file", "label"} <= set(rows[0]):
        raise UserError(f"--labels={path}: it needs the columns file and label, and a row a file.")
    known = {row["file"]: row["label"] or "" for row in rows if row["file"]}
    found = [known.get(name, known.get(PurePosixPath(name).name, "")) for name in names]
    if not any(found):
        raise UserError(f"--labels={path} has no label of any of the files, such as {names[0]}.")
    return found
