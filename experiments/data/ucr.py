"""The UCR time series archive: finds a set's files, reads them and holds the series in memory.

Three formats are read: tab separated `.tsv` (2018), comma or space separated without a suffix or `.txt`
(2015), and `.ts` with a header, whose series may have several channels.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.core import digests
from experiments.core.errors import UserError
from experiments.core.listing import check_regular_file
from experiments.core.words import agree, count_noun
from experiments.data import paths, splits
from experiments.data.dataset import Dataset
from experiments.data.views import Arrays

MISSING = ("", "?", "nan")
"""Spellings of a missing value or label, in lower case."""

_SUFFIXES = (".tsv", ".ts", ".txt", "")  # The first one that a set has is read.


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """One series as it is written in its file.

    Attributes:
        line: number of its line, from 1.
        label: its label as text.
        channels: the values of each channel, NaN for a missing one.
        padded: whether missing values at the end mean that the series ends there.
    """

    line: int
    label: str
    channels: Sequence[np.ndarray]
    padded: bool


def load(config: ConfigDict, seed: int) -> Dataset:
    """Returns one set of the archive as float32 series `[L, C]`, with the archive's own test split.

    `source` is the folder of the archive or of the set, `variant` the set's name ('' if there is only one).
    """
    default = paths.get_data_dir(config) / "ucr"
    source = paths.get_source_path(config) or default
    name, *files = find_files(source, config.variant, default)
    contents = {file: read_series(file) for file in files}
    skipped: list[tuple[str, str]] = []
    train, test = (_drop_unusable(file, series, skipped) for file, series in contents.items())
    width, test_width = (len(series[0].channels) for series in (train, test))
    if width != test_width:
        raise UserError(
            f"The series of {files[0]} have {count_noun(width, 'channel')}, but those of {files[1]} "
            f"have {test_width}."
        )
    classes, get_class = _number_classes(train)
    labels = [
        np.array([get_class(one, file) for one in series], dtype=np.int32)
        for file, series in zip(files, (train, test), strict=True)
    ]
    inputs, notes = _stack_series([*train, *test])
    pools = []
    for file, series, part, part_labels in zip(
        files, (train, test), np.split(inputs, [len(train)]), labels, strict=True
    ):
        names = [f"{file.name}, line {one.line}" for one in series]
        # Sums, and so what is normalised here, may differ between processors in the last bit.
        contents = [_digest_series(one) for one in series]
        pools.append(splits.Pool(Arrays(part, part_labels, names, contents), part_labels))
    parts, split_notes = splits.make_splits(name, config, seed, train=pools[0], test=pools[1])
    return Dataset(name, parts, classes, (inputs.shape[1], width), notes + split_notes, skipped)


def _digest_series(series: Series) -> int:
    lengths = repr([len(channel) for channel in series.channels])
    return digests.compute_digest(lengths.encode() + np.concatenate(series.channels).tobytes())


# ---------------------------------------------------------------- files


def find_files(folder: Path, name: str, default: Path) -> tuple[str, Path, Path]:
    """Finds the train and test file of a set in a folder or in the folders directly below it.

    Args:
        folder: where to look; one of the set's files may stand for its folder.
        name: the set's name in any case, or '' for the only set there.
        default: the folder that is searched when no source is set, for the error message.

    Returns:
        The name as the files spell it, and the paths of the train and the test file.
    """
    train_files = dict(_list_sets(folder))
    matches = [known for known in train_files if not name or known.lower() == name.lower()]
    if len(matches) > 1:
        raise UserError(
            f"{folder} holds {len(matches)} data sets; choose one with --config.data.variant=NAME: "
            f"{_shorten_list(matches)}."
        )
    if not matches:
        raise UserError(_explain_missing(folder, name, list(train_files), default))
    train = train_files[matches[0]]
    test = train.with_name(f"{matches[0]}_TEST{train.suffix}")
    if not test.is_file():
        raise UserError(f"{train} has no test file; put {test.name} into the same folder.")
    return matches[0], train, test


def read_series(path: Path, labelled: bool = True) -> list[Series]:
    """Reads the series of a file in any of the three formats.

    If `labelled`, a `.ts` file that declares no labels is refused; otherwise its labels are ''.
    """
    try:
        check_regular_file(path)
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
    series = list(
        _parse_ts(path, lines, labelled) if path.suffix == ".ts" else _parse_table(path, lines)
    )
    if not series:
        raise UserError(f"{path} holds no series.")
    channels = len(series[0].channels)
    for one in series:
        if len(one.channels) != channels:
            raise UserError(
                f"{path}, line {one.line} has {len(one.channels)} channels, but the series before it have "
                f"{channels}; correct the line or delete it."
            )
    return series


def _parse_table(path: Path, lines: Sequence[str]) -> Iterator[Series]:
    width = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        # Tabs and commas separate empty fields; runs of spaces do not.
        separator = "\t" if "\t" in line else "," if "," in line else None
        fields = [field.strip() for field in line.strip("\r\n ").split(separator)]
        width = width or len(fields)
        if len(fields) != width or width < 2:
            raise UserError(
                f"{path}, line {number} has {len(fields)} columns instead of {max(width, 2)} (the label, "
                "then the values); correct the line or delete it."
            )
        yield Series(number, fields[0], [_parse_values(path, number, fields[1:])], padded=True)


def _parse_ts(path: Path, lines: Sequence[str], labelled: bool) -> Iterator[Series]:
    header: dict[str, str] = {}
    in_data = False
    length = None
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith(("#", "%")):
            continue
        if not in_data:
            if not line.startswith("@"):
                raise UserError(f"{path}, line {number}: there are values before the line @data.")
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
            raise UserError(f"{path}, line {number} has no label after the last ':'.")
        channels = [
            _parse_values(path, number, [field.strip() for field in dimension.split(",")])
            for dimension in dimensions
        ]
        length = length or len(channels[0])
        lengths = [len(channel) for channel in channels]
        must_be_equal = _is_true(header, "equallength") or len(set(lengths)) > 1
        if must_be_equal and set(lengths) != {length}:
            raise UserError(
                f"{path}, line {number} has {', '.join(map(str, lengths))} values instead of {length} in "
                "each channel; correct the line or delete it."
            )
        yield Series(number, label.strip(), channels, padded=False)


def _check_header(path: Path, header: dict[str, str], labelled: bool) -> None:
    if _is_true(header, "timestamps"):
        raise UserError(f"{path} has time stamps; only series without them can be read.")
    if labelled and not _has_labels(header):
        raise UserError(f"{path} has no class labels; there is nothing to classify.")


def _has_labels(header: dict[str, str]) -> bool:
    return not header.get("classlabel", "true").lower().startswith("false")


def _is_true(header: dict[str, str], key: str) -> bool:
    return header.get(key, "").lower().startswith("true")


def _parse_values(path: Path, number: int, fields: Sequence[str]) -> np.ndarray:
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


def _list_sets(folder: Path) -> list[tuple[str, Path]]:
    """Lists the names and train files of the sets in a folder and in the folders directly below it."""
    if folder.is_file():
        name = folder.stem.removesuffix("_TRAIN").removesuffix("_TEST")
        return [item for item in _list_sets(folder.parent) if item[0] == name]
    train_files: dict[str, Path] = {}
    for suffix in _SUFFIXES:
        for pattern in (f"*_TRAIN{suffix}", f"*/*_TRAIN{suffix}"):
            for path in sorted(folder.glob(pattern)):
                name = path.name.removesuffix(f"_TRAIN{suffix}")
                if path.is_file() and not name.startswith("."):
                    train_files.setdefault(name, path)
    return sorted(train_files.items())


def _explain_missing(folder: Path, name: str, known: Sequence[str], default: Path) -> str:
    wanted = name or "NAME"
    near = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1)
    hint = next((f" Did you mean {k!r}?" for k in known if near and k.lower() == near[0]), "")
    return (
        f"UCR data set {name or '(any)'}: there is no {wanted}_TRAIN.tsv, {wanted}_TRAIN.ts, "
        f"{wanted}_TRAIN.txt or {wanted}_TRAIN in {folder} or a folder below it.{hint} Download the "
        '"UCR Time Series Classification Archive (2018)" and unpack it, either anywhere and give the folder '
        f"as --config.data.source=PATH, or into {default}, where it is found without a source."
    )


def _shorten_list(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


# ---------------------------------------------------------------- labels and channels


def _drop_unusable(
    path: Path, series: Sequence[Series], skipped: list[tuple[str, str]]
) -> Sequence[Series]:
    """Returns the series that have values and a label; appends the others to `skipped`."""
    usable = []
    for one in series:
        if all(np.isnan(channel).all() for channel in one.channels):
            skipped.append((f"{path}, line {one.line}", "no values"))
        elif one.label.lower() in MISSING:
            skipped.append((f"{path}, line {one.line}", "no label"))
        else:
            usable.append(one)
    if not usable:
        raise UserError(f"{path} holds no series with values and a label.")
    return usable


def _number_classes(
    train: Sequence[Series],
) -> tuple[list[str], Callable[[Series, Path], int]]:
    """Returns the names of the classes, and a function from a series to its class number."""
    labels = {one.label for one in train}
    values = {label: _parse_number(label) for label in labels}
    numeric = None not in values.values()
    # As numbers, 1, 1.0 and 1e0 are one class, and 2 comes before 10.
    keys = sorted(set(values.values())) if numeric else sorted(labels)
    if len(keys) < 2:
        raise UserError(f"All training series have the label {keys[0]}; two classes are needed.")
    position = {key: index for index, key in enumerate(keys)}

    def get_class(one: Series, path: Path) -> int:
        key = _parse_number(one.label) if numeric else one.label
        if key not in position:
            raise UserError(
                f"{path}, line {one.line}: the label {one.label!r} does not occur in the training file; "
                "correct it or delete the line."
            )
        return position[key]

    return [_name_number(key) if numeric else key for key in keys], get_class


def _name_number(key: float) -> str:
    return str(int(key)) if key.is_integer() else repr(key)


def _parse_number(label: str) -> float | None:
    try:
        value = float(label)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


# ---------------------------------------------------------------- values


def prepare_like_training(series: Series, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a series as evaluation sees it, in the shape `(L, C)` of the training examples.

    Raises:
        ValueError: with a short reason if the series cannot be used.
    """
    longest, channels = shape
    if len(series.channels) != channels:
        raise ValueError(f"{len(series.channels)} channels, not {channels} as in training")
    if all(np.isnan(channel).all() for channel in series.channels):
        raise ValueError("no values")
    if count_values(series) > longest:
        raise ValueError(
            f"{count_values(series)} values, more than the {longest} of the longest in training"
        )
    return prepare_series(series, longest)[0]


def prepare_series(series: Series, longest: int) -> tuple[np.ndarray, int, bool]:
    """Interpolates missing values of a series, z-normalises it and pads it with zeros to L = `longest`.

    Returns:
        float32 `[L, C]`; the number of missing values; whether it was already normalised.
    """
    length = count_values(series)
    prepared = np.zeros((longest, len(series.channels)), np.float32)
    num_missing, was_normalised = 0, True
    for channel, values in enumerate(series.channels):
        values = values[:length]
        num_missing += int(np.isnan(values).sum())
        values = _interpolate(values)
        if not _is_normalised(values):
            was_normalised = False
            values = _normalise(values)
        prepared[:length, channel] = values
    return prepared, num_missing, was_normalised


def count_values(series: Series) -> int:
    """Returns the length of a series, without the missing values that mark its end."""
    if not series.padded:
        return max(len(channel) for channel in series.channels)
    return max(int(np.flatnonzero(~np.isnan(channel))[-1]) + 1 for channel in series.channels)


def _stack_series(series: Sequence[Series]) -> tuple[np.ndarray, list[str]]:
    """Prepares all series; returns float32 `[N, L, C]` and notes on what was changed."""
    lengths = [count_values(one) for one in series]
    longest = max(lengths)
    stacked = np.zeros((len(series), longest, len(series[0].channels)), np.float32)
    with_gaps = gaps = normalised = 0
    for index, one in enumerate(series):
        stacked[index], num_missing, was_normalised = prepare_series(one, longest)
        with_gaps += num_missing > 0
        gaps += num_missing
        normalised += not was_normalised
    notes = []
    if gaps:
        notes.append(
            f"{count_noun(gaps, 'missing value')} in {with_gaps:,} series "
            f"{agree(gaps, 'was', 'were')} filled by "
            "linear interpolation."
        )
    if normalised:
        count = "All" if normalised == len(series) else f"{normalised:,} of {len(series):,}"
        notes.append(f"{count} series were z-normalised here; they were not in the files.")
    short = sum(length < longest for length in lengths)
    if short:
        notes.append(
            f"The series are {min(lengths)} to {longest} values long: {short:,} of {len(series):,} "
            f"were padded to {longest} with zeros at the end, after z-normalising."
        )
    return stacked, notes


def _interpolate(values: np.ndarray) -> np.ndarray:
    missing = np.isnan(values)
    if missing.all():
        return np.zeros_like(values)
    if not missing.any():
        return values
    grid = np.arange(len(values))
    return np.interp(grid, grid[~missing], values[~missing])


def _is_normalised(values: np.ndarray) -> bool:
    # In short series it makes a difference whether the archive divided by N or by N - 1.
    tolerance = max(0.01, 1 / len(values))
    return abs(values.mean()) < 0.01 and abs(values.std() - 1) < tolerance


def _normalise(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean()
    deviation = centred.std()
    # A constant series leaves only rounding errors.
    if deviation <= 1e-9 * max(1.0, np.abs(values).max()):
        return np.zeros_like(values)
    return centred / deviation
