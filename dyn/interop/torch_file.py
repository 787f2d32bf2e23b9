"""Reads files of weights, safetensors or written by `torch.save`, without torch.

A torch file is a pickle and raw numbers: in a zip archive, or before torch 1.6 one after the other.
"""

import io
import itertools
import math
import os
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from dyn.interop.array_names import check_names, shorten
from dyn.interop.safetensors_file import is_safetensors, read_safetensors
from dyn.interop.torch_pickle import MAX_BYTES, Pickled, Storage, Tensor, interpret

# Keys of the state dict in training checkpoints, the ones that are trained before their averages.
_STATE_DICT_KEYS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "module"),
    *("ema_state_dict", "state_dict_ema", "model_ema", "ema"),
)
_MAX_CONTAINERS = 4  # in each other; one that holds itself would not end
# Tensors may share numbers; more than this many times their file is damage, or an attack.
_MAX_SHARING = 4

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the tensors of a file, by name; executes nothing in it.

    In a torch file they are the state dict, or the one that a training checkpoint holds as `state_dict`,
    `model_state_dict`, `model`, `net`, `network`, `module` or, as averages, `ema_state_dict`,
    `state_dict_ema`, `model_ema` or `ema`; such containers may hold each other.

    Args:
        path: a `.safetensors` file, or a `.pth`, `.pt` or `.bin` written by torch 0.2 or newer. The content
            decides, not the suffix.

    Returns:
        The tensors, in torch's layouts and in the file's order.

    Raises:
        ValueError: if the file is of another kind, is damaged, has no weights, or needs more than tensors.
        ImportError: for safetensors if that library is not installed.
        OSError: if the file cannot be opened.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from safetensors.numpy import save_file
        >>> from dyn.interop import read_weights
        >>> path = os.path.join(tempfile.mkdtemp(), "weights.safetensors")
        >>> save_file({"fc.weight": np.ones((10, 512), np.float32)}, path)
        >>> {name: value.shape for name, value in read_weights(path).items()}
        {'fc.weight': (10, 512)}
    """
    with open(path, "rb") as file:
        size = os.path.getsize(path)
        try:
            if is_safetensors(path):
                return read_safetensors(path)
            if file.read(1) == b"\x80":
                return _read_legacy(file, size)
            if not zipfile.is_zipfile(file):
                raise ValueError(
                    "it is not a file of weights: pass a .safetensors file, or a state dict written by "
                    "torch.save."
                )
            with zipfile.ZipFile(file) as archive:
                return _read_archive(archive, size)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError) as error:
            raise ValueError(f"{path} is damaged: {shorten(str(error))}.") from error
        except ValueError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error


def _read_archive(archive: zipfile.ZipFile, file_size: int) -> dict[str, np.ndarray]:
    """Reads the state dict of an opened archive in a file of `file_size` bytes."""
    names = set(archive.namelist())
    pickles = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise ValueError("it is a zip archive that torch.save did not write.")
    root = pickles[0].removesuffix("data.pkl")
    entries = archive.infolist()
    # torch does not compress, so that no file is larger than the archive.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it holds compressed data, which torch.save does not write.")
    if sum(entry.file_size for entry in entries) > file_size:
        raise ValueError("it is damaged: its parts need more bytes than the file has.")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("its numbers are big-endian: save it again on a little-endian machine.")
    if archive.getinfo(pickles[0]).file_size > MAX_BYTES:
        raise ValueError(f"its pickle has more than {MAX_BYTES:,} bytes.")
    pickled = interpret(io.BytesIO(archive.read(pickles[0])))

    def read(storage: Storage) -> bytes | None:
        name = f"{root}data/{storage.key}"
        return archive.read(name) if name in names else None

    return _read_tensors(_find_state_dict(pickled.content), read, file_size)


def _read_legacy(file: BinaryIO, file_size: int) -> dict[str, np.ndarray]:
    """Reads the state dict of a file from before torch 1.6.

    It is five pickles (a magic number, a version, facts of the machine, the content, the keys of the
    storages), and for each key in turn the number of its numbers, in eight bytes, and the numbers.
    """
    file.seek(0)
    head = io.BytesIO(file.read(MAX_BYTES))
    if interpret(head).content != _LEGACY_MAGIC:
        raise ValueError("it is a pickle that torch.save did not write.")
    if interpret(head).content != _LEGACY_VERSION:
        raise ValueError("it has a version of the format before torch 1.6 that is not known.")
    machine = interpret(head).content
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("its numbers are big-endian: save it again on a little-endian machine.")
    pickled = interpret(head)
    keys = interpret(head).content
    places = _find_storages(file, file_size, head.tell(), keys, pickled)

    def read(storage: Storage) -> bytes | None:
        if storage.key not in places:
            return None
        start, size = places[storage.key]
        file.seek(start)
        return file.read(size)

    return _read_tensors(_find_state_dict(pickled.content), read, file_size)


def _find_storages(
    file: BinaryIO, file_size: int, start: int, keys: Any, pickled: Pickled
) -> dict[str, tuple[int, int]]:
    """Returns start and size in bytes of the storages with these keys, which are in the file in turn."""
    places = {}
    for key in keys if isinstance(keys, list) else [None]:
        storage = pickled.storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise ValueError("it is damaged: it has numbers of no tensor.")
        file.seek(start)
        size = int.from_bytes(file.read(8), "little", signed=True) * storage.dtype.itemsize
        start += 8
        if not 0 <= size <= file_size - start:
            raise ValueError("it is damaged: it ends before its numbers.")
        places[key] = (start, size)
        start += size
    return places


def _find_state_dict(content: Any) -> dict[str, Tensor]:
    """Returns the named tensors of a state dict, or of the one in a training checkpoint."""
    for _ in range(_MAX_CONTAINERS):
        if isinstance(content, dict):
            inner = (content[key] for key in _STATE_DICT_KEYS if isinstance(content.get(key), dict))
            content = next(inner, content)
    if not isinstance(content, dict) or not content:
        raise ValueError("it holds no state dict: save model.state_dict().")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        named = ", ".join(map(shorten, others[:5]))
        raise ValueError(
            f"it holds no state dict: {named} are not tensors. Save model.state_dict()."
        )
    unnamed = [name for name in content if not isinstance(name, str)]
    if unnamed:
        raise ValueError(f"it has a tensor whose name is {unnamed[0]!r}: names are texts.")
    check_names(content)
    return content


def _read_tensors(
    tensors: dict[str, Tensor], read: Callable[[Storage], bytes | None], file_size: int
) -> dict[str, np.ndarray]:
    """Copies tensors out of their storages, each of which is read once; equal ones share an array."""
    firsts = _find_equal(tensors)
    views: dict[Storage, list[str]] = {}
    num_bytes = 0
    for name, tensor in tensors.items():
        if firsts[name] == name:
            views.setdefault(tensor.storage, []).append(name)
            num_bytes += math.prod(tensor.shape) * tensor.dtype.itemsize
    if num_bytes > _MAX_SHARING * file_size:
        raise ValueError(f"its tensors need {num_bytes:,} bytes, but the file has {file_size:,}.")
    arrays = {}
    for storage, names in views.items():
        numbers = read(storage)
        if numbers is None:
            raise ValueError(f"it is damaged: the numbers of {shorten(names[0])} are missing.")
        for name in names:
            arrays[name] = _copy_tensor(shorten(name), tensors[name], numbers)
    return {name: arrays[firsts[name]] for name in tensors}


def _find_equal(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Returns for each tensor the name of the first one that is equal to it.

    They are sorted and not hashed: a file can choose offsets, shapes and strides whose hashes are equal.
    """
    storages: dict[Storage, int] = {}

    def order(name: str) -> tuple[Any, ...]:
        storage, dtype, *place = tensors[name]
        return storages.setdefault(storage, len(storages)), dtype.name, *place

    firsts = {}
    for _, group in itertools.groupby(sorted(tensors, key=order), order):
        names = list(group)
        firsts.update(dict.fromkeys(names, names[0]))
    return firsts


def _copy_tensor(name: str, tensor: Tensor, numbers: bytes) -> np.ndarray:
    """Copies the numbers of a tensor out of its storage."""
    _, dtype, offset, shape, strides = tensor
    if len(numbers) % dtype.itemsize:
        raise ValueError(f"it is damaged: the numbers of {name} end within one.")
    if not math.prod(shape):
        return np.zeros(shape, dtype)
    # Strides are as dangerous as pointers: check their range before following them.
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if not 0 <= offset <= last < len(numbers) // dtype.itemsize:
        raise ValueError(f"it is damaged: {name} reaches beyond its numbers.")
    # The step of an axis of one number is never taken, and may be any.
    steps = [step * dtype.itemsize * (n > 1) for n, step in zip(shape, strides, strict=True)]
    # A byte that is neither 0 nor 1 would be no Boolean.
    stored = np.dtype(np.uint8) if dtype == np.bool_ else dtype
    view = np.ndarray(shape, stored, numbers, offset * dtype.itemsize, steps)
    return view != 0 if dtype == np.bool_ else view.copy()
