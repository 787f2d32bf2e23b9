"""Names of arrays as files have them: anything, from anybody, on their way to terminals and tables."""

from collections.abc import Iterable


def shorten(text: str) -> str:
    """Returns the first 60 characters of a text from a file, and its control characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:60])


def check_names(names: Iterable[str]) -> None:
    """Raises a ValueError for a name with control characters."""
    for name in names:
        if not name.isprintable():
            raise ValueError(f"its name {shorten(name)} cannot be printed.")
