"""Interprets the pickles of `torch.save` without executing them.

A pickle is a program that may call anything. Here an interpreter reads its instructions one by one,
understands the few that tensors and their containers need, and refuses all other instructions and names.
Its time and memory grow with the size of a pickle, whatever that refers to: a container is never followed,
compared or hashed, because it may refer to itself, or to another one twice, that one to a third twice, and
so on; a list of pairs becomes a dictionary once; and keys are texts or numbers. Equal texts are one object,
which is not compared with itself. Numbers are hashed as texts, whose hashes differ from process to process:
by their own, numbers can be chosen, even small ones, of which each walks past all others in a dictionary.
"""

import io
import itertools
import pickletools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dyn.interop.array_names import shorten

# A tensor takes about forty instructions of one to fifty bytes. A million are read in a second.
MAX_BYTES = 64 << 20
_MAX_INSTRUCTIONS = 1_000_000
_MAX_AXES = 64  # numpy's limit and torch's
_MAX_ARGUMENTS = 8  # those of `_rebuild_tensor_v3`

_STORAGES: dict[str, Any] = {
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
    "torch.ComplexFloatStorage": np.complex64,
    "torch.ComplexDoubleStorage": np.complex128,
}
# Bytes, whose tensors name one of these types.
_UNTYPED = ("torch.storage.UntypedStorage", "torch.UntypedStorage")
_DTYPES: dict[str, Any] = {
    "torch.float8_e4m3fn": jnp.float8_e4m3fn,
    "torch.float8_e4m3fnuz": jnp.float8_e4m3fnuz,
    "torch.float8_e5m2": jnp.float8_e5m2,
    "torch.float8_e5m2fnuz": jnp.float8_e5m2fnuz,
    "torch.float8_e8m0fnu": jnp.float8_e8m0fnu,
    "torch.uint16": np.uint16,
    "torch.uint32": np.uint32,
    "torch.uint64": np.uint64,
}
_DICT = "collections.OrderedDict"
_SIZE = "torch.Size"
_TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_TENSOR_WITH_DTYPE = "torch._utils._rebuild_tensor_v3"
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter")
_ALLOWED_NAMES = {
    *(*_STORAGES, *_UNTYPED, *_DTYPES),
    *(_DICT, _SIZE, *_TENSORS, _TENSOR_WITH_DTYPE, *_PARAMETERS),
}

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_KEYS = (str, int, float, bool, type(None))


class Storage(NamedTuple):
    """Numbers that follow the pickle, by their key."""

    dtype: np.dtype
    key: str


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count numbers of `dtype`."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Number(NamedTuple):
    """A number that is a key, as a text."""

    text: str

    def __repr__(self) -> str:
        return self.text


class Pickled(NamedTuple):
    """An interpreted pickle: its content, and the storages that it refers to, by their keys."""

    content: Any
    storages: dict[str, Storage]


class _Name(NamedTuple):
    """A name that a pickle imports."""

    name: str


def interpret(stream: io.BytesIO) -> Pickled:
    """Interprets the pickle of dictionaries, lists, numbers, texts and tensors at the stream's position.

    Raises:
        ValueError: for any other instruction or name, and for a pickle that is damaged or too large.
    """
    machine = _Machine()
    try:
        for code, argument in _read_instructions(stream):
            if code == "STOP":
                return Pickled(machine.stack.pop(), machine.storages)
            machine.step(code, argument)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"its pickle is damaged ({type(error).__name__}).") from error
    raise ValueError(f"its pickle has more than {_MAX_INSTRUCTIONS:,} instructions.")


def _read_instructions(stream: io.BytesIO) -> Iterator[tuple[str, Any]]:
    try:
        for code, argument, _ in itertools.islice(pickletools.genops(stream), _MAX_INSTRUCTIONS):
            yield code.name, argument
    except ValueError as error:  # of genops alone: those of the loop's body are not raised here
        raise ValueError(f"its pickle is damaged ({shorten(str(error))}).") from error


class _Machine:
    """The state of a pickle's interpreter: a stack with marks, a memo, and the storages so far."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[str, Any] = {}  # by number, as a text
        self.texts: dict[str, str] = {}
        self.storages: dict[str, Storage] = {}

    def step(self, code: str, argument: Any) -> None:
        """Interprets one instruction."""
        stack, memo = self.stack, self.memo
        match code:
            case "PROTO" | "FRAME":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            # Python 2 wrote its texts as `BINSTRING`.
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINSTRING" | "SHORT_BINSTRING":
                stack.append(self.texts.setdefault(argument, argument))
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
                stack[-1].update(_pair(items))
            case "BINPUT" | "LONG_BINPUT":
                memo[str(argument)] = stack[-1]
            case "MEMOIZE":
                memo[str(len(memo))] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[str(argument)])
            case "GLOBAL":
                stack.append(_check_name(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_check_name(".".join((module, name))))
            case "BINPERSID":
                stack.append(self.add_storage(stack.pop()))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments))
            case "BUILD":
                stack.pop()  # attributes, as of versions of modules: not needed
            case _:
                raise ValueError(f"its pickle has the unsupported instruction {code}.")

    def add_storage(self, saved: Any) -> Storage:
        """Notes the storage of a reference, and returns it."""
        storage = _make_storage(saved)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError("its pickle is damaged: a storage has two types.")
        return storage

    def pop_to_mark(self) -> list[Any]:
        """Removes and returns everything above the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items


def _pair(items: list[Any]) -> dict[Any, Any]:
    """Returns the dictionary of a list of keys and values in turn.

    Containers as keys would be hashed: one may be so deep that hashing it is a segmentation fault, or hold
    another one twice, and that a third twice, so that it does not end.
    """
    keys, values = items[::2], items[1::2]
    if len(keys) != len(values):
        raise ValueError("its pickle is damaged: a dictionary has a key without a value.")
    others = [key for key in keys if type(key) not in _KEYS]
    if others:
        raise ValueError(
            f"it has a dictionary with a {type(others[0]).__name__} as key, but keys are texts or numbers."
        )
    keys = [Number(repr(key)) if type(key) in (int, float) else key for key in keys]
    return dict(zip(keys, values, strict=True))


def _take_pairs(pairs: list[Any]) -> dict[Any, Any]:
    """Returns the dictionary of a list of pairs, and spoils the list: a second dictionary is refused."""
    if not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError(
            "its pickle has a call that torch does not write: a dictionary of no pairs."
        )
    items = list(itertools.chain.from_iterable(pairs))
    pairs[:] = [None]
    return _pair(items)


def _check_name(name: str) -> _Name:
    """Returns a name that a pickle imports, if tensors need it."""
    if name not in _ALLOWED_NAMES:
        raise ValueError(
            f"it uses {shorten(name)}, but only tensors and dictionaries are read and nothing is executed. "
            "If you trust the file, save only its state dict, with torch or as safetensors."
        )
    return _Name(name)


def _make_storage(saved: Any) -> Storage:
    """Returns the storage of `("storage", type, key, device, length)`; files before torch 1.6 add None."""
    match saved:
        case ("storage", _Name(name), str(key), _, _, *view) if view in ([], [None]):
            if name in _STORAGES:
                return Storage(np.dtype(_STORAGES[name]), key)
            if name in _UNTYPED:
                return Storage(np.dtype(np.uint8), key)
    raise ValueError("it holds something other than tensors among its numbers.")


def _call(function: Any, arguments: Any) -> Any:
    """Returns the result of a known function."""
    match function, arguments:
        case _, _ if not isinstance(arguments, tuple) or len(arguments) > _MAX_ARGUMENTS:
            pass
        case _Name(name), () if name == _DICT:
            return {}
        case _Name(name), (list(pairs),) if name == _DICT:  # as Python 2 wrote it
            return _take_pairs(pairs)
        case _Name(name), (tuple(shape),) if name == _SIZE:
            return shape
        case _Name(name), (Storage() as storage, offset, shape, strides, *more) if name in _TENSORS:
            # More are `requires_grad`, hooks, and marks of tensors that are to be conjugated or negated.
            if len(more) > 2 and more[2]:
                raise ValueError(
                    "it has a conjugated or negated tensor: save tensor.resolve_neg()."
                )
            return _make_tensor(storage, storage.dtype, offset, shape, strides)
        case (
            _Name(name),
            (Storage() as storage, offset, shape, strides, _, _, _Name(dtype), *more),
        ) if name == _TENSOR_WITH_DTYPE and dtype in _DTYPES and not any(more):
            return _make_tensor(storage, np.dtype(_DTYPES[dtype]), offset, shape, strides)
        case _Name(name), (Tensor() as tensor, *_) if name in _PARAMETERS:
            return tensor
    raise ValueError("its pickle has a call that torch does not write.")


def _make_tensor(
    storage: Storage, dtype: np.dtype, offset: Any, shape: Any, strides: Any
) -> Tensor:
    if isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides):
        sizes = (*shape, *strides)
        if (
            type(offset) is int
            and len(shape) <= _MAX_AXES
            and all(type(n) is int and 0 <= n < 1 << 63 for n in sizes)
        ):
            return Tensor(storage, dtype, offset, shape, strides)
    raise ValueError("its pickle has a call that torch does not write: a tensor without a shape.")
