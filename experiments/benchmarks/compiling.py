"""Compiles steps in processes of their own, and keeps what has been compiled for the same code."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments.benchmarks.chips import CHIPS, COMPILERS, make_environment
from experiments.core.digests import compute_digest
from experiments.core.files import write_json

ROOT = Path(__file__).parents[2]
STEP = "experiments.benchmarks.compiled_step"
LOWERING = "experiments.benchmarks.compiled_lowering"
# Files that a row depends on, beside the library.
MEASURING = (
    "benchmarks/adam_step.py", "benchmarks/chips.py", "benchmarks/compiled_step.py",
    "benchmarks/flax_resnet.py", "benchmarks/hlo.py", "benchmarks/networks.py",
    "benchmarks/schedules.py", "tasks/*.py", "train/sharding.py",
)  # fmt: skip

Row = dict[str, Any]


def compile_in_process(request: Row, module: str = STEP) -> Row:
    """Compiles what a request asks for in a process of its own, and returns the request with the result.

    Args:
        request: the fields of a `compiled_step.Request`, or what another module takes, but for `dump_folder`.
        module: `STEP` or `LOWERING`.
    """
    chip = CHIPS[request["platform"]]
    with tempfile.TemporaryDirectory(prefix="compiled_step-") as name:
        folder = Path(name)
        asked, answer = folder / "request.json", folder / "result.json"
        schedules = folder / "schedules"
        dump_folder = str(schedules) if chip.platform == "tpu" else ""
        write_json(asked, {**request, "dump_folder": dump_folder})
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        process = subprocess.run(
            [sys.executable, "-m", module, str(asked), str(answer)],
            env=os.environ | {"PYTHONPATH": path} | make_environment(chip, dump_folder),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        if answer.exists():
            return {**request, **json.loads(answer.read_text(encoding="utf-8"))}
    return {**request, "status": "fails", "message": _explain_exit(process)}


def _explain_exit(process: subprocess.CompletedProcess[str]) -> str:
    """Returns the error of a process that left no result, in one line."""
    if process.returncode < 0:
        return f"the compiler's process was ended by signal {-process.returncode}"
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else f"exit code {process.returncode}"


def describe_code(platform: str) -> str:
    """Returns a text that changes with the code that is measured, or measures, and with the compilers."""
    measuring = [path for one in MEASURING for path in sorted((ROOT / "experiments").glob(one))]
    files = [*sorted((ROOT / "dyn").rglob("*.py")), *measuring]
    digest = compute_digest(b"".join(path.read_bytes() for path in files))
    package, _ = COMPILERS[CHIPS[platform].platform]
    versions = [
        f"{name} {metadata.version(name)}" for name in ("jax", "flax", package.replace("_", "-"))
    ]
    return f"{', '.join(versions)}, code {digest:016x}"


def compile_rows(
    requests: Sequence[Row],
    known: Sequence[Row],
    report: Callable[[Row], None],
) -> list[Row]:
    """Compiles the steps of requests one after the other.

    Args:
        requests: the rows of a table.
        known: rows that were compiled before; those of an equal request are taken over unless they failed.
        report: called with each row as soon as it is known.

    Returns:
        The rows in the order of the requests.
    """
    rows = []
    for request in requests:
        same = [row for row in known if row["status"] != "fails" and row.items() >= request.items()]
        rows.append(same[0] if same else compile_in_process(request))
        report(rows[-1])
    return rows


def make_requests(networks: Sequence[str], topologies: Sequence[str], **settings: Any) -> list[Row]:
    """Returns a request for each network on each topology, with the same other fields."""
    return [
        {**settings, "network": network, "topology": topology}
        for topology in topologies
        for network in networks
    ]


def read_known_rows(path: Path, code: str) -> list[Row]:
    """Reads the rows of an earlier table, none if there is no such file or other code has made it."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return table.get("rows", []) if table.get("code") == code else []
