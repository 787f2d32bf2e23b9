"""Each type of numbers of the safetensors format is read to the same numbers, or refused by its name."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from dyn.interop import read_weights

DTYPES = {
    "BOOL": bool,
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}


def write(path, arrays):
    """Writes names, types, shapes and bytes as the format's description says."""
    header, content = {}, b""
    for name, (dtype, shape, data) in arrays.items():
        offsets = [len(content), len(content) + len(data)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        content += data
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content)
    return path


@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_all_types(tmp_path, dtype):
    value = np.array([[1, 2], [0.5, 4]]).astype(jnp.dtype(DTYPES[dtype]))
    weights = read_weights(write(tmp_path / "net.bin", {"w": (dtype, [2, 2], value.tobytes())}))[
        "w"
    ]
    assert weights.dtype == value.dtype and weights.flags.writeable
    np.testing.assert_array_equal(weights.astype(complex), value.astype(complex))


@pytest.mark.parametrize(
    ("dtype", "size"), [("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6), ("C32", 32)]
)
def test_other_types_are_refused_by_name(tmp_path, dtype, size):
    path = write(tmp_path / "net.safetensors", {"w": (dtype, [8], bytes(size))})
    with pytest.raises(ValueError, match=rf"net\.safetensors .*{dtype}"):
        read_weights(path)


def test_keeps_the_files_order(tmp_path):
    names = [f"w{n}" for n in np.random.default_rng(0).permutation(20)]
    arrays = {name: ("U8", [1], bytes([n])) for n, name in enumerate(names)}
    weights = read_weights(write(tmp_path / "net.safetensors", arrays))
    assert list(weights) == names and [int(value[0]) for value in weights.values()] == list(
        range(20)
    )


def test_names_that_cannot_be_printed_are_refused(tmp_path):
    path = write(tmp_path / "net.safetensors", {"w\x1b[31m": ("U8", [1], b"1")})
    with pytest.raises(ValueError, match=r"w\\x1b"):
        read_weights(path)


def test_bytes_that_are_no_booleans_are_true(tmp_path):
    weights = read_weights(write(tmp_path / "net.safetensors", {"w": ("BOOL", [3], b"\0\2\1")}))[
        "w"
    ]
    assert weights.view(np.uint8).tolist() == [0, 1, 1]


def test_a_file_with_a_header_that_lies_is_not_read_into_memory(tmp_path):
    """A file that ends in a hole takes no room on a disk, but all of it in memory."""
    path = write(tmp_path / "net.safetensors", {"w": ("U8", [1], b"1")})
    with open(path, "r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"net\.safetensors cannot be read: it is damaged"):
        read_weights(path)
