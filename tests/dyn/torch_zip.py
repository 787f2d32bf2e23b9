"""Files as `torch.save` writes them, made without torch, so that they can also be made wrong."""

import pickle
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


def imported(dotted):
    """The instruction that imports a name."""
    module, _, last = dotted.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def tensor(
    key, shape, strides, offset=0, kind="torch.FloatStorage", more=(b"\x89", EMPTY), legacy=False
):
    """The instructions for a tensor whose numbers are the storage `key`.

    `more` begins with `requires_grad` and hooks; a dtype as a third makes it `_rebuild_tensor_v3`.
    """
    place = [text("storage"), imported(kind), text(key), text("cpu"), integer(1)] + [b"N"] * legacy
    numbers = [sequence(map(integer, sizes)) for sizes in (shape, strides)]
    arguments = [sequence(place) + b"Q", integer(offset), *numbers, *more]
    version = {0: "", 2: "_v2", 3: "_v3"}[len(more)]
    return imported(f"torch._utils._rebuild_tensor{version}") + sequence(arguments) + b"R"


def dictionary(entries):
    """The instructions for a dictionary, from names to instructions."""
    items = [part for key, value in entries.items() for part in (text(key), value)]
    return EMPTY + b"(" + b"".join(items) + b"u"


def save(path, weights, others=None, data=None, compression=zipfile.ZIP_STORED):
    """Writes arrays, and beside them in the same dictionary other instructions."""
    entries, storages = _encode(weights, legacy=False)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for key, numbers in storages.items():
            archive.writestr(f"net/data/{key}", numbers)
        pickled = b"\x80\x02" + dictionary({**entries, **(others or {})}) + b"."
        archive.writestr("net/data.pkl", pickled if data is None else data)
        archive.writestr("net/byteorder", "little")
    return path


def save_legacy(path, weights, others=None, keys=None, little_endian=True, version=1001):
    """Writes arrays as torch before 1.6: five pickles, then size and numbers of each storage."""
    entries, storages = _encode(weights, legacy=True)
    machine = {
        "protocol_version": version,
        "little_endian": little_endian,
        "type_sizes": {"long": 4},
    }
    head = (0x1950A86A20F9469CFC6C, version, machine)
    content = b"\x80\x02" + dictionary({**entries, **(others or {})}) + b"."
    parts = [*(pickle.dumps(part, 2) for part in head), content]
    parts.append(pickle.dumps(list(storages) if keys is None else keys, 2))
    for numbers in storages.values():
        parts += [struct.pack("<q", len(numbers) // 4), numbers]
    path.write_bytes(b"".join(parts))
    return path


def _encode(weights, legacy):
    """The instructions for arrays in float32, by name, and their numbers, by key."""
    entries, storages = {}, {}
    for number, (label, value) in enumerate(weights.items()):
        value = np.ascontiguousarray(value, np.float32)
        strides = [step // value.itemsize for step in value.strides]
        entries[label] = tensor(str(number), value.shape, strides, legacy=legacy)
        storages[str(number)] = value.tobytes()
    return entries, storages
