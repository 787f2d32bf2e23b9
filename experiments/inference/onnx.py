"""A network as ONNX, by jax2onnx, and whether onnxruntime finds the same numbers in it."""

import contextlib
import importlib
import importlib.util
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from dyn.ops import planner
from experiments.core.errors import UserError

BATCHES = (1, 3, 32)  # that are compared
TOLERANCE = 1e-4  # of the largest output


def check_installed() -> None:
    """Returns if ONNX can be written and run here.

    Raises:
        UserError: says what to install if not.
    """
    if missing := [p for p in ("jax2onnx", "onnxruntime") if importlib.util.find_spec(p) is None]:
        raise UserError(
            f"--format=onnx needs {' and '.join(missing)}, which cannot be in one environment with the "
            "laboratory's orbax: make another, there `pip install -e '.[onnx]'`, and give this command the "
            "file that --format=safetensors has written here."
        )


def convert(function: Callable[[jax.Array], jax.Array], example: jax.ShapeDtypeStruct) -> bytes:
    """Converts a function of a batch, of any size, and compares its numbers with onnxruntime's.

    Args:
        function: of an array `[B, ...]` to one.
        example: shape and dtype of one example, without B.

    Raises:
        UserError: if jax2onnx cannot do it, or what it does gives other numbers.
    """
    onnxruntime, jax2onnx = map(importlib.import_module, ("onnxruntime", "jax2onnx"))
    batch = jax.ShapeDtypeStruct(("B", *example.shape), example.dtype)
    # ONNX has loops, but nothing gains by them here.
    with planner.plan_for_platform("tpu"), _padding_of_any_batch():
        try:
            written = jax2onnx.to_onnx(lambda x: function(x), inputs=[batch]).SerializeToString()
            session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
        except Exception as error:  # whatever a plugin has thought of
            lines = str(error).splitlines() or [""]
            raise UserError(
                f"jax2onnx cannot convert this network: {type(error).__name__}: {lines[0]}"
            ) from error
    compare(lambda x: session.run(None, {session.get_inputs()[0].name: x})[0], function, example)
    return written


@contextlib.contextmanager
def _padding_of_any_batch() -> Iterator[None]:
    """Mends jax2onnx for the time of a `with`: of `lax.pad` it takes no symbolic batch.

    Version 0.17.1 hands JAX's symbolic size to onnx-ir, which asks it for a number; the converters of
    other operations hand its name.
    """
    plugin = importlib.import_module("jax2onnx.plugins.jax.lax.pad")
    before = getattr(plugin, "ir", None)
    if before is None:  # another version, which may need no mending
        yield
        return

    def named(dims: Iterable[object]) -> Any:
        return before.Shape([d if isinstance(d, int) else str(d) for d in dims])

    plugin.ir = types.SimpleNamespace(**{**vars(before), "Shape": named})
    try:
        yield
    finally:
        plugin.ir = before


def compare(
    got: Callable[[np.ndarray], np.ndarray],
    function: Callable[[jax.Array], jax.Array],
    example: jax.ShapeDtypeStruct,
) -> None:
    """Returns if `got` gives the numbers of `function` for batches of several sizes.

    Raises:
        UserError: says how far they are apart.
    """
    rng, compiled = np.random.default_rng(0), jax.jit(function)
    for size in BATCHES:
        shape = (size, *example.shape)
        inputs = (
            rng.integers(0, 256, shape) if example.dtype == np.uint8 else rng.normal(size=shape)
        )
        inputs = inputs.astype(example.dtype)
        want = np.asarray(compiled(inputs))
        try:
            found = got(inputs)
        except Exception as error:  # whatever onnxruntime has thought of
            lines = str(error).splitlines() or [""]
            raise UserError(f"onnxruntime cannot run a batch of {size}: {lines[0]}") from error
        apart = np.abs(found - want).max() if found.shape == want.shape else np.inf
        if not apart <= TOLERANCE * max(1.0, np.abs(want).max()):
            raise UserError(
                f"The ONNX file would give other numbers for a batch of {size}: they are up to {apart:.1e} "
                "apart. Nothing was written."
            )
