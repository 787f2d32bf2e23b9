"""64-bit digests of contents, by which copies are recognised."""

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

_WHOLE = 2**20  # bytes of a file that are read completely
_BLOCKS, _BLOCK = 32, 2**14  # and what is read of a larger one


def compute_digest(content: bytes) -> int:
    """Returns a 64-bit digest; two different contents share one with a probability of 1 in 10^19."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def compute_file_digest(path: str | os.PathLike) -> int:
    """Returns the digest of a file's content."""
    return compute_digest(Path(path).read_bytes())


def compute_file_crc32(path: str | os.PathLike) -> int:
    """Returns the checksum of a file's content: it tells accidents, at a third of a second for a GiB."""
    crc32 = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            crc32 = zlib.crc32(block, crc32)
    return crc32


def compute_json_crc32(value: Any) -> int:
    """Returns the checksum of a value that JSON knows."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def compute_sampled_digest(path: str | os.PathLike) -> int:
    """Returns a digest of a file's size and of its content, of which blocks stand for all in a large file.

    An hour of sound is then as quick as a second. A change in a part of a large file may be missed.
    """
    size = os.path.getsize(path)
    digest = hashlib.blake2b(str(size).encode(), digest_size=8)
    with open(path, "rb") as file:
        if size <= _WHOLE:
            digest.update(file.read(_WHOLE))
        else:
            for number in range(_BLOCKS):
                file.seek(number * (size - _BLOCK) // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return int.from_bytes(digest.digest(), "big")
