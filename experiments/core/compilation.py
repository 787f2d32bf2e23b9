"""Options of the XLA compiler."""

from typing import Any

import jax


def quick_compile_options() -> dict[str, Any] | None:
    """Returns compiler options for a program that runs once; None for the defaults.

    On a CPU, what XLA would spend on a fast program is half a minute of waiting or more.
    """
    if jax.default_backend() != "cpu":
        return None
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
