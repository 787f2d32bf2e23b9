"""Finished runs as files: the same numbers come out elsewhere, and come back here."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from finished_runs import config_with, write_finished

from experiments.core.errors import UserError
from experiments.export import description, example_of, export, network
from experiments.inference import onnx as onnx_files
from experiments.inference.trained import Trained
from experiments.load import load

pytestmark = pytest.mark.usefixtures("standard_promotion")

ELSEWHERE = """
import sys
import jax, numpy as np
from jax import export

folder = sys.argv[1]
model = export.deserialize(bytearray(open(f"{folder}/model.stablehlo", "rb").read()))
pictures = np.load(f"{folder}/pictures.npy")
for batch in (1, 3, 32):
    np.save(f"{folder}/{batch}.npy", model.call(pictures[:batch]))
assert model.platforms == ("cpu", "cuda", "tpu")
assert not {"flax", "dyn", "experiments"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of ODConv on digits."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    conv = {"name": "odconv", "num_kernels": 2, "attention_norm": "batch"}
    with jax.numpy_dtype_promotion("standard"):
        write_finished(folder, config_with(conv=conv), "abc", (8, 8, 1))
    return folder


def test_another_program_with_jax_alone_has_the_same_numbers_for_any_batch(run, tmp_path, rng):
    pictures = rng.integers(0, 256, (32, 8, 8, 1), np.uint8)
    np.save(tmp_path / "pictures.npy", pictures)
    path = export(run, "stablehlo", tmp_path / "model.stablehlo")

    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path)]
    subprocess.run(command, check=True, timeout=180, cwd=tmp_path)

    expected = load(run)(pictures)
    for batch in (1, 3, 32):
        logits = np.load(tmp_path / f"{batch}.npy")
        np.testing.assert_allclose(
            jax.nn.softmax(logits), expected[:batch], rtol=1e-5, atol=1e-5, err_msg=str(batch)
        )
    said = json.loads(path.with_name("model.stablehlo.json").read_text())
    assert said["inputs"]["shape"] == ["batch", 8, 8, 1] and said["inputs"]["dtype"] == "uint8"
    assert said["inputs"]["normalisation"] == {"within": True, "mean": [0.5], "std": [0.25]}
    assert said["outputs"]["shape"] == ["batch", 3] and said["classes"] == ["a", "b", "c"]
    assert said["platforms"] == ["cpu", "cuda", "tpu"]


@pytest.mark.parametrize(
    ("task", "outputs", "values"),
    [
        ("classification", ["batch", 2], "softmax"),
        ("tagging", ["batch", 2], "a sigmoid of each"),
        ("reconstruction", ["batch", 16, 16, 3], "0 to 1: the picture as it comes back"),
    ],
)
def test_what_comes_out_and_what_a_spectrogram_is_are_described(task, outputs, values):
    config = config_with("songs", task=task, **{"audio.colour": "magma"})
    said = description(Trained(config, ["a", "b"], (16, 16, 3), {}))
    assert said["outputs"]["shape"] == outputs and values in said["outputs"]["values"]
    assert (
        said["inputs"]["audio"]["colour"] == "magma" and "as `audio` says" in said["inputs"]["size"]
    )


def test_parameters_go_out_by_name_and_come_back_as_the_same_network(run, rng):
    from safetensors import safe_open

    path = export(run, "safetensors")
    assert path == run / "export" / "model.safetensors"
    with safe_open(path, "numpy") as file:
        names, about = set(file.keys()), file.metadata()
    assert {"params/stem_conv/kernel", "params/head/bias"} <= names
    assert {name.partition("/")[0] for name in names} == {"params", "batch_stats", "attention"}
    assert json.loads(about["config"])["conv"]["name"] == "odconv"
    assert "jax" in json.loads(about["versions"])

    there, back = load(run), load(path)
    jax.tree.map(np.testing.assert_array_equal, dict(there.variables), dict(back.variables))
    assert jax.tree.map(np.shape, there.variables) == jax.tree.map(np.shape, back.variables)
    assert back.config.to_dict() == there.config.to_dict()
    pictures = rng.integers(0, 256, (5, 8, 8, 1), np.uint8)
    np.testing.assert_allclose(back(pictures), there(pictures), rtol=1e-6)


@pytest.mark.parametrize(
    ("form", "options", "says"),
    [
        ("torch", {}, "--format=torch: choose one of stablehlo, safetensors, onnx"),
        ("stablehlo", {"platforms": ["gpu"]}, "there is no 'gpu'; "),
        ("safetensors", {"out": "there"}, "there is there already: .* give --overwrite"),
    ],
)
def test_what_cannot_go_out_is_said(run, tmp_path, monkeypatch, form, options, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_text("mine")
    with pytest.raises(UserError, match=says):
        export(run, form, **options)
    assert (tmp_path / "there").read_text() == "mine"


def test_a_file_of_other_parameters_is_answered(tmp_path):
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no metadata"):
        load(tmp_path / "other.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"12345678")
    with pytest.raises(UserError, match=r"torn\.safetensors cannot be read"):
        load(tmp_path / "torn.safetensors")


def test_numbers_that_differ_are_no_conversion(run):
    trained = load(run)
    function, example = network(trained), example_of(trained)
    compiled = jax.jit(function)
    onnx_files.compare(lambda x: np.asarray(compiled(x)), function, example)
    with pytest.raises(UserError, match="other numbers for a batch of 3"):
        onnx_files.compare(lambda x: np.asarray(compiled(x)) + (len(x) == 3), function, example)


def test_where_jax2onnx_is_missing_the_answer_says_where_to_put_it(run, monkeypatch):
    monkeypatch.setattr(onnx_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs jax2onnx and onnxruntime, .*pip install"):
        export(run, "onnx")


def test_a_dynamic_network_goes_out_as_onnx_with_the_same_numbers(run, tmp_path):
    pytest.importorskip("jax2onnx")
    path = export(run, "onnx", tmp_path / "model.onnx")
    assert path.stat().st_size > 10_000


def test_what_jax2onnx_cannot_do_is_said_in_one_sentence(tmp_path):
    pytest.importorskip("jax2onnx")
    write_finished(tmp_path, config_with(conv={"name": "fdconv"}), "abc", (8, 8, 1))
    with pytest.raises(UserError, match="jax2onnx cannot convert this network: NotImplemented"):
        export(tmp_path, "onnx")
