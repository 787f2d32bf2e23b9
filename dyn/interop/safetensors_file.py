"""Reads files of safetensors: all types of numbers that JAX has; the others are refused by name."""

import json
import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from dyn.interop.array_names import check_names, shorten

_DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E4M3FNUZ": jnp.float8_e4m3fnuz,
    "F8_E5M2": jnp.float8_e5m2,
    "F8_E5M2FNUZ": jnp.float8_e5m2fnuz,
    "F8_E8M0": jnp.float8_e8m0fnu,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
    "C64": np.complex64,
}


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Returns whether a file begins as safetensors do: with the size of a header that opens a bracket."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the arrays of a file, by name and in the file's order.

    Raises:
        ValueError: if the file is damaged, or has numbers of fewer than eight bits.
        ImportError: if the library safetensors is not installed.
        OSError: if the file cannot be opened.
    """
    try:
        from safetensors import SafetensorError, deserialize, safe_open
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs the library safetensors: pip install safetensors."
        ) from error
    try:
        with safe_open(path, "numpy"):  # checks the header against the size of the file
            pass
        with open(path, "rb") as file:
            content = file.read()
        entries = deserialize(content)
    except SafetensorError as error:
        raise ValueError(
            f"it is damaged, or has a type of numbers that safetensors does not know: {str(error)[:300]}."
        ) from error
    check_names(name for name, _ in entries)
    offsets = _read_offsets(content)
    arrays = {}
    for name, entry in sorted(entries, key=lambda item: offsets[item[0]]):
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise ValueError(
                f"{shorten(name)} has numbers of the type {entry['dtype']}, which NumPy and "
                "JAX do not store. Convert them to BF16 or F32."
            )
        arrays[name] = _to_array(entry["data"], dtype, entry["shape"])
    return arrays


def _read_offsets(content: bytes) -> dict[str, list[int]]:
    """Returns the place of each array; the library, which has checked the header, shuffles them."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    return {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}


def _to_array(data: bytes | bytearray, dtype: Any, shape: list[int]) -> np.ndarray:
    if dtype is np.bool_:  # a byte that is neither 0 nor 1 would be no Boolean
        return (np.frombuffer(data, np.uint8) != 0).reshape(shape)
    # A copy where the library returns bytes, which cannot be written to.
    return np.require(np.frombuffer(data, dtype), requirements="W").reshape(shape)
