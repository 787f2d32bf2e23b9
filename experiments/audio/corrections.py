"""Chooses among the tables that `experiments.predict` writes of the same detections the corrected ones."""

import csv
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from experiments.core.files import read_csv

MANIFEST = "written.csv"
"""Name of the list of the tables, with their digests."""
COMMON = (
    "predictions.csv",
    "predictions.raven.txt",
    "predictions.kaleidoscope.csv",
    "predictions.birdnet.csv",
)
"""Names of the tables over all recordings."""
_OWN = re.compile(r"(.+)\.dyn\.(selections|labels)\.txt")
_EARLIER = re.compile(r"(.+\.dyn\.(selections|labels)|predictions(\.\w+)?)\.earlier(-\d+)?\.\w+")


def find_repeated(paths: Sequence[Path]) -> dict[Path, str]:
    """Returns the tables not to read, with the reasons: a row that somebody has deleted is in them still.

    Of the tables over all recordings and those of each recording, the first that have been changed are read,
    and if none have, those of each recording; so of the two tables that a recording may have.
    """
    repeated: dict[Path, str] = {}
    for manifest in paths:
        if manifest.name == MANIFEST and (digests := _read_digests(manifest)):
            _compare(manifest.parent, paths, digests, repeated)
    return repeated


def _compare(
    folder: Path, paths: Sequence[Path], digests: dict[str, str], repeated: dict[Path, str]
) -> None:
    """Adds the tables of one folder of predictions that are not to be read to `repeated`."""
    inside = {path for path in paths if path.is_relative_to(folder)}
    own: dict[str, list[Path]] = {}
    common = [[], *([folder / name] for name in COMMON if folder / name in inside)]
    for path in sorted(
        inside, reverse=True
    ):  # Raven's tables before label tracks: they have scores.
        if _EARLIER.fullmatch(path.name):
            repeated[path] = "it is an earlier table, which was kept; to read it, name it"
        elif match := _OWN.fullmatch(path.name):
            own.setdefault(str(path.with_name(match[1])), []).append(path)
            common[0].append(path)

    def is_changed(path: Path) -> bool:
        written = digests.get(path.relative_to(folder).as_posix())
        try:
            with open(path, "rb") as file:
                return written not in (None, hashlib.file_digest(file, "sha256").hexdigest())
        except OSError:  # It is listed when it is read.
            return True

    for choices in (*([[one] for one in both] for both in own.values()), common):
        choices = [choice for choice in choices if choice]
        if not choices:
            continue
        chosen = next((one for one in choices if any(map(is_changed, one))), choices[0])
        others = " and others" if len(chosen) > 1 else ""
        reason = f"its detections are read from {chosen[0].name}{others}; to read this one, name it"
        for other in choices:
            if other is not chosen:
                repeated |= dict.fromkeys(other, reason)


def _read_digests(manifest: Path) -> dict[str, str]:
    """Returns the digests of the tables in a manifest, by their paths below its folder; {} if it is none."""
    try:
        header, *rows = read_csv(manifest) or [[]]
    except (OSError, ValueError, csv.Error):
        return {}
    return {row[0]: row[1] for row in rows if len(row) > 1} if header == ["file", "sha256"] else {}
