"""Rules of the house that a program can check: the direction of imports, and the openings of docstrings."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A folder imports only from lower floors and from itself. The root of experiments/ is the top floor.
FLOORS = {
    "core": 0,
    "configs": 1,
    "audio": 1,
    "data": 2,
    "runs": 3,
    "figures": 3,
    "tasks": 4,
    "reports": 4,
    "train": 5,
    "inference": 5,
}
# The rooms of dyn/ above each room, which it must not import, and libraries that a function may import.
ABOVE = {
    "ops": ("layers", "nnx", "models", "schedules", "diagnostics", "interop"),
    "layers": ("nnx", "models", "schedules", "diagnostics", "interop"),
    "models": ("nnx", "interop"),
    "nnx": ("diagnostics", "interop"),
}
OPTIONAL = {"interop": {"safetensors", "huggingface_hub"}}
COMMANDS = {
    *(
        "main",
        "study",
        "augmentation",
        "report",
        "predict",
        "segments",
        "embed",
        "probe",
        "prune",
        "generate",
        "export",
        "inspect",
    ),
    *("load", "__init__"),
}
MAX_COMMAND_LINES = 130  # about 100 and a docstring with the usage
DOCSTRING_OPENINGS = re.compile(r"\W*(What|Which|How|Whether|Where|Of|That)\b")


def parsed_files(*folders):
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def room_of(module):
    """The folder of experiments/ that a dotted module lies in, or 'commands' for a file at its root."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / "experiments" / parts[1]).is_dir() else "commands"


def imported_modules(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_run_down():
    wrong = []
    for path, tree in parsed_files("experiments"):
        here = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts[:2]))
        if here == "benchmarks":  # may look at everything, and nothing looks at it
            continue
        for module in imported_modules(tree):
            if not module.startswith("experiments."):
                continue
            there = room_of(module)
            floor = FLOORS.get(there, len(FLOORS))
            if there != here and floor >= FLOORS.get(here, len(FLOORS) + 1):
                wrong.append(f"{path.relative_to(ROOT)} -> {module}")
    assert wrong == []


def test_the_library_imports_what_its_rooms_may():
    """It imports jax, flax and numpy only, and no room above."""
    for path, tree in parsed_files("dyn"):
        room = path.relative_to(ROOT / "dyn").parts[0]
        modules = set(imported_modules(tree))
        libraries = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names
        allowed = {"dyn", "jax", "numpy"} | ({"flax"} if room != "ops" else set())
        assert libraries <= allowed | OPTIONAL.get(room, set()), path
        above = tuple(f"dyn.{name}" for name in ABOVE.get(room, ()))
        assert not any(module.startswith(above) for module in modules if above), path
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not any(node.level for node in imports), f"{path}: relative import"


def test_training_imports_no_reporting():
    for path, tree in parsed_files("experiments/train", "experiments/tasks"):
        modules = set(imported_modules(tree))
        assert not any(module.startswith("experiments.reports") for module in modules), path


def test_no_import_circles():
    graph = {}
    for path, tree in parsed_files("dyn", "experiments"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[module] = set(imported_modules(tree))
    graph = {
        module: {name if name in graph else name.rpartition(".")[0] for name in names}
        & (graph.keys() - {module})
        for module, names in graph.items()
    }
    packages = {
        module for module in graph if any(other.startswith(module + ".") for other in graph)
    }
    finished = set()

    def visit(module, trail):
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module not in finished:
            # A package's __init__ gathers its own files, which import the package's name for its siblings.
            for other in graph[module] - packages:
                visit(other, [*trail, module])
            finished.add(module)

    for module in graph:
        visit(module, [])


def test_root_holds_only_commands():
    for path in (ROOT / "experiments").glob("*.py"):
        assert path.stem in COMMANDS, f"{path.name}: put it into a folder of experiments/"
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MAX_COMMAND_LINES, f"{path.name} has {lines} lines: keep flags and one call"


@pytest.mark.parametrize("folder", ["dyn", "experiments", "tests"])
def test_docstrings_open_with_an_imperative_or_a_noun(folder):
    wrong = []
    for path, tree in parsed_files(folder):
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node) or ""
                if DOCSTRING_OPENINGS.match(docstring):
                    line = getattr(node, "lineno", 1)
                    wrong.append(f"{path.relative_to(ROOT)}:{line}: {docstring.splitlines()[0]}")
    assert wrong == [], "\n".join(wrong)
