"""Converts networks to ONNX by jax2onnx, and compares the result with onnxruntime."""

import contextlib
import importlib
import importlib.util
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from dyn.ops import platforms
from experiments.core.errors import UserError
from experiments.core.extras import format_install

BATCHES = (1, 3, 32)  # sizes that are compared
TOLERANCE = 1e-4  # of the largest output


def check_installed() -> None:
    """Raises a UserError that says what to install if ONNX files cannot be written and run here."""
    if missing := [p for p in ("jax2onnx", "onnxruntime") if importlib.util.find_spec(p) is None]:
        raise UserError(
            f"--format=onnx needs {' and '.join(missing)}, which cannot share an environment with the orbax "
            "of these experiments: export with --format=safetensors here, make another environment, "
            f"{format_install('onnx')}, and give this command the safetensors file there."
        )


def convert(
    function: Callable[[jax.Array], jax.Array], example: jax.ShapeDtypeStruct, batch_size: int = 0
) -> bytes:
    """Converts a function of batches, and compares its numbers with onnxruntime's.

    Args:
        function: maps a batch of examples to arrays `[B, ...]`.
        example: shape and dtype of one example, without B.
        batch_size: B; 0 for a file that takes batches of any size.

    Raises:
        UserError: if jax2onnx cannot convert the function, or the result gives other numbers.
    """
    onnxruntime, jax2onnx = map(importlib.import_module, ("onnxruntime", "jax2onnx"))
    batch = jax.ShapeDtypeStruct((batch_size or "B", *example.shape), example.dtype)
    jax.clear_caches()
    # Not for a CPU: its plans have loops, which gain nothing in ONNX.
    with platforms.plan_for_platform("onnx"), _allow_symbolic_padding():
        try:
            # jax2onnx wants a plain function.
            written = jax2onnx.to_onnx(lambda x: function(x), inputs=[batch]).SerializeToString()
            session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
        except Exception as error:  # Plugins raise errors of many types.
            raise UserError(
                f"jax2onnx cannot convert this network: {type(error).__name__}: {_get_first_line(error)}"
            ) from error
    # jax2onnx traces functions with primitives of its own, which no other program may find in the cache.
    jax.clear_caches()
    name = session.get_inputs()[0].name
    sizes = (batch_size,) if batch_size else BATCHES
    compare(lambda x: session.run(None, {name: x})[0], function, example, sizes)
    return written


@contextlib.contextmanager
def _allow_symbolic_padding() -> Iterator[None]:
    """Makes the `lax.pad` of jax2onnx accept a symbolic batch inside a `with` block.

    Version 0.17.1, the newest, passes JAX's symbolic size to `onnx_ir.Shape`, which accepts only its name.
    Nothing that the library offers reaches this line, so its module gets a `Shape` that converts.
    """
    plugin: Any = importlib.import_module("jax2onnx.plugins.jax.lax.pad")
    onnx_ir = plugin.ir

    def make_shape(sizes: Iterable[object]) -> Any:
        return onnx_ir.Shape([size if isinstance(size, int) else str(size) for size in sizes])

    plugin.ir = types.SimpleNamespace(**{**vars(onnx_ir), "Shape": make_shape})
    try:
        yield
    finally:
        plugin.ir = onnx_ir


def compare(
    run_converted: Callable[[np.ndarray], np.ndarray],
    function: Callable[[jax.Array], jax.Array],
    example: jax.ShapeDtypeStruct,
    sizes: Iterable[int] = BATCHES,
) -> None:
    """Raises a UserError if `run_converted` and `function` differ for batches of several sizes."""
    rng, compiled = np.random.default_rng(0), jax.jit(function)
    for size in sizes:
        shape = (size, *example.shape)
        is_picture = example.dtype == np.uint8
        inputs = rng.integers(0, 256, shape) if is_picture else rng.normal(size=shape)
        inputs = inputs.astype(example.dtype)
        want = np.asarray(compiled(inputs))
        try:
            got = run_converted(inputs)
        except Exception as error:  # onnxruntime raises errors of many types.
            raise UserError(
                f"onnxruntime cannot run a batch of {size}: {_get_first_line(error)}"
            ) from error
        difference = np.abs(got - want).max() if got.shape == want.shape else np.inf
        # Also true for NaN.
        if not difference <= TOLERANCE * max(1.0, np.abs(want).max()):
            raise UserError(
                f"The ONNX file gives other numbers for a batch of {size}: they differ by up to "
                f"{difference:.1e}. Nothing was written."
            )


def _get_first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
