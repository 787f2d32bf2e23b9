"""Reads the final schedules that the TPU compiler writes: the cycles of a kernel without waiting for memory.

A schedule is a list of bundles; the chip issues one a cycle. This is a sketch of one:

       0   :  { ... }
     0x1 LB: > { %s9 = sadd.s32 1, %s8  ;;  %s8 = sphi %s7, %s9 }
     0x2   : > { %p1 = scmp.ge.s32.totalorder %s9, 24 /* loop exit test */ }
     0x3   : > { %15 = sbr.rel (!%p1) target = $region37 }
     0x4   :  {}

`LB` opens a loop, the branch on its exit test closes it, a few bundles later. Each bundle counts as often as
the loops around it turn. Bundles that a branch may skip count as if they ran.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path

BUNDLE = re.compile(r"^ *(?:0x)?[0-9a-f]+ +(\w\w)?: ", re.MULTILINE)
EXIT_TEST = re.compile(
    r"(%p\w+) = scmp\.ge\.s32\.totalorder (?:\(!?%p\w+\), )?(%s\w+), (\d+)[^;]*?/\* loop exit test"
)
LABELLED_TEST = re.compile(r"(%p\w+) = scmp[^;]*?/\* loop exit test")
BRANCH = re.compile(r"sbr\.rel \(!(%p\w+)\)")
EXIT_BUNDLE = re.compile(r"exit bundle: %?([\w.\-]+) = ")
# A grid's loop has up to two turns more than the grid has steps: its copies start before and end after.
EXTRA_TURNS = 2


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Cycles of a kernel, and the number of its loops whose turns are not written down; those count once."""

    cycles: int
    unknown_loops: int = 0


def count_cycles(text: str, delay_slots: int) -> Schedule:
    """Counts the cycles of a schedule.

    Args:
        text: the schedule.
        delay_slots: the number of bundles after a branch that still belong to the loop.
    """
    starts = [match.start() for match in BUNDLE.finditer(text)]
    bundles = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
    definitions = _find_definitions(text)
    ends: dict[str, int] = {}  # of the loops, by the name of their exit test
    for position, bundle in enumerate(bundles):
        for test in BRANCH.findall(bundle):
            ends[test] = position + delay_slots
    loop_starts = [i for i, bundle in enumerate(bundles) if BUNDLE.match(bundle)[1] == "LB"]
    turns, unknown = _count_turns(bundles, loop_starts, ends, definitions)
    cycles = sum(
        math.prod(n for (start, end), n in turns.items() if start <= position <= end)
        for position in range(len(bundles))
    )
    return Schedule(cycles, unknown)


def _count_turns(
    bundles: list[str],
    loop_starts: list[int],
    ends: Mapping[str, int],
    definitions: Mapping[str, str],
) -> tuple[dict[tuple[int, int], int], int]:
    """Returns the turns of each loop by its first and last bundle, and the number of unknown ones."""
    tests = {
        match[1]: ends[match[1]]
        for bundle in bundles
        for match in LABELLED_TEST.finditer(bundle)
        if match[1] in ends
    }
    turns, unknown = {}, 0
    # The innermost loop opens last and is the first to close.
    for start in reversed(loop_starts):
        closing = [(end, test) for test, end in tests.items() if end >= start]
        if not closing:
            unknown += 1
            continue
        end, test = min(closing)
        del tests[test]
        body = "".join(bundles[start : end + 1])
        count = _read_turns(body, test, definitions)
        unknown += count is None
        turns[start, end] = count or 1
    return turns, unknown


def _read_turns(body: str, test: str, definitions: Mapping[str, str]) -> int | None:
    """Returns the number of turns of a loop from its exit test, None if its limit is no constant."""
    found = next((match for match in EXIT_TEST.finditer(body) if match[1] == test), None)
    if found is None:
        return None
    limit, step, start = int(found[3]), 1, 0
    if added := re.match(r"sadd\.s32 (\d+), (%s\w+)", definitions.get(found[2], "")):
        step = int(added[1])
        counter = re.match(r"sphi (%s\w+),", definitions.get(added[2], ""))
        first = re.match(r"smov (\d+)", definitions.get(counter[1], "")) if counter else None
        start = int(first[1]) if first else 0
    turns = math.ceil((limit - start) / step)
    bounds = re.search(r"iteration_bounds: \(([\d, ]+)\)", body)
    if bounds and "iteration index, stage" in body:
        steps = math.prod(int(n) for n in bounds[1].split(",") if n.strip())
        if 0 <= turns - steps <= EXTRA_TURNS:
            return steps
    return max(1, turns)


def _find_definitions(text: str) -> dict[str, str]:
    """Returns the instruction that defines each scalar register."""
    return dict(re.findall(r"(%s\w+) = (s(?:add|mov|phi)[^;}/]*)", text))


def read_kernels(folder: Path, delay_slots: int) -> dict[str, Schedule]:
    """Reads the schedules that the TPU compiler wrote to a folder, by the name of the operation.

    Operations that are alike share one file, so the map that the compiler writes of them is read as well.
    """
    kernels = {}
    for path in sorted(folder.glob("*-final_bundles.txt")):
        if path.name.endswith("schedule-analysis_final_bundles.txt"):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if "tpu_custom_call" not in text and "custom-call(" not in text:
            continue
        if name := EXIT_BUNDLE.search(text):
            kernels[name[1]] = count_cycles(text, delay_slots)
    for path in sorted(folder.glob("*-deduplication-map.txt")):
        for group in path.read_text(encoding="utf-8").split("key:")[1:]:
            names = re.findall(r"^ +(\S+)$", group, re.MULTILINE)
            known = [kernels[name] for name in names if name in kernels]
            kernels |= dict.fromkeys(names, known[0]) if known else {}
    return kernels
