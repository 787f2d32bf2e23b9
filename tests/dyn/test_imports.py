"""The library imports jax, flax and numpy only, and the arrows between its rooms run one way."""

import ast
import sys
from pathlib import Path

import dyn

LIBRARY = Path(dyn.__file__).parent
# Libraries that a function imports when it is called.
OPTIONAL = {"interop": {"safetensors"}}
# The rooms above each room, which it must not import; other rooms are not restricted.
ABOVE = {
    "ops": ("layers", "nnx", "models", "schedules", "diagnostics", "interop"),
    "layers": ("nnx", "models", "schedules", "diagnostics", "interop"),
    "models": ("interop",),
}


def imported_by(path):
    """Yields the full names of all modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_file_imports_only_what_its_room_may():
    files = {path.relative_to(LIBRARY).as_posix(): path for path in LIBRARY.rglob("*.py")}
    assert {"ops/lowerings.py", "layers/od_conv.py", "models/resnet.py"} <= set(files)
    for name, path in files.items():
        room, modules = name.partition("/")[0], set(imported_by(path))
        libraries = {module.partition(".")[0] for module in modules}
        allowed = {"dyn", "jax", "numpy"} | ({"flax"} if room != "ops" else set())
        outside = libraries - sys.stdlib_module_names - allowed - OPTIONAL.get(room, set())
        assert not outside, f"dyn/{name} imports {outside}"
        for above in ABOVE.get(room, ()):
            arrows = [module for module in modules if module.startswith(f"dyn.{above}")]
            assert not arrows, f"dyn/{name} imports {arrows}"
