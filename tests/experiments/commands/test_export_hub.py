"""Runs as folders for the Hugging Face hub: the library alone computes the run's numbers."""

import hashlib
import json
import sys
import types

import jax
import numpy as np
import pytest
from finished_runs import config_with, write_finished

import dyn
from experiments import export as command
from experiments.configs import birdsong_classifier
from experiments.core import cli
from experiments.core.errors import UserError
from experiments.inference import hub
from experiments.inference.export import export
from experiments.inference.trained import Trained
from experiments.load import load

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The network of a finished run of ODConv on digits, with what a summary has."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    conv = {"name": "odconv", "num_kernels": 2, "attention_norm": "layer"}
    config = config_with(conv=conv, name="odconv", **{"data.extra_train": "/home/me/digits"})
    with jax.numpy_dtype_promotion("standard"):
        write_finished(folder, config, "abc", (8, 8, 1))
        summary = json.loads((folder / "summary.json").read_text())
        facts = {"test": {"accuracy": 0.75, "loss": 0.5}, "parameters": 1234, "macs": 5678}
        facts |= {"seconds": 61.0, "steps": 40, "devices": ["cpu"], "metric": "accuracy"}
        facts |= {"examples": {"train": 1078}}
        (folder / "summary.json").write_text(json.dumps(summary | facts))
        return load(folder)


@pytest.fixture(scope="module")
def folder(trained):
    with jax.numpy_dtype_promotion("standard"):
        return export(trained, "hub", license="cc-by-4.0")


def test_the_library_alone_computes_the_same(trained, folder, rng):
    assert folder == trained.source / "export" / "hub"
    network, variables, preprocessing, classes, about = dyn.from_pretrained(folder)
    jax.tree.map(np.testing.assert_array_equal, dict(trained.variables), variables)
    assert classes == ("a", "b", "c") and about["task"] == "classification"
    pictures = [rng.integers(0, 256, shape, np.uint8) for shape in ((8, 8, 1), (20, 20, 1))]
    inputs = preprocessing(pictures)
    np.testing.assert_array_equal(inputs, [trained.prepare(p)["inputs"] for p in pictures])
    logits = jax.jit(network.apply)(variables, inputs)
    np.testing.assert_allclose(jax.nn.softmax(logits), trained(pictures), 1e-5, 1e-6)


def test_no_path_leaves_the_machine():
    config = birdsong_classifier.get_config("audio")
    own = ("source", "dir", "extra_train"), ("annotations", "splits", "noise_folder")
    for section, names in zip((config.data, config.audio), own, strict=True):
        section.update(dict.fromkeys(names, "/home/me"))
    config.init_from = "/home/me"
    assert "/home" in str(config) and "/home" not in str(hub.hide_private(config))


def test_the_card_says_what_is_known(folder):
    card, config = (folder / "README.md").read_text(), (folder / "config.json").read_text()
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert sha256 in card and sha256 in config
    for words in (
        *('license: "cc-by-4.0"', 'pipeline_tag: "image-classification"', "accuracy 0.75"),
        *("| seed | 0 |", "| parameters | 1,234 |", "| multiply-adds per input | 5,678 |"),
        *(
            "40 steps",
            "train 1,078",
            '"name": "odconv"',
            "Classes: a, b, c.",
            "| licence | cc-by-4.0 |",
        ),
    ):
        assert words in card, words
    for text in (card, config, str((folder / "model.safetensors").read_bytes())):
        assert "/home/me" not in text


def test_the_arrays_are_those_of_a_safetensors_export(trained, folder):
    back = load(folder / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, dict(trained.variables), dict(back.variables))
    assert back.config.data.extra_train == "" and back.classes == trained.classes
    # A card made of this file knows less.
    again = export(back, "hub", folder.parent / "again")
    card = (again / "README.md").read_text()
    assert "| test | not recorded |" in card and "| licence | not stated" in card


def test_a_folder_is_sent(trained, folder, tmp_path, monkeypatch, capsys):
    sent = []
    client = types.ModuleType("huggingface_hub")
    client.__spec__ = types.SimpleNamespace()
    client.create_repo = lambda repo_id, exist_ok: sent.append((repo_id, exist_ok))
    client.upload_folder = lambda **fields: sent.append(fields)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    out = tmp_path / "hub"
    words = ["export", str(trained.source), "--format=hub", f"--out={out}", "--push=me/net"]
    assert cli.run(command.main, words, command.__doc__) == 0
    assert sent[0] == ("me/net", True)
    assert (sent[1]["repo_id"], sent[1]["folder_path"]) == ("me/net", str(out))
    assert sorted(sent[1]["allow_patterns"]) == sorted(path.name for path in out.iterdir())
    assert "hf:me/net" in capsys.readouterr().out

    def refuse(**fields):
        raise OSError("401: log in first.")

    client.upload_folder = refuse
    with pytest.raises(UserError, match=r"me/net could not be sent: 401.*complete"):
        hub.push_folder(out, "me/net")


def test_mistakes_are_explained(trained, folder, monkeypatch):
    with pytest.raises(UserError, match="exists: choose another --out"):
        export(trained, "hub")
    with pytest.raises(UserError, match="--license"):
        export(trained, "stablehlo", license="mit")
    with pytest.raises(UserError, match="parameters as they were trained"):
        export(trained, "hub", fold_norms=True)
    with pytest.raises(UserError, match="write USER/NAME"):
        hub.check_push("me", "hub")
    with pytest.raises(UserError, match="write --format=hub"):
        hub.check_push("me/net", "onnx")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        hub.check_push("me/net", "hub")
    segmentation = Trained(config_with("voc2012,smoke"), ["a", "b"], (16, 16, 3), {})
    with pytest.raises(UserError, match="only classifiers"):
        hub.write_folder(segmentation, folder)
