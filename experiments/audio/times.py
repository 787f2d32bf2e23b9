"""Recording times and stations from file names."""

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

    Example:
        >>> parse_time("site3/S4A03895_20190522_060000.wav")
        datetime.datetime(2019, 5, 22, 6, 0)
    """
    for match in reversed(list(_STAMP.finditer(name))):
        try:
            return datetime.datetime.strptime("".join(match.groups()), "%Y%m%d%H%M%S")
        except ValueError:  # Digits that are not a date.
            continue
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
    stamps = list(_STAMP.finditer(path.stem)) if parse_time(path.stem) else []
    before = path.stem[: stamps[-1].start()].strip(" _-.") if stamps else ""
    return before or path.parent.name
