"""Lists the differences between two sets of settings or shapes, for messages."""

from collections.abc import Iterable, Mapping
from typing import Any


def describe_differences(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    template: str = "{name} was {old!r} and is now {new!r}",
    names: Iterable[str] | None = None,
    missing: Any = None,
    limit: int | None = None,
) -> str:
    """Returns a phrase for each name whose value differs, joined by semicolons; '' if none does.

    Args:
        old: the values that are recorded.
        new: the values at hand.
        template: how one difference reads, with the fields `name`, `old` and `new`.
        names: the names to compare, in the order of the message; by default all of both.
        missing: stands for a value that one side lacks.
        limit: the largest number of differences to spell out; the rest are counted.
    """
    phrases = [
        template.format(name=name, old=old.get(name, missing), new=new.get(name, missing))
        for name in ({**old, **new} if names is None else names)
        if old.get(name, missing) != new.get(name, missing)
    ]
    if limit is not None and len(phrases) > limit:
        phrases = [*phrases[:limit], f"and {len(phrases) - limit} more"]
    return "; ".join(phrases)
