"""When a recording was made, by its name."""

import datetime
import re

_STAMP = re.compile(r"(?<!\d)(\d{8})[_T](\d{6})(?!\d)")
# The hour at which each begins. Clock hours: names say nothing of where the sun stood.
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
    """The date and time in a file's name, YYYYMMDD_HHMMSS or with a T between; None where there is none.

    Example:
        >>> parse_time("site3/S4A03895_20190522_060000.wav")
        datetime.datetime(2019, 5, 22, 6, 0)
    """
    for match in reversed(list(_STAMP.finditer(name))):
        try:
            return datetime.datetime.strptime("".join(match.groups()), "%Y%m%d%H%M%S")
        except ValueError:  # digits that are no date
            continue
    return None


def get_period(time: datetime.datetime) -> str:
    """The part of the day, by the clock of the recorder.

    Dawn begins at 5, morning at 7, afternoon at 12, dusk at 17, evening at 19 and night at 22.
    """
    return next(name for hour, name in _PERIODS if time.hour >= hour)
