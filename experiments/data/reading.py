"""Reads files ahead of the consumer with a few threads."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

In, Out = TypeVar("In"), TypeVar("Out")

THREADS = 4
"""Number of threads that read files."""


@dataclasses.dataclass(frozen=True)
class File:
    """A file to read.

    Attributes:
        path: the path as the user wrote it, or below what the user wrote.
        name: a unique name: the path below the folder that the user gave.
    """

    path: Path
    name: str


def prefetch_map(
    function: Callable[[In], Out], arguments: Iterable[In], threads: int
) -> Iterator[Out]:
    """Yields `map(function, arguments)`, computed by threads at most `threads` results ahead.

    Unlike an executor's own `map`, it does not take all arguments at once.
    """
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        waiting: collections.deque[Any] = collections.deque()
        try:
            for argument in arguments:
                waiting.append(pool.submit(function, argument))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
