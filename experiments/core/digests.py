"""Numbers that stand for contents, by which copies are found."""

import hashlib
import os
import pathlib


def compute_digest(content: bytes) -> int:
    """A number of 64 bits for a content; that two contents share one is a chance of one in 10^19."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def compute_file_digest(path: str | os.PathLike) -> int:
    """The number of a file's content."""
    return compute_digest(pathlib.Path(path).read_bytes())
