"""Thousands of damaged files of weights: each is read or refused in a sentence, within a second."""

import io
import json
import struct
import zipfile

import numpy as np
import pytest
import torch_zip
from safetensors.numpy import save_file

from dyn.interop import read_weights
from tests.fuzz import EDGES, mutate, run_fuzz

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore:invalid escape sequence"),  # of a text instruction
]

SEED = 18
WEIGHTS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "conv.bias": np.ones(2, np.float32),
    "fc.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
}
# Instructions, references, names, and numbers at the edges of their types.
PICKLE_TOKENS = (
    *(
        bytes([code])
        for code in b"().0125BCFGIJKLMNQPRSTUVX]aebcdgh\x80ijlopqrstu}\x81\x82\x85\x86\x87"
    ),
    *(b"\x88", b"\x89", b"\x8a", b"\x8b", b"\x8c", b"\x8d", b"\x93", b"\x94", b"\x95"),
    *(
        b"h\0",
        b"q\0",
        b"h\1",
        b"q\1",
        b"h\2\x86",
        b"J\xff\xff\xff\x7f",
        b"J\0\0\0\x80",
        b"K\0",
        b"K\1",
    ),
    *(
        b"\x8a\x08" + 8 * b"\xff",
        b"\x8a\x09" + 8 * b"\xff" + b"\0",
        b"X\xff\xff\xff\xff",
        b"]q\0h\0a",
    ),
    *(b"ctorch\nFloatStorage\n", b"ctorch\nload\n", b"cposix\nsystem\n", b"ctorch\nSize\n"),
    *(torch_zip.EMPTY, torch_zip.text("storage"), torch_zip.text("model"), b"N", b"(((("),
)
JSON_TOKENS = (
    *(json.dumps(name).encode() for name in ("F32", "F4", "BF16", "I64", "C64", "fc.weight", "")),
    *(
        b"-1",
        b"0",
        b"1",
        b"18446744073709551615",
        b"1e999",
        b"[",
        b"]",
        b"{",
        b"}",
        b":",
        b",",
        b"null",
    ),
    *(
        b'"',
        b"\\",
        b"[0,0]",
        b'"shape"',
        b'"dtype"',
        b'"data_offsets"',
        b'"__metadata__":{"a":"b"},',
    ),
    *(b"[" * 200, b"\x1b[31m", b"\\u0000", b"\\ud800"),
)


def mutate_header(data, rng):
    """Damages the header of safetensors and puts its size right, or damages any bytes."""
    if rng.random() < 0.3:
        return mutate(data, rng)
    (size,) = struct.unpack("<Q", data[:8])
    header = mutate(data[8 : 8 + size], rng, JSON_TOKENS)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def mutate_archive(data, rng):
    """Damages the pickle in an archive, which gets new checksums, or damages any bytes."""
    if rng.random() < 0.3:
        return mutate(data, rng)
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as whole, zipfile.ZipFile(target, "w") as changed:
        for name in whole.namelist():
            content = whole.read(name)
            if name.endswith("data.pkl"):
                content = mutate(content, rng, PICKLE_TOKENS)
            changed.writestr(name, content)
    return target.getvalue()


def mutate_legacy(data, rng):
    return mutate(data, rng, PICKLE_TOKENS if rng.random() < 0.8 else EDGES)


@pytest.mark.parametrize(
    ("save", "damage"),
    [
        (lambda path: save_file(WEIGHTS, path), mutate_header),
        (lambda path: torch_zip.save(path, WEIGHTS), mutate_archive),
        (lambda path: torch_zip.save_legacy(path, WEIGHTS), mutate_legacy),
    ],
    ids=["safetensors", "torch", "torch before 1.6"],
)
def test_damaged_files_are_read_or_refused(tmp_path, save, damage):
    path = tmp_path / "net.pth"
    save(path)

    def read():
        for value in read_weights(path).values():
            assert isinstance(value, np.ndarray)
            value.sum()  # looks at all the numbers, wherever they are

    outcomes = run_fuzz(path, read, ValueError, 10_000, SEED, mutate=damage)
    assert outcomes.keys() == {"read", "ValueError"}, outcomes
    for name, value in read_weights(path).items():
        np.testing.assert_array_equal(value, WEIGHTS[name])
