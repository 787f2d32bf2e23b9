"""Chooses among the tables that `experiments.predict` writes of the same detections the corrected ones."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from experiments.audio.detections import EDITABLE, LABEL_SUFFIX, RAVEN_SUFFIX
from experiments.core import own_files

_OWN = re.compile(f"(.+)({re.escape(RAVEN_SUFFIX)}|{re.escape(LABEL_SUFFIX)})")
_EARLIER = re.compile(r"(.+\.dyn\.(selections|labels)|predictions(\.\w+)?)\.earlier(-\d+)?\.\w+")


def find_repeated(paths: Sequence[Path]) -> dict[Path, str]:
    """Returns the tables not to read, with the reasons: a row that somebody has deleted is in them still.

    Of the tables over all recordings and those of each recording, the first that have been changed are read,
    and if none have, those of each recording; so of the two tables that a recording may have.
    """
    repeated: dict[Path, str] = {}
    for manifest in paths:
        if manifest.name == own_files.MANIFEST and (digests := _read_digests(manifest)):
            _compare(manifest.parent, paths, digests, repeated)
    return repeated


def _compare(
    folder: Path, paths: Sequence[Path], digests: dict[str, str], repeated: dict[Path, str]
) -> None:
    """Adds the tables of one folder of predictions that are not to be read to `repeated`."""
    inside = {path for path in paths if path.is_relative_to(folder)}
    own: dict[str, list[Path]] = {}
    common = [[], *([folder / name] for name in EDITABLE if folder / name in inside)]
    # Raven's tables come before label tracks, because they have scores.
    for path in sorted(inside, reverse=True):
        if _EARLIER.fullmatch(path.name):
            repeated[path] = "it is an earlier table, which was kept; to read it, name it"
        elif match := _OWN.fullmatch(path.name):
            own.setdefault(str(path.with_name(match[1])), []).append(path)
            common[0].append(path)

    def is_changed(path: Path) -> bool:
        written = digests.get(path.relative_to(folder).as_posix())
        digest = own_files.compute_sha256(path)
        # One that cannot be read is listed when it is read.
        return not digest or written not in (None, digest)

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
    """Returns the digests of a manifest, as `own_files.read_manifest`; {} if it cannot be used."""
    try:
        return own_files.read_manifest(manifest) or {}
    except (OSError, ValueError, csv.Error):
        return {}
