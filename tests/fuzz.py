"""Readers of files meet thousands of damaged ones: mutations from a seed, with limits on time and memory."""

import resource
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Numbers at the edges of their types, in bytes and in text.
EDGES = (
    *(
        b"\0",
        b"\xff",
        b"\x7f",
        b"\x80",
        b"\xff\xff\xff\xff",
        b"\xff\xff\xff\x7f",
        b"\0" * 8,
        b"\xff" * 8,
    ),
    *(
        b"-1",
        b"1e999",
        b"nan",
        b"99999999999999999999",
        b"\t",
        b"\n",
        b'"',
        b"[" * 50,
        b"{}",
        b"null",
    ),
)


def mutate(data: bytes, rng: np.random.Generator, tokens: Sequence[bytes] = EDGES) -> bytes:
    """Returns a damaged copy: one to four changes of bytes, lengths, order, or to a token."""
    mutant = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        start = int(rng.integers(len(mutant) + 1))
        if rng.random() < 0.5:  # headers matter more than what follows
            start = min(start, int(rng.integers(256)))
        stop = min(len(mutant), start + int(rng.geometric(0.1)))
        token = tokens[rng.integers(len(tokens))]
        match rng.integers(8):
            case 0 | 1:  # flips a bit of a byte
                mutant[start : start + 1] = bytes(
                    b ^ 1 << rng.integers(8) for b in mutant[start : start + 1]
                )
            case 2:
                mutant[start:stop] = rng.bytes(stop - start)
            case 3:
                mutant[start : start + len(token)] = token
            case 4:
                mutant[start:start] = token
            case 5:
                del mutant[start:stop]
            case 6:  # copies a part over another place
                source = int(rng.integers(len(mutant) + 1))
                mutant[start:stop] = mutant[source : source + stop - start]
            case 7 if rng.random() < 0.3:
                del mutant[start:]
    return bytes(mutant)


def run_fuzz(
    path: Path,
    read: Callable[[], Any],
    allowed: type[Exception] | tuple[type[Exception], ...],
    count: int,
    seed: int,
    seconds: float = 1.0,
    mutate: Callable[[bytes, np.random.Generator], bytes] = mutate,
) -> Counter[str]:
    """Calls `read` for mutants of the file at `path`, each in its place; puts the file back at the end.

    An exception that is not allowed, more than `seconds` of CPU time for a file (or thirty times as many on
    the clock, which other processes slow down), and 2 GiB of memory more than at the start fail; the mutant
    that did it is then `<path>.failed`.

    Returns:
        The number of mutants that were read, as `read`, and of the exceptions by their names.
    """
    original, rng, outcomes = path.read_bytes(), np.random.default_rng(seed), Counter[str]()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    handlers = {kind: signal.signal(kind, _stop) for kind in (signal.SIGPROF, signal.SIGALRM)}
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30), limits[1]))
    try:
        for number in range(count):
            mutant = mutate(original, rng)
            path.write_bytes(mutant)
            _set_timers(seconds)
            try:
                read()
                outcomes["read"] += 1
            except allowed as error:
                outcomes[type(error).__name__] += 1
            except BaseException as error:
                path.with_name(path.name + ".failed").write_bytes(mutant)
                raise AssertionError(
                    f"mutant {number} of {path.name}, seed {seed}: {error!r}"
                ) from error
            finally:
                _set_timers(0)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        for kind, handler in handlers.items():
            signal.signal(kind, handler)
        path.write_bytes(original)
    return outcomes


class _TooSlow(BaseException):
    """More than the time for a file; not an `Exception`, so that no reader takes it for damage."""


def _set_timers(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 30 * seconds)


def _stop(number: int, frame: object) -> None:
    raise _TooSlow
