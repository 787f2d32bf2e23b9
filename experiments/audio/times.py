"""Recording times and stations from file names."""

import contextlib
import datetime
import re
from pathlib import PurePosixPath

_STAMP = re.compile(r"(?<!\d)(\d{8})[_T](\d{6})(?!\d)")
# First hour of each period. Clock hours, because names do not give the position of the sun.
_PERIODS = (
    (22, "night"),
    (19, "evening"),
    (17, "dusk"),
    (12, "afternoon"),
    (7, "morning"),
    (5, "dawn"),
    (0, "night"),
)


def parse_time(name: str) -> datetime.datetime | None:
    """Returns the time in a file's name, YYYYMMDD_HHMMSS or YYYYMMDDTHHMMSS; None if it has none.

    Of two in one name, for start and end, it is the first.

    Example:
        >>> parse_time("site3/S4A03895_20190522_060000.wav")
        datetime.datetime(2019, 5, 22, 6, 0)
    """
    for part in reversed(PurePosixPath(name).parts):
        if found := _find_stamp(part):
            return found[1]
    return None


def _find_stamp(name: str) -> tuple[int, datetime.datetime] | None:
    """Returns the place and the time of the first stamp in a name; a second one may be of its end."""
    for match in _STAMP.finditer(name):
        with contextlib.suppress(ValueError):  # digits that are not a date
            digits = "".join(match.groups())
            return match.start(), datetime.datetime.strptime(digits, "%Y%m%d%H%M%S")
    return None


def get_period(time: datetime.datetime) -> str:
    """Returns the part of the day by the recorder's clock.

    Dawn begins at 5, morning at 7, afternoon at 12, dusk at 17, evening at 19 and night at 22.
    """
    return next(name for hour, name in _PERIODS if time.hour >= hour)


def parse_station(name: str) -> str:
    """Returns the recorder or place in a file's name: what is before its time, or its folder; '' for none.

    Example:
        >>> parse_station("wood/SMM1_20190522_060000.wav"), parse_station("wood/20190522_060000.WAV")
        ('SMM1', 'wood')
    """
    path = PurePosixPath(name)
    found = _find_stamp(path.stem)
    before = path.stem[: found[0]].strip(" _-.") if found else ""
    # Names such as S...T..._E...T... have the letters of start and end.
    return path.parent.name if before in ("", "S") else before
