"""Times steps in turn, computes their ratios, and describes the machine."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax


def time_alternately(steps: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, list[float]]:
    """Times several steps in turn, so that other load on the machine affects all of them alike.

    Args:
        steps: by name, functions that return when their work is done, not when it is queued.
        runs: the number of timed rounds, after one that warms up.

    Returns:
        The seconds of each step in each round; position i belongs to round i in all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for run in range(runs + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if run:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def compute_ratio(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """Returns the median over the rounds of `time_alternately` of mine divided by theirs."""
    return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))


def describe_machine() -> dict[str, Any]:
    """Describes the machine, for a benchmark's JSON.

    Call it before the first step, so that the load average is that of other processes.
    """
    first = jax.devices()[0]
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    return {
        "platform": first.platform,
        "device": first.device_kind,
        "devices": jax.device_count(),
        "cores": count_usable_cores(),  # of this process
        "cpu": _name_cpu(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "system": platform.system(),
        "versions": {"python": platform.python_version()} | versions,
    }


def count_usable_cores() -> int:
    """Returns the number of CPU cores that this process may use, which may be less than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _name_cpu() -> str:
    """Returns the model of the processor from Linux, or what Python knows on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor())
