"""Exporting networks: files that give the same numbers."""

import json

import jax
import numpy as np
import pytest
from finished_runs import config_with, write_finished

from experiments import export as command
from experiments.core import cli
from experiments.core.errors import UserError
from experiments.inference import onnx
from experiments.inference.export import (
    describe_export,
    export,
    make_example_struct,
    make_logits_fn,
)
from experiments.inference.trained import Trained
from experiments.load import load

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The network of a finished run of ODConv on digits."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    conv = {"name": "odconv", "num_kernels": 2, "attention_norm": "layer"}
    with jax.numpy_dtype_promotion("standard"):
        write_finished(folder, config_with(conv=conv), "abc", (8, 8, 1))
        return load(folder)


def test_stablehlo_gives_the_same_numbers_for_any_batch(trained, tmp_path, rng):
    pictures, path = rng.integers(0, 256, (5, 8, 8, 1), np.uint8), tmp_path / "model.stablehlo"
    words = ["export", str(trained.source), "--format=stablehlo", f"--out={path}"]
    assert cli.run(command.main, words, command.__doc__) == 0

    model = jax.export.deserialize(bytearray(path.read_bytes()))
    assert model.platforms == ("cpu", "cuda", "tpu")
    assert jax.export.is_symbolic_dim(model.in_avals[0].shape[0])
    np.testing.assert_allclose(jax.nn.softmax(model.call(pictures)), trained(pictures), 1e-5, 1e-5)
    about = json.loads(path.with_name("model.stablehlo.json").read_text())
    assert about["inputs"]["shape"] == ["batch", 8, 8, 1] and about["inputs"]["dtype"] == "uint8"
    assert about["inputs"]["normalisation"] == {"within": True, "mean": [0.5], "std": [0.25]}
    assert about["outputs"]["shape"] == ["batch", 3] and about["classes"] == ["a", "b", "c"]
    assert about["platforms"] == ["cpu", "cuda", "tpu"]


@pytest.mark.matrix
def test_folded_norms_leave_the_numbers_as_they_are(trained, tmp_path, rng):
    pictures, path = rng.integers(0, 256, (2, 8, 8, 1), np.uint8), tmp_path / "model.stablehlo"
    export(trained, "stablehlo", path, platforms=["cpu"], fold_norms=True)
    model = jax.export.deserialize(bytearray(path.read_bytes()))
    np.testing.assert_allclose(
        model.call(pictures), make_logits_fn(trained)(pictures), rtol=1e-5, atol=1e-4
    )
    assert json.loads(path.with_name("model.stablehlo.json").read_text())["folded_norms"]


def test_safetensors_come_back_as_the_same_network(trained):
    from safetensors import safe_open

    path = export(trained, "safetensors")
    assert path == trained.source / "export" / "model.safetensors"
    with safe_open(path, "numpy") as file:
        names, about = set(file.keys()), file.metadata()
    assert {"params/stem_conv/kernel", "params/head/bias"} <= names
    assert {name.partition("/")[0] for name in names} == {"params", "batch_stats", "attention"}
    assert json.loads(about["config"])["conv"]["name"] == "odconv"
    assert "jax" in json.loads(about["versions"])

    back = load(path)
    jax.tree.map(np.testing.assert_array_equal, dict(trained.variables), dict(back.variables))
    assert back.config.to_dict() == trained.config.to_dict()
    assert (back.classes, back.shape) == (trained.classes, trained.shape)


@pytest.mark.parametrize(
    ("task", "outputs", "values"),
    [
        ("classification", ["batch", 2], "softmax"),
        ("tagging", ["batch", 2], "sigmoid"),
        ("reconstruction", ["batch", 16, 16, 3], "reconstructed picture"),
    ],
)
def test_outputs_and_spectrograms_are_described(task, outputs, values):
    config = config_with("songs", task=task, **{"audio.colour": "magma"})
    about = describe_export(Trained(config, ["a", "b"], (16, 16, 3), {}))
    assert about["outputs"]["shape"] == outputs and values in about["outputs"]["values"]
    assert about["inputs"]["audio"]["colour"] == "magma" and "audio" in about["inputs"]["size"]


@pytest.mark.parametrize(
    ("file_format", "options", "message"),
    [
        ("torch", {}, "--format=torch"),
        ("stablehlo", {"platforms": ["gpu"]}, "no 'gpu'"),
        ("safetensors", {"platforms": ["tpu"]}, "safetensors is for any of them"),
        ("stablehlo", {"batch": 1}, "only --format=onnx has a fixed batch"),
        ("onnx", {"batch": -1}, "of 1 or more"),
        ("safetensors", {"fold_norms": True}, "parameters as they were trained"),
        ("safetensors", {"out": "there"}, "there exists.*--overwrite"),
    ],
)
def test_mistakes_are_explained(trained, tmp_path, monkeypatch, file_format, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_text("mine")
    with pytest.raises(UserError, match=message):
        export(trained, file_format, **options)
    assert (tmp_path / "there").read_text() == "mine"


def test_a_missing_jax2onnx_is_named(trained, monkeypatch):
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs jax2onnx and onnxruntime"):
        export(trained, "onnx")


def test_other_numbers_than_the_network_s_are_refused(trained):
    example = make_example_struct(trained)
    function = jax.jit(lambda x: x.astype(np.float32).mean((1, 2)))
    onnx.compare(lambda x: np.asarray(function(x)), function, example)
    with pytest.raises(UserError, match="other numbers for a batch of 3"):
        onnx.compare(lambda x: np.asarray(function(x)) + (len(x) == 3), function, example)


def test_a_dynamic_network_becomes_onnx(trained, tmp_path):
    pytest.importorskip("jax2onnx")
    path = export(trained, "onnx", tmp_path / "model.onnx")
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize("fold_norms", [False, True])
def test_an_onnx_file_of_one_batch_size(trained, tmp_path, rng, fold_norms):
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = export(trained, "onnx", tmp_path / "one.onnx", batch=2, fold_norms=fold_norms)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (inputs,) = session.get_inputs()
    assert inputs.shape == [2, 8, 8, 1]
    pictures = rng.integers(0, 256, (2, 8, 8, 1), np.uint8)
    (logits,) = session.run(None, {inputs.name: pictures})
    np.testing.assert_allclose(logits, make_logits_fn(trained)(pictures), rtol=1e-4, atol=1e-4)
    about = json.loads(path.with_name("one.onnx.json").read_text())
    assert about["inputs"]["shape"] == [2, 8, 8, 1] and about["outputs"]["shape"] == [2, 3]


def test_a_network_of_fourier_weights_becomes_onnx(tmp_path):
    pytest.importorskip("jax2onnx")
    conv = {"name": "fdconv", "min_features": 0}
    write_finished(tmp_path / "run", config_with(conv=conv), "abc", (8, 8, 1))
    path = export(load(tmp_path / "run"), "onnx", tmp_path / "model.onnx")
    assert path.stat().st_size > 10_000


def test_a_function_that_jax2onnx_cannot_convert_is_refused():
    pytest.importorskip("jax2onnx")
    with pytest.raises(UserError, match="jax2onnx cannot convert this network: "):
        onnx.convert(lambda x: jax.numpy.fft.fft(x).real, jax.ShapeDtypeStruct((8,), np.float32))
