"""Rows of Raven's selection tables: values between tabs, without quotes."""

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
    """Returns the cells of a selection; times and frequencies are read back as the same numbers.

    `number` counts from 1; unknown frequencies are None, and so is the score of an annotation by a person.
    """
    numbers = (format_exactly(value) for value in (start, end, low, high))
    formatted_score = "" if score is None else f"{score:.6f}"
    label, recording = clean_cell(label), clean_cell(recording)
    return [str(number), "Spectrogram 1", "1", *numbers, label, formatted_score, recording]


def format_exactly(number: float | None) -> str:
    """Returns a number that is read back as the same one; '' for None."""
    return "" if number is None else np.format_float_positional(number, trim="0")


def clean_cell(text: str) -> str:
    """Replaces tabs and line ends, which would begin another cell or row."""
    return re.sub(r"[\t\r\n]", " ", text)
