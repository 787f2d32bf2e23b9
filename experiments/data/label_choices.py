"""Finds the parts of files' names that could be their labels, so that nobody has to write a pattern."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from experiments.core.console import print_facts, print_line
from experiments.core.words import count_noun

_SEPARATORS = " _-."
_MAX_PARTS = 4
_MAX_NAMES = 5_000
_MAX_CHOICES = 6
_COVERAGE = 0.9
"""Share of the names that have the part."""


class Choice(NamedTuple):
    """A part of the names: the pattern whose group it is, and how many files each value of it has."""

    pattern: str
    counts: Counter[str]


def list_choices(names: Sequence[str]) -> list[Choice]:
    """Returns the parts that nearly all names have, and that several names share.

    Example:
        >>> names = ["wren 1.wav", "wren 2.wav", "owl 1.wav", "owl 2.wav"]
        >>> [(pattern, dict(counts)) for pattern, counts in list_choices(names)]
        [('(?:^|/)([^/]*?)[ _.-]*\\\\d+\\\\.[^/.]+$', {'wren': 2, 'owl': 2})]
    """
    names = names[:: -(-len(names) // _MAX_NAMES) or 1]
    choices, seen = [], set()
    for pattern in _make_patterns(names):
        matches = [re.search(pattern, name) for name in names]
        labels = tuple(match[1].strip() if match else "" for match in matches)
        counts = Counter(label for label in labels if label)
        is_named = sum(not re.fullmatch(r"[\d\W]+", label) for label in counts) * 2 > len(counts)
        is_shared = 2 <= len(counts) <= len(names) / 2
        if labels in seen or not is_named or not is_shared:
            continue
        if counts.total() >= _COVERAGE * len(names):
            seen.add(labels)
            choices.append(Choice(pattern, counts))
    return choices[:_MAX_CHOICES]


def print_choices(names: Sequence[str]) -> bool:
    """Prints a flag for each part that could be the label, and the classes; returns whether there is one."""
    choices = list_choices(names)
    rows = [
        (f"--config.audio.label_pattern='{one.pattern}'", _describe(one.counts)) for one in choices
    ]
    if rows:
        print_line()
        print_facts("Parts of the names that could be the label", rows)
    return bool(rows)


def _describe(counts: Counter[str]) -> str:
    first = ", ".join(f"{label} ({number:,})" for label, number in counts.most_common(5))
    return f"{count_noun(len(counts), 'class', 'classes')}: {first}{', ...' if len(counts) > 5 else ''}"


def _make_patterns(names: Sequence[str]) -> Iterator[str]:
    """Yields patterns for folders, for what precedes a number, and for the parts between separators."""
    for depth in range(max((name.count("/") for name in names), default=0)):
        yield f"^{'[^/]+/' * depth}([^/]+)/"
    yield r"(?:^|/)([^/]*?)[ _.-]*\d+\.[^/.]+$"
    yield r"(?:^|/)([^\W\d_]+)[^/]*$"
    for separator in _SEPARATORS:
        s = re.escape(separator)
        for before in range(_MAX_PARTS):
            yield rf"(?:^|/){rf'[^/{s}]+{s}' * before}([^/{s}]+){s}[^/]*$"
        yield rf"{s}([^/{s}]+)\.[^/.]+$"
