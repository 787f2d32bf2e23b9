"""Memory that a run does not have."""

import jax
import numpy as np
import pytest

from experiments.core import memory
from experiments.core.errors import UserError


def test_more_bytes_than_a_device_has_are_an_error(monkeypatch):
    monkeypatch.setattr(memory, "bytes_per_device", lambda: 1e9)
    memory.check_fits(1e9, "A step")
    with pytest.raises(UserError, match=r"A step takes 2\.0 GB .* which has 1\.0 GB: .*batch_size"):
        memory.check_fits(2e9, "A step")


def test_the_bytes_of_this_machine_are_known():
    assert 1e8 < memory.bytes_per_device() < 1e13
    assert memory.count_bytes_on_one_device({"x": jax.device_put(np.zeros(10, np.float32))}) == 40


def test_a_full_device_becomes_a_sentence():
    with pytest.raises(UserError, match=r"no memory left \(RESOURCE_EXHAUSTED.*accumulate"):
        with memory.explain_out_of_memory():
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 9 bytes.")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        with memory.explain_out_of_memory():
            raise jax.errors.JaxRuntimeError("INTERNAL: something else")
