"""Files of weights: what torch and safetensors write is read, and nothing in it is executed."""

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

REFERENCES = Path(__file__).with_name("torch_references.json")
WEIGHTS = {"conv.weight": np.arange(24.0).reshape(2, 3, 2, 2), "conv.bias": np.ones(2)}


def test_a_checkpoint_that_torch_has_written_is_read(tmp_path):
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


def test_safetensors_are_read_whatever_the_file_is_called(tmp_path):
    path = tmp_path / "model.bin"
    safetensors.flax.save_file(
        {name: value.astype("bfloat16") for name, value in read_weights(file(tmp_path)).items()},
        path,
    )
    for name, value in read_weights(path).items():
        np.testing.assert_array_equal(value.astype(np.float64), WEIGHTS[name])


def test_without_the_library_safetensors_are_answered_with_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    safetensors.flax.save_file({"w": np.ones(2, np.float32)}, path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"net\.safetensors .* pip install safetensors"):
        read_weights(path)


def file(tmp_path):
    return save(tmp_path / "net.pth", WEIGHTS)


def test_a_state_dict_is_found_in_a_checkpoint_and_alone(tmp_path):
    alone = read_weights(file(tmp_path))
    inner = torch_zip.dictionary({"conv.bias": tensor("1", (2,), (1,))})
    within = save(tmp_path / "within.pth", WEIGHTS, {"model": inner, "epoch": integer(3)})
    assert list(alone) == list(WEIGHTS) and list(read_weights(within)) == ["conv.bias"]


FORBIDDEN = {
    "a call": lambda mark: b"cposix\nsystem\n" + sequence([text(f"touch {mark}")]) + b"R",
    "a builtin": lambda mark: (
        b"cbuiltins\neval\n" + sequence([text(f"open('{mark}', 'w')")]) + b"R"
    ),
    "a name alone": lambda mark: b"cargparse\nNamespace\n",
    "an object": lambda mark: b"cargparse\nNamespace\n)\x81",
    "an instance": lambda mark: b"(" + text(f"touch {mark}") + b"iposix\nsystem\n",
    "a name from the stack": lambda mark: text("posix") + text("system") + b"\x93",
    "torch's own loader": lambda mark: b"ctorch\nload\n" + sequence([text(str(mark))]) + b"R",
    "an extension": lambda mark: b"\x82\x01",
}


@pytest.fixture
def watched():
    """What Python is asked to import, to unpickle or to start."""
    seen = []
    on = True

    def hook(event, arguments):
        if on and event in ("pickle.find_class", "os.system", "subprocess.Popen"):
            seen.append((event, arguments))

    sys.addaudithook(hook)  # it stays, and looks at nothing more
    yield seen
    on = False


@pytest.mark.parametrize("kind", FORBIDDEN)
def test_what_a_pickle_asks_for_beyond_tensors_is_refused_by_name(tmp_path, kind, watched):
    mark = tmp_path / "mark"
    path = save(tmp_path / "net.pth", WEIGHTS, {"evil": FORBIDDEN[kind](mark)})
    watched.clear()
    named = r"posix\.system|builtins\.eval|argparse\.Namespace|torch\.load|instruction (INST|EXT1)"
    with pytest.raises(ValueError, match=rf"net\.pth cannot be read: it.* ({named})"):
        read_weights(path)
    assert watched == [] and not mark.exists()


DAMAGED = {
    "a tensor beyond its numbers": ({"w": tensor("0", (100,), (1,))}, "w reaches beyond"),
    "a tensor behind its numbers": ({"w": tensor("0", (2,), (1,), 23)}, "w reaches beyond"),
    "a tensor before its numbers": ({"w": tensor("0", (2,), (1,), -3)}, "w reaches beyond"),
    "steps back": ({"w": tensor("0", (2,), (-1,), 5)}, "in a way that torch does not"),
    "one number as many": ({"w": tensor("0", (1 << 20, 1 << 20), (0, 0))}, "would have"),
    "no numbers": ({"w": tensor("7", (2,), (1,))}, "the numbers of w are missing"),
    "an unknown kind": ({"w": tensor("0", (2,), (1,), 0, "QInt8Storage")}, "torch.QInt8Storage"),
    "a number": ({"w": integer(3)}, "w are no tensors"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_tensors_that_cannot_be_are_refused(tmp_path, kind):
    entries, says = DAMAGED[kind]
    path = save(tmp_path / "net.pth", WEIGHTS, entries)
    with pytest.raises(ValueError, match=rf"net\.pth cannot be read: .*{says}"):
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
def test_a_pickle_that_is_none_is_refused(tmp_path, pickled):
    path = save(tmp_path / "net.pth", {}, data=pickled)
    with pytest.raises(ValueError, match=r"net\.pth cannot be read: "):
        read_weights(path)


def test_files_of_another_kind_and_damaged_ones_are_named(tmp_path):
    def refused(name, content, says):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=says):
            read_weights(path)

    whole = file(tmp_path).read_bytes()
    refused("cut.pth", whole[: len(whole) // 2], "cut.pth is no file of weights")
    at = whole.index(np.float32(5).tobytes())
    refused("changed.pth", whole[:at] + b"\1" + whole[at + 1 :], "changed.pth is damaged: Bad CRC")
    refused("empty.pth", b"", "empty.pth is no file of weights: give a .safetensors file, or")
    refused("old.pth", b"\x80\x02\x8a\x0al\xfc\x9cF", "old.pth has the format of torch before 1.6")
    refused("cut.safetensors", b"\xff\0\0\0\0\0\0\0{", "cut.safetensors is damaged")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    refused("other.zip", (tmp_path / "other.zip").read_bytes(), "not one that torch.save wrote")
    save(tmp_path / "small.pth", WEIGHTS, compression=zipfile.ZIP_DEFLATED)
    refused("small.pth", (tmp_path / "small.pth").read_bytes(), "compressed data")
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "none.pth")
