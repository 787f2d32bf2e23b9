"""64-bit digests of contents, by which copies are recognised."""

import hashlib
import os
import zlib
from pathlib import Path


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
