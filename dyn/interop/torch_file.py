"""The tensors that a file of weights holds: safetensors, or what `torch.save` writes; without torch.

A torch file is a zip of a pickle and of raw numbers beside it. A pickle is a program that may call
anything. Here it is not run: its instructions are read one by one, the few that a state dict consists of
are understood, and any other name that it asks for is refused.
"""

import math
import os
import pickletools
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

_NUMBERS = {
    "torch.DoubleStorage": np.float64,
    "torch.FloatStorage": np.float32,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": jnp.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
}
_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_KNOWN = {*_NUMBERS, _DICT, _TENSOR, _PARAMETER}
# Where checkpoints of whole trainings keep the state dict.
_WITHIN = ("state_dict", "model_state_dict", "model", "net")


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors in a file, by their names.

    Of a torch file the state dict is taken, or the one that a checkpoint of a training holds as
    `state_dict`, `model_state_dict`, `model` or `net`. Nothing in the file is executed.

    Args:
        path: of a `.safetensors` file, or of a `.pth`, `.pt` or `.bin` that torch 1.6 or newer has
            written. What it is is seen from its content.

    Returns:
        The tensors, in torch's layouts and in the file's order.

    Raises:
        ValueError: if the file is neither, is damaged, holds no weights, or asks for anything but tensors.
        ImportError: for safetensors where that library is not installed.
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
        start = file.read(9)
    if start[8:] == b"{":
        return _read_safetensors(path)
    if start[:2] == b"\x80\x02":
        raise ValueError(
            f"{path} has the format of torch before 1.6: write it again with a newer one, "
            "torch.save(torch.load(FILE), NEW)."
        )
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is no file of weights: give a .safetensors file, or what torch.save wrote of a "
            "state dict."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_torch(archive, os.path.getsize(path))
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    try:
        from safetensors import SafetensorError
        from safetensors.flax import load_file
    except ImportError as error:
        raise ImportError(
            f"{path} is a safetensors file, which needs a library: pip install safetensors."
        ) from error
    try:
        return {name: np.asarray(value) for name, value in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error


class _Name(NamedTuple):
    """What a pickle asks for by name."""

    name: str


class _Storage(NamedTuple):
    """Raw numbers in a file of the zip."""

    dtype: np.dtype
    key: str


class _Tensor(NamedTuple):
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _read_torch(archive: zipfile.ZipFile, size: int) -> dict[str, np.ndarray]:
    """The state dict of an opened torch file of so many bytes."""
    found = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
    if len(found) != 1:
        raise ValueError("it is a zip, but not one that torch.save wrote.")
    root = found[0].removesuffix("data.pkl")
    # torch compresses nothing, so that what is read is no larger than the file.
    if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
        raise ValueError("it holds compressed data, which torch.save does not write.")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("its numbers are big-endian; write it again on a usual machine.")
    state = _state_dict(_interpreted(archive.read(found[0])))
    wanted = sum(math.prod(one.shape) * one.storage.dtype.itemsize for one in state.values())
    if wanted > size:
        raise ValueError(f"its tensors would have {wanted:,} bytes, and the file has {size:,}.")
    return {
        name: _numbers(name, one, lambda key: archive.read(f"{root}data/{key}"))
        for name, one in state.items()
    }


def _state_dict(found: Any) -> dict[str, _Tensor]:
    """The named tensors in what a file holds."""
    for key in _WITHIN:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not found:
        raise ValueError("it holds no state dict: save model.state_dict().")
    others = [str(name) for name, value in found.items() if not isinstance(value, _Tensor)]
    if others:
        raise ValueError(
            f"it holds no state dict: {', '.join(others[:5])} are no tensors. Save model.state_dict()."
        )
    return {str(name): value for name, value in found.items()}


def _numbers(name: str, tensor: _Tensor, read: Callable[[str], bytes]) -> np.ndarray:
    """A tensor's numbers, copied out of its storage."""
    storage, offset, shape, strides = tensor
    try:
        flat = np.frombuffer(read(storage.key), storage.dtype)
    except KeyError:
        raise ValueError(f"it is damaged: the numbers of {name} are missing.") from None
    # Strides are as good as pointers: look where they lead before following them.
    reach = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if math.prod(shape) and not 0 <= offset <= reach < len(flat):
        raise ValueError(f"it is damaged: {name} reaches beyond its numbers.")
    steps = [step * flat.itemsize for step in strides]
    view = np.lib.stride_tricks.as_strided(flat[offset:], shape, steps)
    return np.array(view)


def _interpreted(pickled: bytes) -> Any:
    """What a pickle of dictionaries, lists, numbers, texts and tensors says.

    Raises:
        ValueError: for any instruction and any name beyond those.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    try:
        codes = list(pickletools.genops(pickled))
    except ValueError as error:
        raise ValueError(f"its pickle is damaged ({error}).") from error
    try:
        for code, argument, _ in codes:
            match code.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return stack.pop()
                case "MARK":
                    marks.append(len(stack))
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(code.name == "NEWTRUE")
                case (
                    "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT"
                    | "BINUNICODE" | "SHORT_BINUNICODE"
                ):  # fmt: skip
                    stack.append(argument)
                case "EMPTY_TUPLE":
                    stack.append(())
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "TUPLE":
                    stack.append(tuple(since_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    length = int(code.name[-1])
                    stack[-length:] = [tuple(stack[-length:])]
                case "APPEND":
                    item = stack.pop()
                    _a(list, stack[-1]).append(item)
                case "APPENDS":
                    items = since_mark()
                    _a(list, stack[-1]).extend(items)
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    _a(dict, stack[-1])[key] = value
                case "SETITEMS":
                    items = since_mark()
                    _a(dict, stack[-1]).update(zip(items[::2], items[1::2], strict=True))
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL":
                    stack.append(_name(argument.replace(" ", ".")))
                case "STACK_GLOBAL":
                    name, module = stack.pop(), stack.pop()
                    stack.append(_name(f"{module}.{name}"))
                case "BINPERSID":
                    stack.append(_storage(stack.pop()))
                case "REDUCE":
                    arguments, function = stack.pop(), stack.pop()
                    stack.append(_called(function, arguments))
                case "BUILD":
                    # A state dict's versions of its modules, as an attribute: of no use here.
                    stack.pop()
                    _a(dict, stack[-1])
                case _:
                    raise ValueError(f"its pickle has the instruction {code.name}.")
    except (IndexError, KeyError, TypeError, UnicodeError) as error:
        raise ValueError(f"its pickle is damaged ({type(error).__name__}).") from error
    raise ValueError("its pickle is damaged.")


def _name(name: str) -> _Name:
    """A name that a pickle asks for, if it is one of those of tensors."""
    if name not in _KNOWN:
        raise ValueError(
            f"it asks for {name}, and only tensors and dictionaries are read, nothing is executed. If you "
            "trust it, save its state dict alone, by torch or as safetensors."
        )
    return _Name(name)


def _storage(saved: Any) -> _Storage:
    """`("storage", type, key, device, length)`."""
    match saved:
        case ("storage", _Name(name), str(key), _, _) if name in _NUMBERS:
            return _Storage(np.dtype(_NUMBERS[name]), key)
    raise ValueError(f"it holds something else than tensors: {str(saved)[:60]}.")


def _called(function: Any, arguments: Any) -> Any:
    """What a known function makes of its arguments."""
    match function, arguments:
        case _Name(name), () if name == _DICT:
            return {}
        case _Name(name), (
            _Storage() as storage,
            int(offset),
            tuple(shape),
            tuple(strides),
            *_,
        ) if name == _TENSOR:
            numbers = (*shape, *strides)
            if len(shape) == len(strides) and all(type(n) is int and n >= 0 for n in numbers):
                return _Tensor(storage, offset, shape, strides)
        case _Name(name), (_Tensor() as tensor, *_) if name == _PARAMETER:
            return tensor
    raise ValueError("its pickle calls something in a way that torch does not.")


def _a(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"its pickle takes a {type(value).__name__} for a {kind.__name__}.")
    return value
