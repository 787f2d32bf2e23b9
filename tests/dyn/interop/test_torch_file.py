"""Files of weights: torch's and safetensors are read, and nothing in them is executed."""

import base64
import json
import pickle
import struct
import sys
import time
import zipfile
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
import torch_zip
from torch_zip import (
    EMPTY,
    dictionary,
    imported,
    integer,
    save,
    save_legacy,
    sequence,
    tensor,
    text,
)

from dyn.interop import read_weights, torch_file, torch_pickle

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


def test_finds_nested_containers_and_the_weights_before_their_averages(tmp_path):
    first, second = (dictionary({key: tensor("1", (2,), (1,))}) for key in ("first", "second"))
    for content, expected in (
        ({"ema": dictionary({"model": second}), "state_dict": first}, "first"),
        ({"ema": dictionary({"model": second}), "epoch": integer(3)}, "second"),
        ({"model": dictionary({"module": second})}, "second"),
    ):
        assert list(read_weights(save(tmp_path / "net.pth", WEIGHTS, content))) == [expected]


def test_reads_files_from_before_torch_1_6(tmp_path):
    part = tensor("0", (2, 3), (12, 4), 1, legacy=True)
    # In the first versions a state dict held parameters, and sizes were objects.
    old = tensor("1", (2,), (1,), more=(), legacy=True)
    parameter = imported("torch.nn.parameter.Parameter") + sequence([old]) + b"R" + EMPTY + b"b"
    path = save_legacy(tmp_path / "net.pth", WEIGHTS, {"part": part, "parameter": parameter})
    expected = {
        **WEIGHTS,
        "part": WEIGHTS["conv.weight"][:, :, 0, 1],
        "parameter": WEIGHTS["conv.bias"],
    }
    weights = read_weights(path)
    assert list(weights) == list(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(weights[key], value)
        assert weights[key].dtype == np.float32


def python_2_dictionary(entries, own=b""):
    """Returns the pickle of `OrderedDict([[key, value], ...])` by Python 2.7; `own` sets attributes of it."""
    pairs = [
        b"](" + b"U" + bytes([len(key)]) + key.encode() + value + b"e"
        for key, value in entries.items()
    ]
    return imported("collections.OrderedDict") + b"](" + b"".join(pairs) + b"e\x85R" + own


def test_reads_files_that_python_2_wrote(tmp_path):
    hooks = imported("collections.OrderedDict") + b"]\x85R"
    more = (b"\x89", hooks)
    entries = {
        "fc.weight": tensor("0", (2, 3), (3, 1), more=more, legacy=True),
        "fc.bias": tensor("1", (2,), (1,), more=more, legacy=True),
    }
    numbered = imported("collections.OrderedDict") + b"](K\1K\2\x86e\x85R"
    checkpoint = {
        "epoch": integer(3),
        "state_dict": python_2_dictionary(entries, b"}U\x09_metadata" + hooks + b"sb"),
        "optimizer": numbered,
    }
    head = (torch_file._LEGACY_MAGIC, 1001, {"little_endian": True})
    numbers = np.arange(8, dtype=np.float32)
    for content in (entries, checkpoint):
        path = tmp_path / "net.pth"
        path.write_bytes(
            b"".join(pickle.dumps(part, 2) for part in head)
            + (b"\x80\2" + python_2_dictionary(content) + b"." + pickle.dumps(["0", "1"], 2))
            + (struct.pack("<q", 6) + numbers[:6].tobytes())
            + (struct.pack("<q", 2) + numbers[6:].tobytes())
        )
        weights = read_weights(path)
        assert list(weights) == ["fc.weight", "fc.bias"]
        np.testing.assert_array_equal(weights["fc.weight"], numbers[:6].reshape(2, 3))
        np.testing.assert_array_equal(weights["fc.bias"], numbers[6:])


def test_damaged_files_from_before_torch_1_6_are_refused(tmp_path):
    path = tmp_path / "net.pth"
    whole = save_legacy(path, WEIGHTS).read_bytes()
    missing = tensor("7", (2,), (1,), legacy=True)
    for change, message in (
        (lambda: path.write_bytes(whole[:-1]), "ends before its numbers"),
        (lambda: path.write_bytes(whole[:100]), "pickle is damaged"),
        (lambda: save_legacy(path, WEIGHTS, {"w": missing}), "numbers of w are missing"),
        (lambda: save_legacy(path, WEIGHTS, keys=["9"]), "numbers of no tensor"),
        (lambda: save_legacy(path, WEIGHTS, keys={}), "numbers of no tensor"),
        (lambda: save_legacy(path, WEIGHTS, little_endian=False), "big-endian"),
        (lambda: save_legacy(path, WEIGHTS, version=1002), "version"),
        (lambda: save_legacy(path, WEIGHTS, {"w": imported("posix.system")}), r"posix\.system"),
    ):
        change()
        with pytest.raises(ValueError, match=rf"net\.pth cannot be read: .*{message}"):
            read_weights(path)


UNTYPED = "torch.storage.UntypedStorage"


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        *(("float8_e4m3fn", 448), ("float8_e4m3fnuz", 240), ("float8_e5m2", 0.25)),
        *(("float8_e5m2fnuz", 0.25), ("float8_e8m0fnu", 4)),
        *(("uint16", 65535), ("uint32", 2**32 - 1), ("uint64", 2**53)),
    ],
)
def test_reads_types_that_torch_has_no_storage_for(tmp_path, dtype, value):
    numbers = np.full(3, value, jnp.dtype(dtype))
    more = (b"\x89", EMPTY, imported(f"torch.{dtype}"))
    path = save(tmp_path / "net.pth", {}, {"w": tensor("w", (2,), (1,), 1, UNTYPED, more)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("net/data/w", numbers.tobytes())
    weights = read_weights(path)["w"]
    assert str(weights.dtype) == dtype
    np.testing.assert_array_equal(weights.astype(np.float64), [value, value])


def test_reads_each_storage_once(tmp_path, monkeypatch):
    """A thousand names for one storage cost its size once, and equal tensors share an array."""
    others = {f"w{n}": tensor("0", (4,), (1,)) for n in range(1000)}
    path = save(tmp_path / "net.pth", WEIGHTS, others)
    reads = []
    original = zipfile.ZipFile.read
    monkeypatch.setattr(
        zipfile.ZipFile, "read", lambda self, name: reads.append(name) or original(self, name)
    )
    weights = read_weights(path)
    assert weights["w0"] is weights["w999"] and reads.count("net/data/0") == 1


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
        ({"w": tensor("0", (2,), (1,), 0, "torch.QInt8Storage")}, "torch.QInt8Storage"),
        ({"w": tensor("0", (2,), (1,), more=(b"\x89", EMPTY, EMPTY))}, "call"),
        ({"w": tensor("0", (1,) * 65, (1,) * 65)}, "call"),
        ({"w": imported("torch._utils._rebuild_sparse_tensor")}, "sparse"),
        ({"w": imported("torch._utils._rebuild_qtensor")}, "qtensor"),
        ({"w\x1b[31m": tensor("0", (2,), (1,))}, r"w\\x1b"),
        ({"w": tensor("0", (2,), (1,), kind="torch.HalfStorage")}, "two types"),
    ],
    ids=(
        "beyond,huge,no tensor,after,before,steps back,missing,unknown kind,no dtype,axes,sparse,quantised,"
        "control characters,two types"
    ).split(","),
)
def test_impossible_tensors_are_refused(tmp_path, entries, message):
    path = save(tmp_path / "net.pth", WEIGHTS, entries)
    with pytest.raises(ValueError, match=rf"net\.pth cannot be read: .*{message}"):
        read_weights(path)


def test_files_of_another_kind_are_named(tmp_path):
    path = tmp_path / "net.pth"
    for content, message in (
        (b"", "not a file of weights"),
        (b"\x80\x02}.", "torch.save did not write"),
    ):
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


# A tuple that holds another one twice, that a third, and so on: 2^60 of them to whoever follows them all.
DOUBLINGS = b"K\1" + 60 * b"q\1h\1\x86"
PAIRS = imported("collections.OrderedDict")
REBUILD = imported("torch._utils._rebuild_tensor_v2")
PLACE = [text("storage"), imported("torch.FloatStorage"), text("0"), text("cpu"), integer(1)]
VIEW = REBUILD + b"(" + sequence(PLACE) + b"QK\0))"


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"}" + DOUBLINGS + b"K\1s", "a tuple as key"),
        (b"}(" + DOUBLINGS + b"K\1u", "a tuple as key"),
        # Hashed, a tuple in a tuple and so on was a segmentation fault.
        (b"})" + 200_000 * b"\x85" + b"K\1s", "a tuple as key"),
        (b"}K\1" + DOUBLINGS + b"s", "1 are not tensors"),
        (DOUBLINGS, "no state dict"),
        (DOUBLINGS + b"Q", "something other than tensors"),
        (imported("torch.Size") + b"(" + DOUBLINGS + b"tR", "no state dict"),
        (imported("torch.FloatStorage") + DOUBLINGS + b"R", "call"),
        (DOUBLINGS + b"K\1R", "call"),
        (DOUBLINGS + b"]\x93", "damaged"),
        (PAIRS + b"]](" + DOUBLINGS + b"K\1ea\x85R", "a tuple as key"),
        (PAIRS + b"]" + DOUBLINGS + b"a\x85R", "a tuple as key"),
        (PAIRS + b"]]K\1aa\x85R", "no pairs"),
        # A list, and arguments, that are read again and again.
        (
            PAIRS + b"](" + 50_000 * b"NN\x86" + b"e\x85q\0R" + 50_000 * (PAIRS + b"h\0R"),
            "no pairs",
        ),
        (VIEW + 100_000 * b"N" + b"tq\0R" + 50_000 * (REBUILD + b"h\0R"), "call"),
    ],
    ids=(
        "key,keys,deep key,value,alone,storage,size,arguments,function,name,pairs' key,pairs,no pair,"
        "pairs again,arguments again"
    ).split(","),
)
def test_monsters_are_refused_at_once(tmp_path, pickled, message):
    path = save(tmp_path / "net.pth", {}, data=b"\x80\2" + pickled + b".")
    start = time.process_time()
    with pytest.raises(ValueError, match=rf"net\.pth cannot be read: .*{message}"):
        read_weights(path)
    # A monster takes minutes. Python may clear up after earlier tests meanwhile.
    assert time.process_time() - start < 3


def find_chain(places):
    """Returns keys for a dictionary with `places` slots; the last 20,000 each collide with most others.

    The first ones lie along the walk that begins where nothing is left of a number's own bits.
    """
    walk = np.zeros(places // 2, np.int64)
    for i in range(1, len(walk)):
        walk[i] = (5 * walk[i - 1] + 1) % places
    rank = np.full(places, places)
    rank[walk] = np.arange(len(walk))
    numbers = rest = np.arange(places, 16 * places)
    place = numbers % places
    meets = rank[place] < places
    while rest.any():
        rest = rest >> 5
        place = (5 * place + rest + 1) % places
        meets &= rank[place] < places
    others = numbers[meets][np.argsort(rank[place[meets]], kind="stable")]
    assert len(others) > 20_000
    return [*walk.tolist(), *others[:20_000].tolist()]


def long(number):
    return b"\x8a\x10" + number.to_bytes(16, "little", signed=True)


# All have the hash 0.
MULTIPLES = [n * ((1 << 61) - 1) for n in range(1, 40_001)]
LONG = 5_000_000 * "w"


def write_keys(instructions):
    return b"}(" + b"".join(key + b"N" for key in instructions) + b"u"


def write_offsets(numbers):
    """Empty views of one storage, and a tensor whose numbers are missing."""
    start = imported("torch._utils._rebuild_tensor") + b"q\0" + sequence(PLACE) + b"Qq\1"
    views = [text(f"w{n}") + b"h\0(h\1" + long(n) + b"K\0\x85K\1\x85tR" for n in numbers]
    last = text("v") + tensor("7", (1,), (1,))
    return start + b"}(" + b"".join(views) + last + b"u"


CHOSEN = {
    "multiples": lambda: write_keys(map(long, MULTIPLES)),
    "small": lambda: write_keys(map(integer, find_chain(1 << 18))),
    "floats": lambda: write_keys(b"G" + struct.pack(">d", n) for n in find_chain(1 << 18)),
    "memo": lambda: b"}" + b"".join(b"r" + struct.pack("<I", n) for n in find_chain(1 << 18)),
    "offsets": lambda: write_offsets(MULTIPLES),
    # Two equal texts, to be compared each time.
    "texts": lambda: b"}" + text(LONG) + b"Ns" + text(LONG) + b"q\1Ns" + 100_000 * b"h\1Ns",
}
MESSAGES = {"memo": "no state dict", "offsets": "numbers of v are missing"}


@pytest.mark.parametrize("kind", CHOSEN)
def test_chosen_numbers_and_texts_take_no_longer_than_others(tmp_path, kind):
    path = save(tmp_path / "net.pth", {"a": np.ones(1)}, data=b"\x80\2" + CHOSEN[kind]() + b".")
    start = time.process_time()
    with pytest.raises(ValueError, match=MESSAGES.get(kind, "are not tensors")):
        read_weights(path)
    assert time.process_time() - start < 4


def test_containers_that_hold_themselves_end(tmp_path):
    for pickled in (b"]q\0h\0a", b"}q\0" + text("model") + b"h\0s"):
        path = save(tmp_path / "net.pth", {}, data=b"\x80\2" + pickled + b".")
        with pytest.raises(ValueError, match="no state dict"):
            read_weights(path)


def test_pickles_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_pickle, "_MAX_INSTRUCTIONS", 1000)
    path = save(tmp_path / "net.pth", {}, data=b"\x80\2" + b"N" * 1000 + b".")
    with pytest.raises(ValueError, match="more than 1,000 instructions"):
        read_weights(path)
    monkeypatch.setattr(torch_file, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="more than 1,000 bytes"):
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
