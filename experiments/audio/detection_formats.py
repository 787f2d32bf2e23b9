"""Tables of detections in many recordings, in the formats of the programs that people open them with.

    raven          one selection table over all recordings, and the list of these to open in Raven first
    kaleidoscope   a CSV for Wildlife Acoustics' Kaleidoscope
    birdnet        a CSV like BirdNET-Analyzer's combined table
    parquet        a table for pandas, polars, R and DuckDB

and, beside each recording's selection table (`detections.open_raven_table`), an Audacity label track.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from experiments.audio import raven
from experiments.audio.detections import Detection, RavenDialect
from experiments.audio.require import require_library
from experiments.core import files

FORMATS = ("csv", "raven", "audacity", "kaleidoscope", "birdnet", "parquet")
ORIGIN_COLUMNS = ("Run", "Version", "Window (s)", "Hop (s)", "Threshold")
"""Columns that say how detections were made, after those that a format has anyway."""
RAVEN_COLUMNS = (*raven.COLUMNS, "File Offset (s)", "Begin File", *ORIGIN_COLUMNS)
KALEIDOSCOPE_COLUMNS = (
    *("INDIR", "FOLDER", "IN FILE", "CHANNEL", "OFFSET", "DURATION", "TOP1MATCH", "MANUAL ID"),
    *("Score", *ORIGIN_COLUMNS),
)
BIRDNET_COLUMNS = (
    *("Start (s)", "End (s)", "Scientific name", "Common name", "Confidence", "File"),
    *ORIGIN_COLUMNS,
)
# BirdNET's labels are 'Turdus merula_Eurasian Blackbird'.
_TWO_NAMES = re.compile(r"([A-Z][a-z]+ [a-z-]+)_([^_]+)")


@dataclasses.dataclass(frozen=True)
class Origin:
    """The way in which detections were made.

    Attributes:
        run: the folder of the run.
        version: of this project.
        window, hop: length of a window, and distance of two, in seconds.
        band: lowest and highest frequency that the network sees, in Hz.
    """

    run: str
    version: str
    window: float
    hop: float
    band: tuple[float, float]

    def make_cells(self, threshold: float) -> list[object]:
        """Returns the cells of `ORIGIN_COLUMNS`."""
        return [self.run, self.version, self.window, self.hop, round(float(threshold), 6)]


@dataclasses.dataclass(frozen=True)
class Selection:
    """A detection with its label and its place among all recordings.

    Attributes:
        file: the recording.
        before: total length in seconds of the recordings before it.
        label: the class.
        threshold: the lowest score of this class that is written.
        detection: time and score.
    """

    file: Path
    before: float
    label: str
    threshold: float
    detection: Detection


Select = Callable[[Selection], None]
"""Appends a selection to a table."""


@contextlib.contextmanager
def open_label_track(path: Path) -> Iterator[Callable[[str, Detection], None]]:
    """Opens an Audacity label track: start, end and label between tabs, without a header.

    Yields:
        A function that appends a label and its detection.

    Source: the Audacity manual, Importing and Exporting Labels, standard format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:

        def append_label(label: str, detection: Detection) -> None:
            times = f"{detection.start:.6f}\t{detection.end:.6f}"
            file.write(f"{times}\t{raven.clean_cell(label)}\n")
            file.flush()

        yield append_label


@contextlib.contextmanager
def open_combined_raven_table(path: Path, origin: Origin) -> Iterator[Select]:
    """Opens a selection table over many recordings, whose times count from the start of the first.

    `File Offset (s)` is the time in the recording, `Begin Path` and `Begin File` name it.
    """
    number = 0
    with files.append_csv(path, RAVEN_COLUMNS, overwrite=True, dialect=RavenDialect) as append:
        append([])

        def select(one: Selection) -> None:
            nonlocal number
            number += 1
            found, sound = one.detection, str(one.file.absolute())
            place = (one.before + found.start, one.before + found.end, *origin.band)
            row = raven.make_row(number, *place, one.label, found.score, sound)
            offset = raven.format_exactly(found.start)
            cells = map(str, origin.make_cells(one.threshold))
            row += [offset, one.file.name, *cells]
            append([[raven.clean_cell(cell) for cell in row]])

        yield select


@contextlib.contextmanager
def open_kaleidoscope_table(path: Path, origin: Origin) -> Iterator[Select]:
    """Opens a CSV for Kaleidoscope, whose `MANUAL ID` is left for the person who listens."""
    with files.append_csv(path, KALEIDOSCOPE_COLUMNS, overwrite=True) as append:
        append([])

        def select(one: Selection) -> None:
            found, folder = one.detection, one.file.absolute().parent
            place = (folder.parent, folder.name, one.file.name, 0)
            times = (f"{found.start:.3f}", f"{found.end - found.start:.3f}")
            score = f"{found.score:.6f}"
            append([(*place, *times, one.label, "", score, *origin.make_cells(one.threshold))])

        yield select


@contextlib.contextmanager
def open_birdnet_table(path: Path, origin: Origin) -> Iterator[Select]:
    """Opens a CSV like BirdNET-Analyzer's; a label is both names unless it has the form of its labels."""
    with files.append_csv(path, BIRDNET_COLUMNS, overwrite=True) as append:
        append([])

        def select(one: Selection) -> None:
            found, sound = one.detection, one.file.absolute()
            times = (f"{found.start:.3f}", f"{found.end:.3f}")
            score, cells = f"{found.score:.4f}", origin.make_cells(one.threshold)
            append([(*times, *split_names(one.label), score, sound, *cells)])

        yield select


def split_names(label: str) -> tuple[str, str]:
    """Returns the scientific and the common name in a label; both are the label if it is one name.

    Example:
        >>> split_names("Turdus merula_Eurasian Blackbird"), split_names("song_type_2")
        (('Turdus merula', 'Eurasian Blackbird'), ('song_type_2', 'song_type_2'))
    """
    match = _TWO_NAMES.fullmatch(label)
    return (match[1], match[2]) if match else (label, label)


@contextlib.contextmanager
def open_parquet(
    path: Path, columns: Mapping[str, type], rows_at_once: int = 65_536
) -> Iterator[Callable[[Iterable[Sequence[object]]], None]]:
    """Opens a Parquet table, which can be read once it is closed, also by an interruption.

    Args:
        path: the table; an existing one is replaced.
        columns: names, and str, float or bool.
        rows_at_once: the number of rows that are held in memory.

    Yields:
        A function that appends rows.
    """
    arrow, parquet = require_library("pyarrow"), require_library("pyarrow.parquet")
    kinds = {str: arrow.string(), float: arrow.float64(), bool: arrow.bool_()}
    schema = arrow.schema([(name, kinds[kind]) for name, kind in columns.items()])
    waiting: list[Sequence[object]] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    with parquet.ParquetWriter(path, schema) as writer, contextlib.ExitStack() as stack:

        def flush() -> None:
            if waiting:
                # File names need not be UTF-8, and Parquet's text must be.
                cells = [
                    [_make_utf8(cell) if kind is str else cell for cell in column]
                    for kind, column in zip(
                        columns.values(), zip(*waiting, strict=True), strict=True
                    )
                ]
                arrays = [
                    arrow.array(column, kind)
                    for column, kind in zip(cells, schema.types, strict=True)
                ]
                writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))
                waiting.clear()

        def append(rows: Iterable[Sequence[object]]) -> None:
            waiting.extend(rows)
            if len(waiting) >= rows_at_once:
                flush()

        stack.callback(flush)
        yield append


def _make_utf8(cell: object) -> str:
    return str(cell).encode("utf-8", "backslashreplace").decode("utf-8")
