"""Escapes text that others have chosen, such as names of files and classes, for whatever reads it.

A name may hold anything: terminal commands after an ESC, formulas of a spreadsheet, HTML. Each kind of
output has one function here; matplotlib's is `experiments.figures.style.escape`.
"""

import html
import re
import unicodedata

# They reverse the order of the letters that follow: `gpj.exe` could be shown as `exe.jpg`.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Control characters, separators of lines and paragraphs, and bytes that are not UTF-8.
_CONTROL = frozenset(("Cc", "Zl", "Zp", "Cs"))
# Spreadsheets take a cell for a formula that begins so; an apostrophe before it marks text.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_NEGATIVE_NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def escape_control(text: str) -> str:
    r"""Returns a text in one line, for a terminal: control characters as `\n`, `\x1b` or `\u202e`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        ascii(c)[1:-1] if c in _BIDI or unicodedata.category(c) in _CONTROL else c for c in text
    )


def escape_cell(value: object) -> object:
    """Returns a cell of a CSV in which spreadsheets see no formula: `=A1` becomes `'=A1`.

    Numbers stay as they are, negative ones too, also as text. `restore_cell` returns the true text.
    """
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    is_formula = _FORMULA.match(text) and not _NEGATIVE_NUMBER.fullmatch(text)
    return f"'{text}" if is_formula else value


def restore_cell(text: str) -> str:
    """Returns the text that `escape_cell` has escaped."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def escape_html(text: str) -> str:
    """Returns a text for a web page, in one line."""
    return html.escape(escape_control(text))


def escape_markdown(text: str) -> str:
    """Returns a text that is neither Markdown nor HTML, in one line."""
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", escape_control(text))
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # Within a word it means nothing.
    text = re.sub(r"^(?=#+\s|[+-]\s|>|---|===)", r"\\", text)  # A heading, a list or a rule.
    return re.sub(r"<(?=[\w/!?])|&(?=[\w#])", lambda match: html.escape(match[0]), text)
