"""What importing the library costs, and which way the arrows between its rooms run."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dyn

LIBRARY = Path(dyn.__file__).parent
FILES = sorted(LIBRARY.rglob("*.py"))

LOADED = """
import sys
import jax, numpy, flax.linen
before = {name.partition(".")[0] for name in sys.modules}
import dyn.layers, dyn.models, dyn.ops, dyn.schedules, dyn.diagnostics, dyn.interop
after = {name.partition(".")[0] for name in sys.modules}
print(*sorted(after - before))
print(*sorted(after))
"""


def test_importing_the_library_loads_nothing_beyond_jax_flax_and_numpy():
    """Compared with a process that has imported just those, which themselves load more than their own."""
    command = [sys.executable, "-c", LOADED]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=LIBRARY.parent, timeout=120
    )
    added, loaded = (set(line.split()) for line in result.stdout.splitlines())
    assert added - set(sys.stdlib_module_names) == {"dyn"}
    # The laboratory's: should flax ever load one of these, `added` would no longer notice us doing so.
    laboratory = {"experiments", "optax", "orbax", "grain", "matplotlib", "tensorflow_datasets"}
    assert not (laboratory | {"safetensors"}) & loaded


def imported_by(path):
    """Full names of all the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_a_file_imports_only_what_its_room_may(path):
    room = path.relative_to(LIBRARY).parts[0]
    modules = set(imported_by(path))
    outside = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    allowed = {"dyn", "jax", "numpy"} | (set() if room == "ops" else {"flax"})
    # Libraries that a function imports when it is called.
    optional = {"safetensors"} if room == "interop" else set()
    assert outside <= allowed | optional

    # experiments -> dyn.models -> dyn.layers -> dyn.ops
    above = {
        "ops": ("layers", "models", "schedules", "diagnostics", "interop"),
        "layers": ("models", "schedules", "diagnostics", "interop"),
        "models": ("interop",),
    }
    for name in above.get(room, ()):
        assert not any(module.startswith(f"dyn.{name}") for module in modules)


def test_there_are_files_to_look_at():
    names = {str(path.relative_to(LIBRARY)) for path in FILES}
    assert {"ops/lowerings.py", "layers/od_conv.py", "models/resnet.py", "schedules.py"} <= names
