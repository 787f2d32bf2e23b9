"""Thousands of damaged exports: each is read or refused in a sentence, within a second."""

import json
import struct

import numpy as np
import pytest
from finished_runs import config_with

from experiments.core.errors import UserError
from experiments.runs.weights import is_export, read_weights, write_weights
from tests.fuzz import EDGES, mutate, run_fuzz

pytestmark = pytest.mark.long

TOKENS = (
    *EDGES,
    *(
        b"params/",
        b"/",
        b"config",
        b"classes",
        b'\\"',
        b"null",
        b"[[",
        b"{}",
        b"1e999",
        b"\\u001b[31m",
    ),
    *(json.dumps(dtype).encode() for dtype in ("F32", "F4", "BF16", "F8_E4M3")),
)


def mutate_header(data, rng):
    (size,) = struct.unpack("<Q", data[:8])
    header = mutate(data[8 : 8 + size], rng, TOKENS)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def test_damaged_exports_are_read_or_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    metadata = {"config": config_with().to_dict(), "classes": ["a", "b"], "shape": [8, 8, 1]}
    write_weights(path, {"params": {"head": {"kernel": kernel}}}, metadata)

    def read():
        is_export(path)
        read_weights(path)

    outcomes = run_fuzz(path, read, UserError, 5_000, 18, mutate=mutate_header)
    assert outcomes.keys() == {"read", "UserError"}, outcomes
    np.testing.assert_array_equal(read_weights(path)[0]["params"]["head"]["kernel"], kernel)
