"""Malicious and damaged torch files."""

import zipfile

import numpy as np
import pytest
from torch_zip import save, sequence, tensor, text

from dyn.interop import read_weights

pytestmark = pytest.mark.matrix

WEIGHTS = {"conv.weight": np.arange(24.0).reshape(2, 3, 2, 2), "conv.bias": np.ones(2)}
NAMES = r"builtins\.eval|argparse\.Namespace|posix\.system|torch\.load|instruction (INST|EXT1)"


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
    ("entry", "message"),
    [
        (tensor("0", (2,), (1,), 23), "w reaches beyond"),
        (tensor("0", (2,), (1,), -3), "w reaches beyond"),
        (tensor("0", (2,), (-1,), 5), "call"),
        (tensor("7", (2,), (1,)), "the numbers of w are missing"),
        (tensor("0", (2,), (1,), 0, "QInt8Storage"), "torch.QInt8Storage"),
    ],
    ids=["after", "before", "steps back", "missing", "unknown kind"],
)
def test_impossible_tensors_are_refused(tmp_path, entry, message):
    path = save(tmp_path / "net.pth", WEIGHTS, {"w": entry})
    with pytest.raises(ValueError, match=rf"net\.pth cannot be read: .*{message}"):
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
