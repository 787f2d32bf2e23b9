"""Reads files of weights, safetensors or written by `torch.save`, without torch.

A torch file is a zip archive of a pickle and of raw numbers. A pickle is a program that may call anything.
Here it is not executed: an interpreter reads its instructions one by one, understands the few that a state
dict needs, and refuses all other instructions and names.
"""

import math
import os
import pickletools
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

_DTYPES = {
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
_ALLOWED_NAMES = {*_DTYPES, _DICT, _TENSOR, _PARAMETER}
# Keys of the state dict in training checkpoints.
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "net")

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the tensors of a file, by name; executes nothing in it.

    In a torch file they are the state dict, or the one that a training checkpoint holds as `state_dict`,
    `model_state_dict`, `model` or `net`.

    Args:
        path: a `.safetensors` file, or a `.pth`, `.pt` or `.bin` written by torch 1.6 or newer. The content
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
        start = file.read(9)
    if start[8:] == b"{":
        return _read_safetensors(path)
    if start[:2] == b"\x80\x02":
        raise ValueError(
            f"{path} has the format of torch before 1.6: convert it with a newer torch, "
            "torch.save(torch.load(FILE), NEW)."
        )
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is not a file of weights: pass a .safetensors file, or a state dict written by "
            "torch.save."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_torch(archive, file_size=os.path.getsize(path))
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
            f"reading {path} needs the library safetensors: pip install safetensors."
        ) from error
    try:
        return {name: np.asarray(value) for name, value in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error


class _Name(NamedTuple):
    """A name that a pickle imports."""

    name: str


class _Storage(NamedTuple):
    """Raw numbers in a file of the archive."""

    dtype: np.dtype
    key: str


class _Tensor(NamedTuple):
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _read_torch(archive: zipfile.ZipFile, file_size: int) -> dict[str, np.ndarray]:
    """Reads the state dict of an opened torch file of `file_size` bytes."""
    names = archive.namelist()
    pickles = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise ValueError("it is a zip archive that torch.save did not write.")
    root = pickles[0].removesuffix("data.pkl")
    # torch does not compress, so that no file is larger than the archive.
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise ValueError("it holds compressed data, which torch.save does not write.")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("its numbers are big-endian: save it again on a little-endian machine.")
    tensors = _find_state_dict(_interpret(archive.read(pickles[0])))
    num_bytes = sum(math.prod(t.shape) * t.storage.dtype.itemsize for t in tensors.values())
    if num_bytes > file_size:
        raise ValueError(f"its tensors need {num_bytes:,} bytes, but the file has {file_size:,}.")
    return {
        name: _read_tensor(name, tensor, lambda key: archive.read(f"{root}data/{key}"))
        for name, tensor in tensors.items()
    }


def _find_state_dict(content: Any) -> dict[str, _Tensor]:
    """Returns the named tensors of a state dict, or of the one in a training checkpoint."""
    if isinstance(content, dict):
        inner = (content[key] for key in _STATE_DICT_KEYS if isinstance(content.get(key), dict))
        content = next(inner, content)
    if not isinstance(content, dict) or not content:
        raise ValueError("it holds no state dict: save model.state_dict().")
    others = [str(name) for name, value in content.items() if not isinstance(value, _Tensor)]
    if others:
        raise ValueError(
            f"it holds no state dict: {', '.join(others[:5])} are not tensors. Save model.state_dict()."
        )
    return {str(name): value for name, value in content.items()}


def _read_tensor(name: str, tensor: _Tensor, read: Callable[[str], bytes]) -> np.ndarray:
    """Copies the numbers of a tensor out of its storage."""
    storage, offset, shape, strides = tensor
    try:
        flat = np.frombuffer(read(storage.key), storage.dtype)
    except KeyError:
        raise ValueError(f"it is damaged: the numbers of {name} are missing.") from None
    # Strides are as dangerous as pointers: check their range before following them.
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if math.prod(shape) and not 0 <= offset <= last < len(flat):
        raise ValueError(f"it is damaged: {name} reaches beyond its numbers.")
    byte_strides = [step * flat.itemsize for step in strides]
    view = np.lib.stride_tricks.as_strided(flat[offset:], shape, byte_strides)
    return np.array(view)


def _interpret(pickled: bytes) -> Any:
    """Interprets a pickle of dictionaries, lists, numbers, strings and tensors.

    Raises:
        ValueError: for any other instruction or name, and for a damaged pickle.
    """
    try:
        instructions = [(code.name, argument) for code, argument, _ in pickletools.genops(pickled)]
    except ValueError as error:
        raise ValueError(f"its pickle is damaged ({error}).") from error
    machine = _Machine()
    try:
        for code, argument in instructions:
            if code == "STOP":
                return machine.stack.pop()
            machine.step(code, argument)
    except (AttributeError, IndexError, KeyError, TypeError, UnicodeError) as error:
        raise ValueError(f"its pickle is damaged ({type(error).__name__}).") from error
    raise ValueError("its pickle is damaged.")


class _Machine:
    """The state of a pickle's interpreter: a stack with marks, and a memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, code: str, argument: Any) -> None:
        """Interprets one instruction."""
        stack, memo = self.stack, self.memo
        match code:
            case "PROTO" | "FRAME":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case _ if code in _CONSTANTS:
                stack.append(_CONSTANTS[code])
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                self.marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self.pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(code[-1])
                stack[-length:] = [tuple(stack[-length:])]
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if code == "APPEND" else self.pop_to_mark()
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = [stack.pop(-2), stack.pop()] if code == "SETITEM" else self.pop_to_mark()
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_check_name(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_check_name(f"{module}.{name}"))
            case "BINPERSID":
                stack.append(_make_storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments))
            case "BUILD":
                stack.pop()  # attributes of a state dict (versions of its modules): not needed
            case _:
                raise ValueError(f"its pickle has the unsupported instruction {code}.")

    def pop_to_mark(self) -> list[Any]:
        """Removes and returns everything above the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items


def _check_name(name: str) -> _Name:
    """Returns a name that a pickle imports, if tensors need it."""
    if name not in _ALLOWED_NAMES:
        raise ValueError(
            f"it uses {name}, but only tensors and dictionaries are read and nothing is executed. If you "
            "trust the file, save only its state dict, with torch or as safetensors."
        )
    return _Name(name)


def _make_storage(saved: Any) -> _Storage:
    """Returns the storage of `("storage", type, key, device, length)`."""
    match saved:
        case ("storage", _Name(name), str(key), _, _) if name in _DTYPES:
            return _Storage(np.dtype(_DTYPES[name]), key)
    raise ValueError(f"it holds something other than tensors: {str(saved)[:60]}.")


def _call(function: Any, arguments: Any) -> Any:
    """Returns the result of a known function."""
    match function, arguments:
        case _Name(name), () if name == _DICT:
            return {}
        case (
            _Name(name),
            (_Storage() as storage, int(offset), tuple(shape), tuple(strides), *_),
        ) if name == _TENSOR:
            sizes = (*shape, *strides)
            if len(shape) == len(strides) and all(type(n) is int and n >= 0 for n in sizes):
                return _Tensor(storage, offset, shape, strides)
        case _Name(name), (_Tensor() as tensor, *_) if name == _PARAMETER:
            return tensor
    raise ValueError("its pickle has a call that torch does not write.")
