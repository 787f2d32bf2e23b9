"""The one exception for mistakes that a person can mend: it is shown as a sentence, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What is wrong and what to do about it, in the words of the person who typed the command."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: the known one that is nearest, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(known)}."


def kind(usual: object) -> str:
    """What kind of value a setting has that usually is `usual`: the end of a sentence about another one."""
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return f"{kinds.get(type(usual), f'a {type(usual).__name__}')}, such as {usual}."
