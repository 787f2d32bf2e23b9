"""Words that depend on a number: every message that counts something uses these."""


def count_noun(number: int, noun: str, plural: str = "") -> str:
    """Returns a number with its noun.

    Example:
        >>> count_noun(1, "file"), count_noun(1200, "file"), count_noun(0, "class", "classes")
        ('1 file', '1,200 files', '0 classes')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def agree(number: int, one: str, several: str) -> str:
    """Returns the word, a verb or a pronoun, that agrees with a number."""
    return one if number == 1 else several
