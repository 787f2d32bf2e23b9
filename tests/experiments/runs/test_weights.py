"""Files of exported weights keep all types of numbers; those that are no networks are one sentence."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from finished_runs import config_with
from safetensors.numpy import save_file

from experiments.core.errors import UserError
from experiments.core.files import to_json
from experiments.runs.weights import is_export, read_weights, write_weights


def write(path, arrays):
    config = config_with()

    metadata = {
        "config": json.dumps(to_json(config.to_dict())),
        "classes": '["a", "b"]',
        "shape": "[8, 8, 1]",
    }
    save_file(arrays, path, metadata)
    return path


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "int32", "float8_e4m3fn"])
def test_numbers_of_all_types_are_read_as_written(tmp_path, dtype):
    kernel = np.arange(6).reshape(2, 3).astype(jnp.dtype(dtype))
    path = tmp_path / "net.safetensors"
    metadata = {"config": config_with().to_dict(), "classes": ["a", "b"], "shape": [8, 8, 1]}
    write_weights(path, {"params": {"head": {"kernel": kernel}}}, metadata)
    variables, read = read_weights(path)
    assert is_export(path) and read["classes"] == ["a", "b"]
    assert variables["params"]["head"]["kernel"].dtype == kernel.dtype
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], kernel)


def test_arrays_that_are_no_tree_are_one_sentence(tmp_path):
    ones = np.ones(2, np.float32)
    for arrays, message in (
        ({"params/head": ones, "params/head/kernel": ones}, "params/head is an array and has"),
        ({"params/" + 200 * "a/": ones}, "more than 100"),
        ({"params/\x1b[31m": ones}, "cannot be printed"),
    ):
        with pytest.raises(UserError, match=rf"net\.safetensors cannot be read: .*{message}"):
            read_weights(write(tmp_path / "net.safetensors", arrays))
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(tmp_path)
    assert not is_export(tmp_path)
