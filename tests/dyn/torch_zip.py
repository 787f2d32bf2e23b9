"""Files as `torch.save` writes them, made without torch, so that they can also be made wrong."""

import struct
import zipfile

import numpy as np

EMPTY = b"ccollections\nOrderedDict\n)R"


def text(words):
    encoded = words.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def integer(number):
    return b"J" + struct.pack("<i", number)


def sequence(items):
    return b"(" + b"".join(items) + b"t"


def tensor(key, shape, strides, offset=0, kind="FloatStorage"):
    """The instructions for a tensor whose numbers are `data/<key>`."""
    place = [text("storage"), f"ctorch\n{kind}\n".encode(), text(key), text("cpu"), integer(1)]
    numbers = [sequence(map(integer, sizes)) for sizes in (shape, strides)]
    arguments = [sequence(place) + b"Q", integer(offset), *numbers, b"\x89", EMPTY]
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + sequence(arguments) + b"R"


def dictionary(entries):
    """The instructions for a dictionary, from names to instructions."""
    items = [part for name, value in entries.items() for part in (text(name), value)]
    return EMPTY + b"(" + b"".join(items) + b"u"


def save(path, weights, others=None, data=None, compression=zipfile.ZIP_STORED):
    """Writes arrays, and beside them in the same dictionary other instructions."""
    entries = {}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for number, (name, value) in enumerate(weights.items()):
            value = np.ascontiguousarray(value, np.float32)
            strides = [step // value.itemsize for step in value.strides]
            entries[name] = tensor(str(number), value.shape, strides)
            archive.writestr(f"net/data/{number}", value.tobytes())
        pickled = b"\x80\x02" + dictionary({**entries, **(others or {})}) + b"."
        archive.writestr("net/data.pkl", pickled if data is None else data)
        archive.writestr("net/byteorder", "little")
    return path
