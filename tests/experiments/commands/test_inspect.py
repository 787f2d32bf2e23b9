import html.parser
import json

import jax
import numpy as np
import pytest
from finished_runs import config_with, write_finished

from dyn.diagnostics import count_macs, count_parameters
from experiments import inspect
from experiments.core import cli
from experiments.core.errors import UserError
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
        "test": {"loss": 0.5, "accuracy": 0.875},
        "parameters": count_parameters(variables["params"]),
        "macs": count_macs(net.apply, variables, inputs),
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


class Page(html.parser.HTMLParser):
    """Collects texts and images, and fails if tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.images = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes))
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_inspect(run, tmp_path, capsys):
    out = tmp_path / "page.html"
    words = ["inspect", str(run), f"--out={out}"]
    assert cli.run(inspect.main, words, inspect.__doc__) == 0
    assert str(out) in capsys.readouterr().out
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    titles = [image["alt"] for image in page.images]
    assert titles[:3] == ["Cost of each layer", "Mixture of kernels", "Similarity of kernels"]
    assert all(image["src"].startswith("data:image/png;base64,iVBOR") for image in page.images)
    assert {"stage1_block1/conv1", "stage2_block1/conv2", "head"} <= set(page.texts)
    assert {str(run), "odconv on a & b", "87.50"} <= set(page.texts) and "<digits>" not in text
    with pytest.raises(UserError, match="is a folder"):
        inspect.inspect(run, tmp_path)


def test_mistakes(tmp_path, capsys):
    assert cli.run(inspect.main, ["inspect"], inspect.__doc__) == 2
    assert cli.run(inspect.main, ["inspect", str(tmp_path)], inspect.__doc__) == 2
    assert "no finished run" in capsys.readouterr().err
