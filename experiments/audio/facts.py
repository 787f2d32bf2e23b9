"""Facts of a recording in the cache of spectrograms or samples, in a JSON file beside them.

They are believed only if the checksums of the facts, of the spectrograms and, where the system says that the
file has been touched, of the recording agree.
"""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.core import digests
from experiments.core.files import replace_file, to_json

_CHECKSUM = "crc32_of_these"


class Damaged(ValueError):
    """An entry of the cache whose checksums do not agree."""


def describe_recording(path: Path) -> dict[str, int]:
    """Returns what tells this content of a recording from another of the same size and time.

    The system sets `changed`, the time of the last change of a file's content or name, and no program can set
    it back. The checksum costs reading the file, and is compared only where `changed` differs.
    """
    status = os.stat(path)  # First: a change while the file is read will be seen.
    is_file = stat.S_ISREG(status.st_mode)  # Reading a pipe might block for ever.
    crc32 = digests.compute_file_crc32(path) if is_file else 0
    return {"changed": status.st_ctime_ns, "recording_crc32": crc32}


def write_facts(file: Path, facts: Mapping[str, Any], spectrograms: Path | None) -> dict[str, Any]:
    """Writes the facts of a recording, with checksums of them and of its spectrograms, and returns them."""
    content: Any = to_json(facts)
    if spectrograms is not None:
        content["spectrograms_bytes"] = os.path.getsize(spectrograms)
        content["spectrograms_crc32"] = digests.compute_file_crc32(spectrograms)
    _write(file, content)
    return content


def read_facts(file: Path, spectrograms: Path, recording: Path) -> dict[str, Any] | None:
    """Returns the facts of a recording; None if there are none, or the recording is another one now.

    Raises:
        Damaged: if the facts or the spectrograms are not as they were written.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.pop(_CHECKSUM, None) != digests.compute_json_crc32(
        content
    ):
        raise Damaged(f"{file} has changed since it was written")
    if "spectrograms_crc32" in content:
        try:
            crc32 = digests.compute_file_crc32(spectrograms)
        except OSError as error:
            raise Damaged(f"{spectrograms} cannot be read: {error}") from error
        if crc32 != content["spectrograms_crc32"]:
            raise Damaged(f"{spectrograms} has changed since it was written")
    return content if _is_same(file, content, recording) else None


def _is_same(file: Path, content: dict[str, Any], recording: Path) -> bool:
    """Returns whether a recording has the content that the facts are of; notes that it was looked at."""
    try:
        if os.stat(recording).st_ctime_ns == content["changed"]:
            return True
        now = describe_recording(recording)
    except OSError:  # Reading the recording will give the reason.
        return False
    if now["recording_crc32"] != content["recording_crc32"]:
        return False
    _write(file, {**content, **now})
    return True


def _write(file: Path, content: dict[str, Any]) -> None:
    """Writes facts and their checksum, onto the disk before the name."""
    text = json.dumps({**content, _CHECKSUM: digests.compute_json_crc32(content)}, indent=2)
    with replace_file(file) as temporary, open(temporary, "w", encoding="utf-8") as opened:
        opened.write(text + "\n")
        opened.flush()
        os.fsync(opened.fileno())
