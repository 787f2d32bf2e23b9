"""The exception for mistakes that the user can correct, and words for its messages."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the user's; its message says what is wrong and what to do."""


MOST_LISTED = 40  # names in a message; ImageNet has 1,000 classes


def suggest_nearest(word: str, known: Iterable[str]) -> str:
    """Ends a sentence about an unknown word with the nearest known one, or with all, up to `MOST_LISTED`."""
    known = list(known)
    if near := difflib.get_close_matches(word, known, n=1):
        return f"; did you mean '{near[0]}'?"
    more = f" and {len(known) - MOST_LISTED} more" if len(known) > MOST_LISTED else ""
    return f"; there are {', '.join(known[:MOST_LISTED])}{more}."


def describe_kind(example: object) -> str:
    """Describes the kind of value that a setting takes, for error messages."""
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return f"{kinds.get(type(example), f'a {type(example).__name__}')}, such as {example}."
