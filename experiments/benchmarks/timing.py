"""What all benchmarks share: steps timed in turn, ratios of them, and the machine they ran on."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax


def alternate(steps: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, list[float]]:
    """Calls every step in turn, again and again: whatever else the machine does, it does to all of them.

    Args:
        steps: by name, functions that return when their work is done, not when it is queued.
        runs: how often each is timed; a first round before them warms up and does not count.

    Returns:
        The seconds of each step's runs, in order: those of one round stand at one position.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for run in range(runs + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if run:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times theirs mine takes: the median over the rounds of `alternate`.

    Raises:
        ValueError: if they are not of the same rounds.
    """
    return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))


def machine() -> dict[str, Any]:
    """What a benchmark ran on, for its JSON.

    Call it before the first step: the load average then says what else was at work, and not the benchmark.

    Returns:
        `platform` and `device` (JAX's), `devices` (how many), `cores` (that this process may use), `cpu`
        (its model, '' where the system does not say), `load_average` (of the last minute; None where
        there is none), `glibc_tunables` (what the environment tells GNU's malloc), `system` and the
        `versions` of Python, jax, jaxlib and numpy.
    """
    first = jax.devices()[0]
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    return {
        "platform": first.platform,
        "device": first.device_kind,
        "devices": jax.device_count(),
        "cores": usable_cores(),
        "cpu": _cpu_model(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "system": platform.system(),
        "versions": {"python": platform.python_version()} | versions,
    }


def usable_cores() -> int:
    """The CPU cores that this process may use: a container is often given a few of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    """The processor's own name, as Linux tells it; what Python knows elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())
