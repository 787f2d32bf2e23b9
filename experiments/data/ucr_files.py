"""The files of the UCR time series archive: found by name, and read line by line.

Three formats: tab separated `.tsv` (2018), comma or space separated without suffix or `.txt`
(2015), and `.ts` with a header, where a series may have several channels.
"""

import dataclasses
import difflib
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from experiments.core.errors import UserError

_SUFFIXES = (".tsv", ".ts", ".txt", "")  # Where a set comes in several, the first is taken.
MISSING = ("", "?", "nan")


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One series as it stands in the file.

    Attributes:
        line: the number of its line, from 1.
        label: its label, as text.
        channels: the values of each channel, NaN where one is missing.
        padded: whether missing values at the end mean that the series ends there.
    """

    line: int
    label: str
    channels: Sequence[np.ndarray]
    padded: bool


def find(
    folder: pathlib.Path, name: str, usual: pathlib.Path
) -> tuple[str, pathlib.Path, pathlib.Path]:
    """Finds a set's train and test file in a folder or in the set's own folder below it.

    Args:
        folder: where to look; one of the set's files may stand for its folder.
        name: the set's name in any case, or '' for the only set there.
        usual: where sets are found without being asked for, to be said when nothing is found.

    Returns:
        The name as the files spell it, and the paths of the train and the test file.

    Raises:
        UserError: if the set is not there, or '' could mean several.
    """
    sets = dict(_sets(folder))
    match = [found for found in sets if not name or found.lower() == name.lower()]
    if len(match) > 1:
        raise UserError(
            f"{folder} holds {len(match)} data sets; choose one with --config.data.variant=NAME: "
            f"{_some(match)}."
        )
    if not match:
        raise UserError(_missing(folder, name, list(sets), usual))
    train = sets[match[0]]
    test = train.with_name(f"{match[0]}_TEST{train.suffix}")
    if not test.is_file():
        raise UserError(
            f"{train} has no test file beside it; {test.name} should be in the same folder."
        )
    return match[0], train, test


def read(path: pathlib.Path, labelled: bool = True) -> list[Row]:
    """Reads the series of a file in any of the three formats.

    Args:
        path: the file.
        labelled: whether a `.ts` file that says that it has no labels is refused; if not, they are ''.

    Raises:
        UserError: naming the file and the line that cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
    rows = list(
        _ts_rows(path, lines, labelled) if path.suffix == ".ts" else _table_rows(path, lines)
    )
    if not rows:
        raise UserError(f"{path} holds no series.")
    channels = len(rows[0].channels)
    for row in rows:
        if len(row.channels) != channels:
            raise UserError(
                f"{path}, line {row.line}: {len(row.channels)} channels, but the series before "
                f"have {channels}; correct the line or delete it."
            )
    return rows


def _table_rows(path: pathlib.Path, lines: Sequence[str]) -> Iterator[Row]:
    width = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        # Tabs and commas keep empty fields apart; runs of spaces do not.
        separator = "\t" if "\t" in line else "," if "," in line else None
        fields = [field.strip() for field in line.strip("\r\n ").split(separator)]
        width = width or len(fields)
        if len(fields) != width or width < 2:
            raise UserError(
                f"{path}, line {number}: {len(fields)} columns, expected {max(width, 2)} (the "
                "label, then the values); correct the line or delete it."
            )
        yield Row(number, fields[0], [_values(path, number, fields[1:])], padded=True)


def _ts_rows(path: pathlib.Path, lines: Sequence[str], labelled: bool) -> Iterator[Row]:
    header: dict[str, str] = {}
    in_data = False
    length = None
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith(("#", "%")):
            continue
        if not in_data:
            if not line.startswith("@"):
                raise UserError(f"{path}, line {number}: values before the line @data.")
            key, _, value = line[1:].partition(" ")
            header[key.lower()] = value.strip()
            in_data = key.lower() == "data"
            if in_data:
                _check_header(path, header, labelled)
            continue
        if _has_labels(header):
            *dimensions, label = line.split(":")
        else:
            dimensions, label = line.split(":"), ""
        if not dimensions:
            raise UserError(f"{path}, line {number}: no label after the last ':'.")
        channels = [
            _values(path, number, [field.strip() for field in dimension.split(",")])
            for dimension in dimensions
        ]
        length = length or len(channels[0])
        equal = _is(header, "equallength") or len({len(c) for c in channels}) > 1
        if equal and any(len(channel) != length for channel in channels):
            raise UserError(
                f"{path}, line {number}: {', '.join(str(len(c)) for c in channels)} values, "
                f"expected {length} in each channel; correct the line or delete it."
            )
        yield Row(number, label.strip(), channels, padded=False)


def _check_header(path: pathlib.Path, header: dict[str, str], labelled: bool) -> None:
    if _is(header, "timestamps"):
        raise UserError(f"{path} has time stamps; only series without them can be read.")
    if labelled and not _has_labels(header):
        raise UserError(f"{path} has no class labels; there is nothing to classify.")


def _has_labels(header: dict[str, str]) -> bool:
    return not header.get("classlabel", "true").lower().startswith("false")


def _is(header: dict[str, str], key: str) -> bool:
    return header.get(key, "").lower().startswith("true")


def _values(path: pathlib.Path, number: int, fields: Sequence[str]) -> np.ndarray:
    try:
        fields = ["nan" if field.lower() in MISSING else field for field in fields]
        values = np.array(fields, dtype=np.float64)
    except ValueError as error:
        raise UserError(f"{path}, line {number}: not a number ({error}).") from error
    if (np.abs(values) > np.finfo(np.float32).max).any():
        raise UserError(
            f"{path}, line {number}: an infinite value, or one beyond float32; correct it or write NaN."
        )
    return values


def _sets(folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """Lists the names and train files in a folder and in the folders directly below it."""
    if folder.is_file():
        name = folder.stem.removesuffix("_TRAIN").removesuffix("_TEST")
        return [found for found in _sets(folder.parent) if found[0] == name]
    found: dict[str, pathlib.Path] = {}
    for suffix in _SUFFIXES:
        for pattern in (f"*_TRAIN{suffix}", f"*/*_TRAIN{suffix}"):
            for path in sorted(folder.glob(pattern)):
                name = path.name.removesuffix(f"_TRAIN{suffix}")
                if path.is_file() and not name.startswith("."):
                    found.setdefault(name, path)
    return sorted(found.items())


def _missing(folder: pathlib.Path, name: str, known: Sequence[str], usual: pathlib.Path) -> str:
    wanted = name or "NAME"
    near = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1)
    hint = next((f" Did you mean {k!r}?" for k in known if near and k.lower() == near[0]), "")
    return (
        f"UCR data set {name or '(any)'}: no {wanted}_TRAIN.tsv, {wanted}_TRAIN.ts, "
        f"{wanted}_TRAIN.txt or {wanted}_TRAIN in {folder} or a folder below.{hint} Either "
        'download the "UCR Time Series Classification Archive (2018)", unpack it anywhere and '
        "give the folder as --config.data.source=PATH, or unpack it into "
        f"{usual}, where it is found without a source."
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
