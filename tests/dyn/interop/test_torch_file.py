"""Files of weights: torch's and safetensors are read, and nothing in them is executed."""

import base64
import json
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.flax
import torch_zip
from torch_zip import integer, save, sequence, tensor, text

from dyn.interop import read_weights

REFERENCES = Path(torch_zip.__file__).with_name("torch_references.json")
WEIGHTS = {"conv.weight": np.arange(24.0).reshape(2, 3, 2, 2), "conv.bias": np.ones(2)}
NAMES = r"builtins\.eval|argparse\.Namespace|posix\.system|torch\.load|instruction (INST|EXT1)"


def test_reads_a_checkpoint_written_by_torch(tmp_path):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(zlib.decompress(base64.b64decode(json.loads(REFERENCES.read_text())["file"])))
    weights = read_weights(path)
    table = np.arange(12.0).reshape(3, 4)
    expected = {
        "table": table,
        "turned": table.T,
        "part": table[1:, ::2],
        "half": table[0],
        "bfloat16": table[0],
        "double": table[0],
        "count": 7,
        "parameter": table[2],
        "norm.weight": np.ones(2),
        "norm.bias": np.zeros(2),
        "norm.running_mean": np.zeros(2),
        "norm.running_var": np.ones(2),
        "norm.num_batches_tracked": 0,
    }
    assert list(weights) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(weights[name].astype(np.float64), value, err_msg=name)
    kinds = {"table": "float32", "half": "float16", "double": "float64", "count": "int64"}
    assert {name: str(weights[name].dtype) for name in kinds} == kinds


def test_reads_safetensors_of_any_name(tmp_path):
    path = tmp_path / "model.bin"
    arrays = {name: np.asarray(value, "bfloat16") for name, value in WEIGHTS.items()}
    safetensors.flax.save_file(arrays, path)
    for name, value in read_weights(path).items():
        np.testing.assert_array_equal(value.astype(np.float64), WEIGHTS[name])


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    safetensors.flax.save_file({"w": np.ones(2, np.float32)}, path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        read_weights(path)


def test_finds_the_state_dict_of_a_checkpoint(tmp_path):
    alone = save(tmp_path / "net.pth", WEIGHTS)
    inner = torch_zip.dictionary({"conv.bias": tensor("1", (2,), (1,))})
    within = save(tmp_path / "within.pth", WEIGHTS, {"model": inner, "epoch": integer(3)})
    assert list(read_weights(alone)) == list(WEIGHTS)
    assert list(read_weights(within)) == ["conv.bias"]


def test_executes_nothing(tmp_path):
    """An audit hook would notice if Python unpickled the file or started a process."""
    events = []
    watching = False

    def hook(event, arguments):
        if watching and event in ("pickle.find_class", "os.system", "subprocess.Popen"):
            events.append((event, arguments))

    mark = tmp_path / "mark"
    call = b"cposix\nsystem\n" + sequence([text(f"touch {mark}")]) + b"R"
    path = save(tmp_path / "net.pth", WEIGHTS, {"evil": call})
    sys.addaudithook(hook)  # it cannot be removed
    watching = True
    with pytest.raises(ValueError, match=r"net\.pth cannot be read: .* posix\.system"):
        read_weights(path)
    watching = False
    assert events == [] and not mark.exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"w": tensor("0", (100,), (1,))}, "w reaches beyond"),
        ({"w": tensor("0", (1 << 20, 1 << 20), (0, 0))}, "bytes"),
        ({"w": integer(3)}, "w are not tensors"),
        ({"w": tensor("0", (2,), (1,), 23)}, "w reaches beyond"),
        ({"w": tensor("0", (2,), (1,), -3)}, "w reaches beyond"),
        ({"w": tensor("0", (2,), (-1,), 5)}, "call"),
        ({"w": tensor("7", (2,), (1,))}, "the numbers of w are missing"),
        ({"w": tensor("0", (2,), (1,), 0, "QInt8Storage")}, "torch.QInt8Storage"),
    ],
    ids="beyond,huge,no tensor,after,before,steps back,missing,unknown kind".split(","),
)
def test_impossible_tensors_are_refused(tmp_path, entries, message):
    path = save(tmp_path / "net.pth", WEIGHTS, entries)
    with pytest.raises(ValueError, match=rf"net\.pth cannot be read: .*{message}"):
        read_weights(path)


def test_files_of_another_kind_are_named(tmp_path):
    path = tmp_path / "net.pth"
    for content, message in ((b"", "not a file of weights"), (b"\x80\x02\x8a", "before 1.6")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"net\.pth .*{message}"):
            read_weights(path)


@pytest.mark.parametrize(
    "call",
    [
        b"cbuiltins\neval\n" + sequence([text("1")]) + b"R",
        b"cargparse\nNamespace\n",
        b"cargparse\nNamespace\n)\x81",
        b"(" + text("true") + b"iposix\nsystem\n",
        text("posix") + text("system") + b"\x93",
        b"ctorch\nload\n" + sequence([text("net.pth")]) + b"R",
        b"\x82\x01",
    ],
    ids=["builtin", "name", "object", "instance", "stack", "torch", "extension"],
)
def test_other_names_and_instructions_are_refused(tmp_path, call):
    path = save(tmp_path / "net.pth", WEIGHTS, {"evil": call})
    with pytest.raises(ValueError, match=rf"net\.pth cannot be read: it.* ({NAMES})"):
        read_weights(path)


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"garbage",
        *(b"\x80\x02" + rest for rest in (b"", b"}", b".", b"h\x05.", b")R.", b"].", b"tu.")),
        b"\x80\x02" + text("x")[:-1],
        b"\x80\x02X\x01\x00\x00\x00\xff.",
    ],
)
def test_damaged_pickles_are_refused(tmp_path, pickled):
    path = save(tmp_path / "net.pth", {}, data=pickled)
    with pytest.raises(ValueError, match=r"net\.pth cannot be read: "):
        read_weights(path)


def test_damaged_files_are_refused(tmp_path):
    whole = save(tmp_path / "net.pth", WEIGHTS).read_bytes()
    at = whole.index(np.float32(5).tobytes())
    compressed = save(tmp_path / "small.pth", WEIGHTS, compression=zipfile.ZIP_DEFLATED)
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a.txt", "a")
    for content, message in (
        (whole[: len(whole) // 2], "not a file of weights"),
        (whole[:at] + b"\1" + whole[at + 1 :], "is damaged: Bad CRC"),
        (b"\xff\0\0\0\0\0\0\0{", "is damaged"),
        (other.read_bytes(), "torch.save did not write"),
        (compressed.read_bytes(), "compressed data"),
    ):
        path = tmp_path / "damaged.pth"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"damaged\.pth .*{message}"):
            read_weights(path)
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "none.pth")
