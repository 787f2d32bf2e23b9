"""Runs the commands of the laboratory: `dyn train` is `python -m experiments.main`, and so on.

dyn COMMAND [WORDS AND FLAGS]

dyn COMMAND --help      what a command does, and its flags
dyn --version           the version of the package
"""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import dyn
from experiments.core.console import print_line, print_page
from experiments.core.errors import suggest_nearest
from experiments.core.help_pages import format_entries, read_summary

FOLDER = Path(__file__).parents[1]
MODULES = {
    "train": "main",
    "study": "study",
    "report": "report",
    "predict": "predict",
    "segments": "segments",
    "embed": "embed",
    "probe": "probe",
    "prune": "prune",
    "generate": "generate",
    "augmentation": "augmentation",
    "export": "export",
    "inspect": "inspect",
}
"""Files of `FOLDER` by command. `dyn benchmark NAME` runs a file of `benchmarks`."""


def main() -> None:
    """Runs the command that the command line names, and ends the process."""
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Runs a command, whose file ends the process, or prints a page, and returns the exit code."""
    command, *rest = words or ["--help"]
    if command in ("--help", "-h", "-help", "help"):
        print_page(describe_commands())
        return 0
    if command == "--version":
        print_line(f"dynconv {dyn.__version__}")
        return 0
    if command == "benchmark":
        return _run_benchmark(rest)
    if command not in MODULES:
        hint = suggest_nearest(command, [*MODULES, "benchmark"])
        print_line(f"error: There is no command '{command}'{hint}", error=True)
        return 2
    return _run_module(MODULES[command], rest)


def describe_commands() -> str:
    """Returns the page with a line for each command."""
    entries = {name: read_summary(FOLDER / f"{module}.py") for name, module in MODULES.items()}
    entries["benchmark"] = "Runs one of the benchmarks; without a name it lists them."
    return f"{(__doc__ or '').strip()}\n\n{format_entries(entries)}"


def list_benchmarks() -> dict[str, str]:
    """Returns the first lines of the benchmarks that are commands, by name."""
    paths = sorted((FOLDER / "benchmarks").glob("*.py"))
    commands = [path for path in paths if "run_command(" in path.read_text(encoding="utf-8")]
    return {path.stem: read_summary(path) for path in commands}


def _run_benchmark(words: Sequence[str]) -> int:
    """Runs a benchmark, or lists all of them if there is no name."""
    known = list_benchmarks()
    name, *rest = words or ["--help"]
    if name in ("--help", "-h"):
        print_page(
            "Runs one of the benchmarks.\n\n    dyn benchmark NAME [FLAGS]\n\n"
            + format_entries(known)
        )
        return 0
    if name not in known:
        print_line(
            f"error: There is no benchmark '{name}'{suggest_nearest(name, known)}", error=True
        )
        return 2
    return _run_module(f"benchmarks.{name}", rest)


def _run_module(module: str, words: Sequence[str]) -> int:
    """Runs a file as `python -m` does."""
    sys.argv[1:] = words
    runpy.run_module(f"experiments.{module}", run_name="__main__", alter_sys=True)
    return 0
