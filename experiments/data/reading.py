"""Reads files ahead of their turn."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

In, Out = TypeVar("In"), TypeVar("Out")

THREADS = 4  # that read files


@dataclasses.dataclass(frozen=True)
class File:
    """A file to be read.

    Attributes:
        path: where it is, as the person wrote it or below what they wrote.
        name: what sets it apart from all others: its path below the folder that was given.
    """

    path: Path
    name: str


def prefetch_map(
    function: Callable[[In], Out], arguments: Iterable[In], threads: int
) -> Iterator[Out]:
    """`map(function, arguments)` by threads, of which each is at most one result ahead.

    An executor's own `map` would take all arguments at once.
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
