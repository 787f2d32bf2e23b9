"""Reads compiled programs, the text of XLA's optimised HLO: loops, costs, traffic, collectives and sources.

Everything here is a function of texts. The words of the format: a module has computations, one of them is the
entry; a computation is a list of operations, the last one, `ROOT`, is its value.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

SHAPE = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
# On a TPU S(1) is the memory inside the chip's core, S(2) its flags; the main memory has no mark.
ELSEWHERE = re.compile(r"S\([1-9]\)")
CALLED = re.compile(r"\b(?:calls|to_apply|body)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Operations that only name or group values.
NAMES_ONLY = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all partition-id "
    "replica-id add-dependency opt-barrier async-start async-update async-done "
    "custom-call:ConcatBitcast".split()
)
SLICES = frozenset(("slice", "dynamic-slice", "gather", "slice-start"))
PASSES_ON = frozenset(("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start"))


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a program, as its line of text describes it."""

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    literal: str  # between the parentheses, which is the value of a constant
    attributes: str


@dataclasses.dataclass(frozen=True)
class Computation:
    """The operations of a computation by name, in order, and the name of the last one."""

    name: str
    operations: Mapping[str, Operation]
    root: Operation


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
        computations: by name.
        entry: the name of the one that is called.
        frames: for each frame of the stack, its file, its line and the frame that called it, 0 for none.
        callers: for each condition and body of a loop, the loop and the name of the computation it is in.
    """

    computations: Mapping[str, Computation]
    entry: str
    frames: Mapping[int, tuple[str, int, int]]
    callers: Mapping[str, tuple[Operation, str]]


def parse_module(text: str) -> Module:
    """Parses what `compiled.as_text()` returns."""
    computations: dict[str, Computation] = {}
    entry, name, operations, root = "", "", {}, None
    for line in text.splitlines():
        if line.endswith("{") and (header := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
            name, operations, root = header[2], {}, None
            entry = name if header[1] else entry
        elif line.startswith("}") and name:
            last = root or next(reversed(operations.values()))
            computations[name] = Computation(name, operations, last)
            name = ""
        elif name and (operation := _parse_operation(line)):
            operations[operation.name] = operation
            root = operation if line.lstrip().startswith("ROOT ") else root
    callers = {
        called: (operation, computation.name)
        for computation in computations.values()
        for operation in computation.operations.values()
        if operation.opcode == "while"
        for called in re.findall(r"(?:condition|body)=%?([\w.\-]+)", operation.attributes)
    }
    return Module(computations, entry, _parse_frames(text), callers)


def _parse_operation(line: str) -> Operation | None:
    """Parses a line such as `%y = f32[8]{0} add(%a, %b), metadata={...}`; None for any other line."""
    found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    start = found.end()
    # A type is one word, or a tuple in parentheses.
    end = _find_close(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    opens = line.index("(", end)
    closes = _find_close(line, opens)
    inside = line[opens + 1 : closes]
    opcode, attributes = line[end:opens].strip(), line[closes + 1 :]
    if target := re.search(r'custom_call_target="([^"]*)"', attributes):
        opcode = f"{opcode}:{target[1]}"
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Operation(found[1], opcode, line[start:end], operands, inside, attributes)


def _find_close(text: str, start: int) -> int:
    """Returns the position of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    raise ValueError(f"a parenthesis is never closed: {text[start : start + 80]}")


def walk_operations(
    module: Module, choose: Callable[..., str] = min
) -> Iterator[tuple[Operation, str, float | None]]:
    """Yields every operation that runs, the name of its computation, and how often it runs.

    A loop's body runs as often as the loop turns, None if that is not written in the program. The operations
    inside a fusion are one operation, the fusion.

    Args:
        module: the program.
        choose: which branch of a conditional counts: min for the one with the fewest estimated cycles, which
            is how the library writes what rarely happens, or max.
    """
    yield from _walk(module, module.entry, 1, choose)


def _walk(
    module: Module, name: str, times: float | None, choose: Callable[..., str]
) -> Iterator[tuple[Operation, str, float | None]]:
    def count_cycles(name: str) -> float:
        walked = _walk(module, name, 1, choose)
        return sum((read_cycles(one) or 0) * (turns or 1) for one, _, turns in walked)

    for operation in module.computations[name].operations.values():
        yield operation, name, times
        if operation.opcode == "while":
            trips = count_trips(module, operation, name)
            inner = None if trips is None or times is None else times * trips
            body = _read_called(operation, "body")
            yield from _walk(module, body, inner, choose) if body else ()
        elif operation.opcode in ("call", "async-start"):
            for called in CALLED.findall(operation.attributes):
                yield from _walk(module, called, times, choose)
        elif operation.opcode == "conditional":
            named = " ".join(map(" ".join, BRANCHES.findall(operation.attributes)))
            branch = choose(re.findall(r"[\w.\-]+", named), key=count_cycles)
            yield from _walk(module, branch, times, choose)


def count_trips(module: Module, loop: Operation, within: str) -> int | None:
    """Returns the number of turns of a `while` in the computation `within`, None if it is not a constant.

    A GPU's program writes it down. A TPU's has a condition that compares a counter with a constant.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    condition, body = _read_called(loop, "condition"), _read_called(loop, "body")
    if not condition or not body:
        return None
    compared = _find_comparison(module, condition)
    if compared is None:
        return None
    counter, limit_name, direction = compared
    index = _read_index(counter)
    limit = _find_constant(module, condition, limit_name)
    start = _find_element(module, within, loop.operands[0], index)
    step = _find_step(module, body, index)
    if limit is None or start is None or not step:
        return None
    turns = (limit - start) / step
    if direction in ("LE", "GE"):
        return max(0, math.floor(turns) + 1)
    return max(0, math.ceil(turns))


def _find_comparison(module: Module, condition: str) -> tuple[Operation, str, str] | None:
    """Returns the counter that a condition compares, the name of its limit, and the direction such as LT."""
    computation = module.computations[condition]
    root = computation.root
    names: Sequence[str] = root.operands
    if root.opcode == "fusion":
        inner = module.computations[CALLED.findall(root.attributes)[0]]
        places = [_read_parameter(inner.operations[name]) for name in inner.root.operands]
        if None in places:
            return None
        names, root = [names[place] for place in places if place is not None], inner.root
    direction = re.search(r"direction=(\w+)", root.attributes)
    if root.opcode != "compare" or not direction or len(names) != 2:
        return None
    counter = _trace(computation, names[0])
    if counter is None or counter.opcode != "get-tuple-element":
        return None
    return counter, names[1], direction[1]


def _trace(computation: Computation, name: str) -> Operation | None:
    """Returns the operation that made a value, before copies and conversions of it."""
    operation = computation.operations.get(name)
    while operation and operation.opcode in PASSES_ON and len(operation.operands) == 1:
        operation = computation.operations.get(operation.operands[0])
    return operation


def _find_constant(module: Module, within: str, name: str) -> int | None:
    """Returns the whole number that a value always is, None if it may change."""
    operation = _trace(module.computations[within], name)
    if operation is None:
        return None
    if operation.opcode == "constant":
        return int(operation.literal) if re.fullmatch(r"-?\d+", operation.literal) else None
    if operation.opcode != "get-tuple-element" or within not in module.callers:
        return None
    # An element of a loop's state is constant if no turn changes it and it was constant before.
    loop, outside = module.callers[within]
    index = _read_index(operation)
    body = _read_called(loop, "body")
    root = module.computations[body].root if body else None
    if body is None or root is None or root.opcode != "tuple":
        return None
    kept = _trace(module.computations[body], root.operands[index])
    if kept is None or kept.opcode != "get-tuple-element" or _read_index(kept) != index:
        return None
    return _find_element(module, outside, loop.operands[0], index)


def _find_element(module: Module, within: str, name: str, index: int) -> int | None:
    """Returns the whole number that an element of a tuple always is, None if it may change."""
    operation = _trace(module.computations[within], name)
    if operation is None or operation.opcode != "tuple":
        return None
    return _find_constant(module, within, operation.operands[index])


def _find_step(module: Module, body: str, index: int) -> int | None:
    """Returns the number by which each turn changes a counter, None if that is not a constant."""
    computation = module.computations[body]
    if computation.root.opcode != "tuple":
        return None
    added = _trace(computation, computation.root.operands[index])
    if added is None or added.opcode not in ("add", "subtract"):
        return None
    steps = [_find_constant(module, body, name) for name in added.operands]
    known = [step for step in steps if step is not None]
    if len(known) != 1:
        return None
    return -known[0] if added.opcode == "subtract" else known[0]


def _read_called(loop: Operation, role: str) -> str | None:
    """Returns the name of the computation that is the `body` or the `condition` of a loop."""
    found = re.search(rf"\b{role}=%?([\w.\-]+)", loop.attributes)
    return found[1] if found else None


def _read_index(operation: Operation) -> int:
    """Returns the place in its tuple of a get-tuple-element."""
    return int(re.search(r"index=(\d+)", operation.attributes)[1])


def _read_parameter(operation: Operation) -> int | None:
    """Returns the number of a parameter; None for another operation."""
    return int(operation.literal) if operation.opcode == "parameter" else None


def read_cycles(operation: Operation) -> int | None:
    """Returns the cycles that the TPU compiler estimates for an operation, None if it says nothing."""
    found = re.search(r'"estimated_cycles":"(\d+)"', operation.attributes)
    return int(found[1]) if found else None


def is_kernel(operation: Operation) -> bool:
    """Returns true for a Pallas kernel, for which the TPU compiler has no estimate."""
    return operation.opcode == "custom-call:tpu_custom_call"


def read_kernel_body(operation: Operation) -> str | None:
    """Returns the encoded program of a Pallas kernel for a TPU, None if it is not written down."""
    found = re.search(r'"body":"([^"]*)"', operation.attributes)
    return found[1] if found else None


def count_collectives(module: Module) -> dict[str, int]:
    """Counts the collectives by kind; in a loop of unknown length they count once."""
    counts: Counter[str] = Counter()
    for operation, _, times in walk_operations(module):
        inside = [operation]
        if operation.opcode == "fusion":
            called = CALLED.findall(operation.attributes)
            inside = [o for name in called for o in module.computations[name].operations.values()]
        for one in inside:
            kind = one.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                counts[kind] += int(times or 1)
    return dict(counts)


def count_shape_bytes(text: str) -> int:
    """Counts the bytes of the arrays of a type that lie in the main memory, such as `(f32[8]{0}, s32[])`."""
    total = 0
    for dtype, lengths, layout in SHAPE.findall(text):
        if ELSEWHERE.search(layout):
            continue
        bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
        total += math.prod(int(n) for n in lengths.split(",") if n) * bits // 8
    return total


def count_traffic(module: Module, operation: Operation, within: str) -> int:
    """Counts the bytes that an operation reads from the main memory and writes to it.

    These are its operands and its results, each once. Of an array that is only sliced, or changed in place in
    a slice, the slice counts.
    """
    if operation.opcode in NAMES_ONLY:
        return 0
    types = module.computations[within].operations
    sizes = [
        count_shape_bytes(types[name].type) if name in types else 0 for name in operation.operands
    ]
    result = 0 if operation.opcode.endswith("-start") else count_shape_bytes(operation.type)
    if operation.opcode.endswith("-done"):
        return result
    if operation.opcode in SLICES:
        # The type of a slice-start is a tuple: the operand, the slice and a flag.
        shapes = SHAPE.findall(operation.type)
        dtype, lengths, _ = shapes[1] if operation.opcode == "slice-start" else shapes[0]
        part = count_shape_bytes(f"{dtype}[{lengths}]")
        return min(sizes[0], part) + sum(sizes[1:]) + result
    if operation.opcode == "dynamic-update-slice":
        return 2 * sizes[1] if result else sizes[1]
    if operation.opcode == "fusion":
        inner = module.computations[CALLED.findall(operation.attributes)[0]]
        for index, size in enumerate(sizes):
            sizes[index] = min(size, _count_read_bytes(inner, index, size))
        result = min(result, _count_written_bytes(inner, result))
    return sum(sizes) + result


def _count_read_bytes(fusion: Computation, index: int, size: int) -> int:
    """Counts the bytes that a fusion reads of one of its operands, which has `size` bytes."""
    named = [o.name for o in fusion.operations.values() if _read_parameter(o) == index]
    total = 0
    for name in named:
        for user in fusion.operations.values():
            if name not in user.operands:
                continue
            first = user.operands[0] == name
            if user.opcode in SLICES and first:
                total += _count_whole_bytes(user.type)
            elif not (user.opcode == "dynamic-update-slice" and first):
                return size
    return total


def _count_written_bytes(fusion: Computation, size: int) -> int:
    """Counts the bytes that a fusion writes, whose results have `size` bytes."""
    root = _trace(fusion, fusion.root.name)
    if root is not None and root.opcode == "dynamic-update-slice":
        return _count_whole_bytes(fusion.operations[root.operands[1]].type)
    return size


def _count_whole_bytes(text: str) -> int:
    """Counts the bytes of the arrays of a type, in any memory."""
    return count_shape_bytes(re.sub(r"\{[^}]*\}", "", text))


def find_source(module: Module, operation: Operation, folders: Sequence[str]) -> tuple[str, str]:
    """Returns the name that JAX gave an operation and its source, such as `dyn/layers/od_conv.py:92`.

    A fusion has those of its last operation that has any.

    Args:
        module: the program.
        operation: one of its operations.
        folders: of the source files to name, such as `/dyn/`; the innermost call in one of them is taken, and
            the innermost of all if there is none. The path is written from the folder on.
    """
    inside = [operation]
    if operation.opcode == "fusion":
        for name in CALLED.findall(operation.attributes):
            inside += reversed(module.computations[name].operations.values())
    for one in inside:
        named = re.search(r'op_name="((?:[^"\\]|\\.)*)"', one.attributes)
        frame = re.search(r"stack_frame_id=(\d+)", one.attributes)
        if named and frame:
            return named[1], _describe_frame(module.frames, int(frame[1]), folders)
        if named and (
            place := re.search(r'source_file="([^"]*)" source_line=(\d+)', one.attributes)
        ):
            return named[1], f"{place[1]}:{place[2]}"
    return "", ""


def _describe_frame(
    frames: Mapping[int, tuple[str, int, int]], frame: int, folders: Sequence[str]
) -> str:
    """Returns the file and the line of the innermost frame in one of the folders."""
    innermost = ""
    while frame in frames:
        file, line, frame = frames[frame]
        for folder in folders:
            if folder in file:
                return f"{file[file.rindex(folder) + 1 :]}:{line}"
        innermost = innermost or f"{file}:{line}"
    return innermost


def _parse_frames(text: str) -> dict[int, tuple[str, int, int]]:
    """Parses the tables of files, places and stack frames at the top of a program."""
    head = text.partition("\n%")[0]
    tables = {
        name: dict(re.findall(r"^(\d+) (.*)$", rows, re.MULTILINE))
        for name, rows in re.findall(r"^(\w+)\n((?:\d+ .*\n?)+)", head, re.MULTILINE)
    }
    frames = {}
    for number, row in tables.get("StackFrames", {}).items():
        location, parent = map(int, re.findall(r"=(\d+)", row))
        place = tables["FileLocations"][str(location)]
        file = tables["FileNames"][re.search(r"file_name_id=(\d+)", place)[1]].strip('"')
        line = int(re.search(r"\bline=(\d+)", place)[1])
        # Parents are counted from 2; 1 is none.
        frames[int(number)] = (file, line, parent - 1)
    return frames
