"""Dynamic convolutions for JAX and Flax.

`dyn.from_pretrained` is `dyn.interop.from_pretrained`. The rooms, `dyn.layers` and others, are imported when
they are first used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_ROOMS = ("diagnostics", "interop", "layers", "models", "nnx", "ops", "schedules")


def __dir__() -> list[str]:
    """Lists what `dyn.` completes to, imported yet or not."""
    return sorted({*globals(), *_ROOMS, "from_pretrained"})


def __getattr__(name: str) -> Any:
    """Imports a room of the library at its first use: `import dyn` alone is quick."""
    if name in _ROOMS:
        return importlib.import_module(f"dyn.{name}")
    if name == "from_pretrained":
        return importlib.import_module("dyn.interop").from_pretrained
    raise AttributeError(f"module 'dyn' has no attribute {name!r}")
