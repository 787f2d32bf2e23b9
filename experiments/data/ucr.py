"""The UCR time series archive: any of its sets, in memory."""

import pathlib
from collections.abc import Sequence

import numpy as np

from experiments.core.errors import UserError
from experiments.data import places, splits, ucr_files
from experiments.data.dataset import Dataset
from experiments.data.sources import Arrays
from experiments.data.ucr_files import Row


def load(config, seed: int) -> Dataset:
    """Returns one set of the archive as float32 series `[L, C]`, with the archive's own test split.

    Args:
        config: the data part of the configuration; `source` is the archive's folder or the set's,
            `variant` the set's name ('' where the folder holds only one).
        seed: decides which training series are set aside for validation.

    Raises:
        UserError: if the set is not there or a line cannot be read.
    """
    usual = places.data_dir(config) / "ucr"
    source = places.source_path(config) or usual
    name, *paths = ucr_files.find(source, config.variant, usual)
    files = {path: ucr_files.read(path) for path in paths}
    notes: list[str] = []
    skipped: list[tuple[str, str]] = []
    files = {path: _usable(path, rows, skipped) for path, rows in files.items()}
    train, test = (files[path] for path in paths)
    width = _check_channels(paths, train, test)
    classes, number = _classes(train)
    labels = [
        np.array([number(row, path) for row in files[path]], dtype=np.int32) for path in paths
    ]
    series = _series([*train, *test], notes)
    if skipped:
        notes.append(f"{len(skipped)} series without any value or label were skipped.")
    pools = []
    for path, inputs, part in zip(paths, np.split(series, [len(train)]), labels, strict=True):
        names = [f"{path.name}, line {row.line}" for row in files[path]]
        pools.append(splits.Pool(Arrays(inputs, part, names), part))
    parts, remarks = splits.arrange(name, config, seed, train=pools[0], test=pools[1])
    return Dataset(name, parts, classes, (series.shape[1], width), notes + remarks, skipped)


def _usable(
    path: pathlib.Path, rows: Sequence[Row], skipped: list[tuple[str, str]]
) -> Sequence[Row]:
    usable = []
    for row in rows:
        if all(np.isnan(channel).all() for channel in row.channels):
            skipped.append((f"{path}, line {row.line}", "no values"))
        elif row.label.lower() in ucr_files.MISSING:
            skipped.append((f"{path}, line {row.line}", "no label"))
        else:
            usable.append(row)
    if not usable:
        raise UserError(f"{path} holds no series with values and a label.")
    return usable


def _check_channels(
    paths: Sequence[pathlib.Path], train: Sequence[Row], test: Sequence[Row]
) -> int:
    counts = [len(rows[0].channels) for rows in (train, test)]
    if counts[0] != counts[1]:
        raise UserError(
            f"{paths[0]} has series of {counts[0]} channel(s), but {paths[1]} of {counts[1]}."
        )
    return counts[0]


def _classes(train: Sequence[Row]):
    """Returns the names of the classes, and a function from a row to its class number."""
    found = {row.label for row in train}
    values = {label: _number(label) for label in found}
    numeric = None not in values.values()
    # As numbers, 1, 1.0 and 1e0 are one class, and 2 comes before 10.
    keys = sorted(set(values.values())) if numeric else sorted(found)
    if len(keys) < 2:
        raise UserError(f"All training series have the label {keys[0]}; two classes are needed.")
    position = {key: index for index, key in enumerate(keys)}

    def number(row: Row, path: pathlib.Path) -> int:
        key = _number(row.label) if numeric else row.label
        if key not in position:
            raise UserError(
                f"{path}, line {row.line}: the label {row.label!r} does not occur in the training "
                "file; correct it or delete the line."
            )
        return position[key]

    return [f"{key:g}" if numeric else key for key in keys], number


def _number(label: str) -> float | None:
    try:
        value = float(label)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _series(rows: Sequence[Row], notes: list[str]) -> np.ndarray:
    """Fills, normalises and pads the series to float32 `[N, L, C]`; says so in `notes`."""
    lengths = [length_of(row) for row in rows]
    longest = max(lengths)
    series = np.zeros((len(rows), longest, len(rows[0].channels)), np.float32)
    filled = gaps = scaled = 0
    for index, row in enumerate(rows):
        series[index], holes, normalised = prepare(row, longest)
        filled += holes > 0
        gaps += holes
        scaled += not normalised
    if gaps:
        notes.append(
            f"{gaps:,} missing values in {filled:,} series were filled by linear interpolation."
        )
    if scaled:
        which = "All" if scaled == len(rows) else f"{scaled:,} of {len(rows):,}"
        notes.append(f"{which} series were z-normalised here; they were not in the files.")
    short = sum(length < longest for length in lengths)
    if short:
        notes.append(
            f"The series are {min(lengths)} to {longest} values long: {short:,} of {len(rows):,} "
            f"were padded to {longest} with zeros at the end, after z-normalising."
        )
    return series


def prepare(row: Row, longest: int) -> tuple[np.ndarray, int, bool]:
    """Fills, normalises and pads one series, of which a value at least is known.

    Args:
        row: no more than `longest` values in each channel.
        longest: L.

    Returns:
        float32 `[L, C]`; how many values were missing; whether it had been normalised already.
    """
    length = length_of(row)
    series = np.zeros((longest, len(row.channels)), np.float32)
    holes, normalised = 0, True
    for channel, values in enumerate(row.channels):
        values = values[:length]
        holes += int(np.isnan(values).sum())
        values = _interpolate(values)
        if not _is_normalised(values):
            normalised = False
            values = _normalise(values)
        series[:length, channel] = values
    return series, holes, normalised


def length_of(row: Row) -> int:
    """Returns how long a series is, without the missing values that stand for its end."""
    whole = max(len(channel) for channel in row.channels)
    if not row.padded:
        return whole
    return max(int(np.flatnonzero(~np.isnan(channel))[-1]) + 1 for channel in row.channels)


def _interpolate(values: np.ndarray) -> np.ndarray:
    missing = np.isnan(values)
    if missing.all():
        return np.zeros_like(values)
    if not missing.any():
        return values
    grid = np.arange(len(values))
    return np.interp(grid, grid[~missing], values[~missing])


def _is_normalised(values: np.ndarray) -> bool:
    # Whether the archive divided by N or by N - 1 makes a difference in short series.
    spread = max(0.01, 1 / len(values))
    return abs(values.mean()) < 0.01 and abs(values.std() - 1) < spread


def _normalise(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean()
    spread = centred.std()
    # What is left of a constant series is rounding.
    if spread <= 1e-9 * max(1.0, np.abs(values).max()):
        return np.zeros_like(values)
    return centred / spread


def series_of(row: Row, shape: tuple[int, ...]) -> np.ndarray:
    """A series as evaluation sees it, float32 `[L, C]`.

    Args:
        row: the series as it is in a file.
        shape: `(L, C)`, what the network was trained with.

    Raises:
        ValueError: says in a few words why it cannot be used.
    """
    longest, channels = shape
    if len(row.channels) != channels:
        raise ValueError(f"{len(row.channels)} channels, not {channels} as in training")
    if all(np.isnan(channel).all() for channel in row.channels):
        raise ValueError("no values")
    if length_of(row) > longest:
        raise ValueError(
            f"{length_of(row)} values, more than the {longest} of the longest in training"
        )
    return prepare(row, longest)[0]
