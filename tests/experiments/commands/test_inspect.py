import json
import re
from xml.etree import ElementTree

import jax
import numpy as np
import pytest
from finished_runs import config_with, write_finished

from dyn.diagnostics import count_macs, count_parameters
from experiments import inspect
from experiments.core import cli
from experiments.runs import artifacts

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def run(tmp_path):
    """A finished run on digits, with its maps."""
    folder = tmp_path / "<digits>"
    rng = np.random.default_rng(0)
    config = config_with(conv={"name": "odconv", "num_kernels": 2, "attention_norm": "layer"})
    net, variables = write_finished(folder, config, "abc", (8, 8, 1))
    artifacts.save_maps(
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
        "test": {"loss": 0.5, "accuracy": 0.875, "top5": 1.0},
        "parameters": count_parameters(variables["params"]),
        "macs": count_macs(net.apply, variables, inputs),
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_inspect(run, tmp_path, capsys):
    out = tmp_path / "page.html"
    words = ["inspect", str(run), f"--out={out}"]
    assert cli.run(inspect.main, words, inspect.__doc__) == 0
    assert str(out) in capsys.readouterr().out
    text = out.read_text(encoding="utf-8")
    images = re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,iVBOR', text)
    assert images[:3] == ["Cost of each layer", "Mixture of kernels", "Similarity of kernels"]
    assert len(images) == text.count("<img ")
    # Fails if tags do not match.
    page = ElementTree.fromstring(re.sub("<!doctype html>|<(meta|img)[^>]*>", "", text, flags=re.I))
    texts = set(page.itertext())
    assert {"stage1_block1/conv1", "stage2_block1/conv2", "head"} <= texts
    assert {"odconv on a & b", "test accuracy, %", "87.50"} <= texts and "<digits>" not in text
    (subtitle,) = [text for text in texts if str(run) in text]
    assert "config odconv, seed 0, finished 20" in subtitle
    assert "conv.num_kernels" in texts and "top-5" not in text  # of three classes
    assert not any("gate" in text for text in texts)
    assert cli.run(inspect.main, [*words[:2], f"--out={tmp_path}"], inspect.__doc__) == 2
    assert "is a folder" in capsys.readouterr().err
    settings = (run / "config.json").read_bytes()
    words[-1] = f"--out={run / 'config.json'}"
    assert cli.run(inspect.main, words, inspect.__doc__) == 2
    assert "has not written it" in capsys.readouterr().err
    assert (run / "config.json").read_bytes() == settings
