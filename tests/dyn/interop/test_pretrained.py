"""Pretrained networks: folders, the hub's cache, files of other libraries, other ends, and damage."""

import json
import os
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import filled, random_input, shapes_of

import dyn
from dyn.interop import from_pretrained, save_pretrained
from dyn.interop.pretrained import make_pretrained_files
from dyn.models import Preprocessing, create_model

NETWORK = {
    "name": "resnet18",
    "num_classes": 3,
    "width": 4,
    "stage_sizes": [1],
    "stem": "small",
    "conv": {"name": "odconv", "num_kernels": 2, "attention_norm": "layer"},
}
SHAPE = (8, 8, 3)
PREPARE = Preprocessing((0.5,), (0.25,), size=8)


@pytest.fixture(scope="module")
def variables():
    return filled(create_model(**NETWORK), jnp.ones((1, *SHAPE)))


@pytest.fixture
def folder(tmp_path, variables):
    options = {"preprocessing": PREPARE, "classes": ("a", "b", "c"), "card": "# Card"}
    about = {"seed": 7}
    save_pretrained(tmp_path / "net", NETWORK, variables, input_shape=SHAPE, about=about, **options)
    return tmp_path / "net"


def test_a_folder_comes_back_as_the_same_network(folder, variables):
    network, back, preprocessing, classes, about = dyn.from_pretrained(str(folder))
    jax.tree.map(np.testing.assert_array_equal, dict(variables), back)
    assert (preprocessing, classes) == (PREPARE, ("a", "b", "c"))
    assert about["about"] == {"seed": 7} and about["input_shape"] == [8, 8, 3]
    x = random_input(2, *SHAPE)
    np.testing.assert_array_equal(
        network.apply(back, x), create_model(**NETWORK).apply(variables, x)
    )
    assert (folder / "README.md").read_text() == "# Card"


def test_another_end(folder, variables):
    x = jnp.ones((1, *SHAPE))
    for fields in ({"num_classes": 0}, {"features_only": True}):
        network, back, *_ = from_pretrained(folder, **fields)
        assert "head" not in back["params"]
        y = network.apply(back, x)
        y = y if "num_classes" in fields else jnp.mean(y[0], (1, 2))
        kernel, bias = variables["params"]["head"]["kernel"], variables["params"]["head"]["bias"]
        logits = create_model(**NETWORK).apply(variables, x)
        np.testing.assert_allclose(y @ kernel + bias, logits, rtol=1e-4, atol=1e-5)

    network, back, _, classes, _ = from_pretrained(folder, num_classes=5, key=jax.random.key(1))
    assert network.apply(back, x).shape == (1, 5) and classes == ()
    np.testing.assert_array_equal(
        back["params"]["stem_conv"]["kernel"], variables["params"]["stem_conv"]["kernel"]
    )
    other, *_ = from_pretrained(folder, dropout=0.5)
    assert other.dropout == 0.5


def test_the_usual_number_of_classes_need_not_be_described(tmp_path):
    described = {
        name: value for name, value in NETWORK.items() if name not in ("num_classes", "conv")
    }
    variables = filled(create_model(**described), jnp.ones((1, *SHAPE)))
    save_pretrained(tmp_path, described, variables, input_shape=SHAPE, classes=["a"] * 1000)
    _, back, _, classes, _ = from_pretrained(tmp_path)
    assert back["params"]["head"]["bias"].shape == (1000,) and len(classes) == 1000
    _, back, _, classes, _ = from_pretrained(tmp_path, features_only=True)
    assert "head" not in back["params"] and classes == ()


def test_weights_are_floats(folder, variables):
    whole = jax.tree.map(lambda leaf: leaf.astype(jnp.int32), variables)
    with pytest.raises(ValueError, match="has the dtype int32"):
        save_pretrained(folder, NETWORK, whole, input_shape=SHAPE)


def damage(folder, name, change):
    text = (folder / name).read_bytes()
    (folder / name).write_bytes(change(text))


def rewrite(folder, **entries):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "has no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "no model.safetensors"),
        (
            lambda f: damage(f, "model.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1])),
            ValueError,
            "SHA-256 is",
        ),
        (
            lambda f: damage(f, "config.json", lambda b: b[:-9]),
            ValueError,
            "config.json is damaged",
        ),
        (lambda f: rewrite(f, library_name="timm"), ValueError, "not describe .* dyn"),
        (lambda f: rewrite(f, format=2), ValueError, "newer version"),
        (lambda f: rewrite(f, network="resnet18"), ValueError, "network must be"),
        (lambda f: rewrite(f, input_shape=[8, -8, 3]), ValueError, "input_shape must be"),
        (lambda f: rewrite(f, sha256={}), ValueError, "sha256 must be"),
        (lambda f: rewrite(f, preprocessing={"a": 1}), ValueError, "preprocessing: "),
        (
            lambda f: rewrite(f, preprocessing={"mean": [10**400]}),
            ValueError,
            "preprocessing: ",
        ),
        (
            lambda f: rewrite(f, network={**NETWORK, "conv": {"name": "odconv", "kernels": 4}}),
            ValueError,
            "model.safetensors: .*no field kernels",
        ),
        (lambda f: rewrite(f, network={**NETWORK, "num_classes": -1}), ValueError, "-1"),
        (lambda f: rewrite(f, network={**NETWORK, "name": "resnt18"}), ValueError, "'resnet18'"),
        (
            lambda f: rewrite(f, network={**NETWORK, "widht": 4}),
            ValueError,
            "cannot be made.*width",
        ),
        (
            lambda f: rewrite(f, network={**NETWORK, "width": 8}),
            ValueError,
            "not those of the network",
        ),
    ],
)
def test_damage_is_named(folder, harm, error, message):
    harm(folder)
    with pytest.raises(error, match=message):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("resnet18_odconv4", "neither a folder nor .*'resnet18_odconv4x'.* 'hf:USER/NAME'"),
        ("resnet18_odconv4x", "comes without weights: pass weights=FILE"),
        ("runs/nothing/export/hub", "no folder 'runs/nothing/export/hub'. .* 'hf:USER/NAME'"),
        (__file__, "is a file: pass the folder"),
    ],
)
def test_sources_without_weights_are_explained(source, message):
    with pytest.raises(ValueError, match=message):
        from_pretrained(source)


def test_descriptions_of_other_networks_are_not_written(variables, tmp_path):
    for network, message in (
        ({**NETWORK, "num_classes": 4}, "not those of the network: .*head/bias"),
        ({**NETWORK, "conv": lambda: None}, "describe layers by their names"),
    ):
        with pytest.raises(ValueError, match=message):
            make_pretrained_files(network, variables, input_shape=SHAPE)
    with pytest.raises(ValueError, match="2 names of classes for the 3 outputs"):
        make_pretrained_files(NETWORK, variables, input_shape=SHAPE, classes=["a", "b"])


def test_the_cache_of_the_hub(folder, tmp_path, monkeypatch):
    """Its snapshots are links to files that are named by their contents."""
    repository = tmp_path / "models--me--net"
    snapshot = repository / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    asked = []

    def snapshot_download(repo_id, *, revision, allow_patterns):
        asked.append((repo_id, revision, sorted(allow_patterns)))
        if repo_id != "me/net":
            raise OSError("404: there is no such repository")
        return str(snapshot)

    client = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    assert from_pretrained("hf:me/net", revision="v1").classes == ("a", "b", "c")
    assert asked == [("me/net", "v1", ["README.md", "config.json", "model.safetensors"])]
    assert from_pretrained(snapshot).classes == ("a", "b", "c")
    with pytest.raises(OSError, match="hf:me/other cannot be fetched: 404"):
        from_pretrained("hf:me/other")


def test_a_missing_client_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        from_pretrained("hf:me/net")


def torch_weights(num_classes=7):
    norm = ("weight", "bias", "running_mean", "running_var")
    weights = {f"bn1.{name}": np.ones(4, np.float32) for name in norm}
    weights |= {"conv1.weight": np.ones((4, 3, 3, 3), np.float32)}
    return weights | {
        "fc.weight": np.ones((num_classes, 4), np.float32),
        "fc.bias": np.zeros(num_classes, np.float32),
    }


def test_files_of_other_libraries(tmp_path):
    from safetensors.numpy import save_file

    path, small = tmp_path / "net.safetensors", {"width": 4, "stage_sizes": (), "stem": "small"}
    save_file(torch_weights(), path)
    network, variables, preprocessing, _, about = from_pretrained("resnet18", weights=path, **small)
    assert about["input_shape"] == [224, 224, 3]
    assert network.num_classes == 7 and preprocessing.resize == 256
    assert shapes_of(variables)["params/head/kernel"] == (4, 7)
    assert network.apply(variables, preprocessing(np.ones((1, 9, 7, 3), np.uint8))).shape == (1, 7)
    network, variables, *_ = from_pretrained("resnet18", weights=path, features_only=True, **small)
    assert "head" not in variables["params"] and network.num_classes is None
    _, variables, *_ = from_pretrained("resnet18", weights=path, num_classes=2, **small)
    assert variables["params"]["head"]["kernel"].shape == (4, 2)
    with pytest.raises(ValueError, match=r"net.safetensors: the weights do not fit"):
        from_pretrained("resnet18", weights=path, width=4, stem="small", stage_sizes=(1,))
    with pytest.raises(ValueError, match="did you mean 'resnet18'"):
        from_pretrained("resnet19", weights=path)


LITE0 = Path(os.environ.get("DYN_LITE0_WEIGHTS", ""))


@pytest.mark.skipif(not LITE0.is_file(), reason="DYN_LITE0_WEIGHTS names no file")
def test_the_published_lite0_in_one_line():
    """Its authors' code has these five best classes for this input, and this sum of features."""
    x = np.sin(0.23 * np.arange(3 * 224**2) + 0.05).reshape(1, 3, 224, 224)
    x = x.transpose(0, 2, 3, 1).astype(np.float32)
    network, variables, *_ = from_pretrained("efficientnet_lite0", weights=LITE0)
    logits = np.asarray(jax.jit(network.apply)(variables, x))[0]
    assert logits.argsort()[:-6:-1].tolist() == [905, 753, 904, 858, 807]
    network, variables, *_ = from_pretrained("efficientnet_lite0", weights=LITE0, num_classes=0)
    assert np.sum(jax.jit(network.apply)(variables, x)) == pytest.approx(175.986848, rel=1e-5)
