"""The page of what is inside a finished run's network."""

import html.parser
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from finished_runs import config_with, write_finished

from dyn.diagnostics import Cost, count_macs, count_parameters
from dyn.models import Autoencoder
from experiments.core.errors import UserError
from experiments.inspect import inspect
from experiments.load import load
from experiments.reports.inspection import Layer, Mixture, findings, layers_of, mixtures_of
from experiments.runs import artifacts as maps

pytestmark = pytest.mark.usefixtures("standard_promotion")

WAYS = ("encoder", "encoder", "decoder", "decoder")
ODCONV = {"conv": {"name": "odconv", "num_kernels": 2, "attention_norm": "layer"}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on digits, with its maps."""
    folder = tmp_path_factory.mktemp("runs") / "<digits>"
    rng = np.random.default_rng(0)
    with jax.numpy_dtype_promotion("standard"):
        net, variables = write_finished(folder, config_with(**ODCONV), "abc", (8, 8, 1))
        maps.save_maps(
            folder / "maps.npz",
            net,
            variables,
            lambda index: {"inputs": rng.normal(size=(8, 8, 1)).astype(np.float32)},
            np.arange(9) % 3,
            "abc",
        )
    inputs = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    summary = {
        **json.loads((folder / "summary.json").read_text()),
        "config": "odconv",
        "dataset": "a & b",
        "test": {"loss": 0.5, "accuracy": 0.875},
        "parameters": count_parameters(variables["params"]),
        "macs": count_macs(net.apply, variables, inputs),
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.pictures = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.pictures.append(dict(attributes))
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_a_page_shows_costs_mixtures_and_what_the_network_looks_at(run):
    text = inspect(run).read_text(encoding="utf-8")
    page = Page(text)
    shown = [picture["alt"] for picture in page.pictures]
    assert shown[:3] == [
        "What each layer costs",
        "How kernels are mixed",
        "How alike the kernels are",
    ]
    assert all(p["src"].startswith("data:image/png;base64,iVBOR") for p in page.pictures)
    assert {"stage1_block1/conv1", "stage2_block1/conv2", "head"} <= set(page.words)
    assert {str(run), "odconv on a & b", "87.50"} <= set(page.words) and "<digits>" not in text
    assert any("kernels" in sentence for sentence in page.words)


def test_the_command_writes_where_it_is_told_and_refuses_in_a_sentence(run, tmp_path):
    command = [sys.executable, "-m", "experiments.inspect"]
    out = tmp_path / "page.html"
    done = subprocess.run([*command, str(run), f"--out={out}"], capture_output=True, text=True)
    assert done.returncode == 0 and str(out) in done.stdout and out.exists(), done.stderr
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: Which run?")
    assert done.stderr.count("\n") == 1
    with pytest.raises(UserError, match="is a folder"):
        inspect(run, tmp_path)


def test_the_layers_have_all_of_the_model_s_multiply_adds(run):
    trained = load(run)
    example = jax.ShapeDtypeStruct((1, *trained.shape), np.float32)
    layers = layers_of(trained.model, trained.variables, example)
    summary = json.loads((run / "summary.json").read_text())
    assert sum(layer.cost.macs for layer in layers) == summary["macs"]
    names = [layer.name for layer in layers]
    assert names[0] == "stem_conv" and names[-1] == "head" and len(set(names)) == len(names)
    for layer in layers:
        dynamic = "/conv" in layer.name
        assert (layer.attention.macs > 0) == dynamic
        assert layer.attention.parameters < layer.cost.parameters


@pytest.mark.parametrize("pooling", ["implicit", "explicit"])
def test_layers_behind_other_methods_than_the_call_are_found(pooling):
    net = Autoencoder(widths=(4, 3), pooling=pooling)
    example = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), example)
    layers = layers_of(net, variables, example)
    names = [layer.name for layer in layers]
    assert names == [f"{way}/conv{level}" for way, level in zip(WAYS, (1, 2, 2, 1), strict=True)]
    assert sum(layer.cost.macs for layer in layers) == count_macs(net.apply, variables, example)


def mixture(name, spread=1.0, dead=(False, False), alike=0.1):
    similarity = np.array([[1, alike], [alike, 1]])
    return Mixture(name, np.array([0.5, 0.5]), 0.9, spread, np.array(dead), similarity)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (mixture("b", spread=0.001), "1 of 2 layers mix the same for every example"),
        (mixture("b", dead=(True, False)), "1 of 4 kernels are never used: b (1)."),
        (mixture("b", alike=0.99), "In 1 of 2 layers two kernels hardly differ"),
        (mixture("b"), "In no layer are two kernels nearly the same."),
    ],
)
def test_what_is_remarkable_is_said(found, sentence):
    layers = [Layer("a", Cost(10, 100, (1, 2)), Cost(0, 0, ()))]
    said = findings(layers, [mixture("a"), found], Cost(20, 200, (1, 2)))
    assert any(one.startswith(sentence) for one in said)
    assert said[0].startswith("a has the most multiply-adds, 50% of all")
    assert findings(layers, [], Cost(20, 200, (1, 2)))[-1] == "No layer mixes kernels."


def test_mixtures_of_one_kernel_or_of_kernels_that_are_no_parameters_are_not_compared():
    statistics = {"mean": [0.5, 0.5], "entropy": 1.0, "spread": 0.1, "dead": [False, False]}
    kernels = np.stack([np.ones((3, 3, 1, 2)), -np.ones((3, 3, 1, 2))])
    params = {"a": {"kernel": kernels}, "b": {"spectrum": kernels}}
    one = {**statistics, "mean": [1.0], "dead": [False]}
    first, second = mixtures_of({"a": statistics, "b": statistics, "c": one}, params)
    assert first.most_alike == pytest.approx(-1) and first.spread == pytest.approx(0.2)
    assert second.similarity is None and second.most_alike is None


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        inspect(tmp_path)
