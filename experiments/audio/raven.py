"""Rows of the selection tables that Raven opens: values between tabs, without quotes."""

import re

import numpy as np

COLUMNS = (
    "Selection",
    "View",
    "Channel",
    "Begin Time (s)",
    "End Time (s)",
    "Low Freq (Hz)",
    "High Freq (Hz)",
    "Label",
    "Score",
    "Begin Path",
)


def make_row(
    number: int,
    start: float,
    end: float,
    low: float | None,
    high: float | None,
    label: str,
    score: float | None,
    recording: str,
) -> list[str]:
    """The cells of a selection; times and frequencies are written so that they are read as the same numbers.

    Args:
        number: of the selection, from 1.
        start, end: in seconds.
        low, high: in Hz, None for not known.
        label: what it is.
        score: of whoever found it, None for nobody.
        recording: the sound file, for Raven to open.
    """
    places = (_exactly(value) for value in (start, end, low, high))
    said = "" if score is None else f"{score:.6f}"
    return [str(number), "Spectrogram 1", "1", *places, _cell(label), said, _cell(recording)]


def _exactly(number: float | None) -> str:
    return "" if number is None else np.format_float_positional(number, trim="0")


def _cell(text: str) -> str:
    """A text that neither begins another cell nor another line."""
    return re.sub(r"[\t\r\n]", " ", text)
