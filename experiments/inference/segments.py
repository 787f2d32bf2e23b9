"""Cuts detections out of their recordings as clips, for people to listen to and to mark."""

import csv
import dataclasses
import hashlib
import io
import itertools
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.audio import annotations, clips, recordings, spectrograms
from experiments.audio.annotations import Annotation, Annotations
from experiments.audio.require import require_library
from experiments.configs import common
from experiments.core import files, own_files
from experiments.core.console import Progress, print_result
from experiments.core.errors import UserError, suggest_nearest
from experiments.core.text import read_text
from experiments.core.words import count_noun
from experiments.data import groups
from experiments.inference.segment_page import Card, write_page

OUT = "segments"
HEADER = ("clip", "file", "start", "end", "label", "score", "band", "mark")
_TABLE, _PAGE = "segments.csv", "segments.html"
_HEIGHT, _COLUMNS_PER_SECOND = 160, 80
_MOST_CLIPS = 2_000  # About 100 MB of sound and pictures in one page.


@dataclasses.dataclass(frozen=True)
class Options:
    """The detections to cut.

    Attributes:
        per_class: the largest number of each class.
        bands: scores between two bands, rising.
        context: seconds before and after each.
        only: the classes; () for all.
        seed: decides which detections of a band.
    """

    per_class: int = 20
    bands: Sequence[float] = (0.5, 0.7, 0.9)
    context: float = 1.0
    only: Sequence[str] = ()
    seed: int = 0


_USUAL = Options()


def cut_segments(
    predictions: str | Path,
    out: str | Path = OUT,
    *,
    recordings_in: str = "",
    overwrite: bool = False,
    options: Options = _USUAL,
) -> tuple[int, int]:
    """Writes clips of detections, a table and a page to mark them; see `experiments.segments`.

    Returns:
        The numbers of clips, and of recordings that cannot be used.

    Raises:
        UserError: if the detections cannot be read, have no score, or none of them can be cut.
    """
    out = Path(out).expanduser()
    _check_options(options)
    table = _read_detections(Path(predictions).expanduser(), recordings_in)
    known = sorted({row.label for row in table.rows})
    for name in options.only:
        if name not in known:
            raise UserError(f"--only={name}: it was not detected{suggest_nearest(name, known)}")
    chosen = choose_detections(table.rows, options)
    if not chosen and table.skipped:
        raise UserError(
            f"{predictions} has no detection that can be used: {': '.join(table.skipped[0])}."
        )
    if not chosen:
        raise UserError(f"{predictions} has no detections.")
    if len(chosen) > _MOST_CLIPS:
        raise UserError(
            f"{len(chosen):,} clips are too many for a page: choose a smaller --per_class than "
            f"{options.per_class}, or classes with --only."
        )
    _check_room(out, overwrite)
    require_library("soundfile")
    rows, cards, skipped = [], [], []
    taken: set[str] = set()
    with Progress(len(chosen), unit="clip") as progress:
        for one, band, start, samples, rate in _cut_all(chosen, options.context, skipped):
            name = _name_clip(one, taken)
            _write_clip(out / name, samples, rate)
            score = "" if one.score is None else f"{one.score:.6f}"
            rows.append(
                (name, one.file, f"{one.start:.3f}", f"{one.end:.3f}", one.label, score, band, "")
            )
            cards.append(_make_card(rows[-1], one, start, samples, rate))
            progress.update(len(rows))
    order = sorted(
        range(len(rows)), key=lambda at: (rows[at][4], -float(rows[at][5] or 0), rows[at][:3])
    )
    rows, cards = [rows[at] for at in order], [cards[at] for at in order]
    all_skipped = [*table.skipped, *skipped]
    skipped_file = files.write_skipped(out, all_skipped)
    if not rows:
        raise UserError(
            f"None of {count_noun(len(chosen), 'detection')} can be cut: {': '.join(skipped[0])}. "
            f"{out / 'skipped.csv'} has all reasons."
        )
    page_id = hashlib.sha256(repr(rows).encode()).hexdigest()[:16]
    kept = _clear_room(out, taken, page_id)
    files.write_csv(out / _TABLE, HEADER, rows, files.FOR_SPREADSHEETS)
    write_page(out / _PAGE, HEADER, cards, page_id)
    size = (out / _PAGE).stat().st_size / 1e6
    lines = [
        ("clips", f"{len(rows):,}, in {out / 'clips'}"),
        ("listen", f"{out / _PAGE}, {size:.1f} MB"),
        ("or type", f"right or wrong into the column mark of {out / _TABLE}"),
    ]
    lines += [("kept", text) for text in kept]
    if skipped_file:
        lines.append(("skipped", f"{len(all_skipped):,}, listed in {skipped_file}"))
    print_result("finished", lines)
    return len(rows), len(all_skipped)


def choose_detections(rows: Sequence[Annotation], options: Options) -> list[tuple[Annotation, str]]:
    """Returns detections of each class and their bands: one of each band in turn, the highest first.

    Which of a band is drawn. Detections without a score are all in one band.

    Example:
        >>> rows = [Annotation("a.wav", s, s + 1, "wren", score=s / 10) for s in range(10)]
        >>> chosen = choose_detections(rows, Options(per_class=3, bands=(0.5,)))
        >>> [band for _, band in chosen]
        ['0.5-1', '0-0.5', '0.5-1']
    """
    borders = [0.0, *options.bands, 1.0]
    names = [f"{low:g}-{high:g}" for low, high in itertools.pairwise(borders)]
    by_class: dict[str, list[list[Annotation]]] = {}
    for row in sorted(rows, key=lambda row: (row.label, row.file, row.start)):
        if options.only and row.label not in options.only:
            continue
        bands = by_class.setdefault(row.label, [[] for _ in names])
        score = 0.0 if row.score is None else row.score
        bands[int(np.searchsorted(options.bands, score, side="right"))].append(row)
    rng, chosen = np.random.default_rng(options.seed), []
    for bands in by_class.values():
        drawn = [[band[at] for at in rng.permutation(len(band))] for band in bands]
        turns = [
            (turn, -number, row)
            for number, band in enumerate(drawn)
            for turn, row in enumerate(band)
        ]
        turns.sort(key=lambda item: item[:2])
        chosen += [
            (row, "" if row.score is None else names[-number])
            for _, number, row in turns[: options.per_class]
        ]
    return chosen


def _check_options(options: Options) -> None:
    """Raises a UserError for the first invalid option."""
    bands = options.bands
    if options.per_class < 1:
        raise UserError(f"--per_class={options.per_class}: choose 1 or more.")
    if not 0 <= options.context <= 3600:
        raise UserError(f"--context={options.context}: choose 0 to 3,600 seconds.")
    if any(not 0 < band < 1 for band in bands) or list(bands) != sorted(set(bands)):
        text = ",".join(f"{band:g}" for band in bands)
        raise UserError(
            f"--bands={text}: choose rising scores between 0 and 1, such as 0.5,0.7,0.9."
        )


def _read_detections(path: Path, recordings_in: str) -> Annotations:
    """Reads the detections of `experiments.predict` or another program, and finds their recordings."""
    table = path / "predictions.csv" if path.is_dir() else path
    if not table.is_file():
        raise UserError(
            f"There is no {table}: give a folder that experiments.predict has written with --format=csv, or "
            "a table of detections."
        )
    found = annotations.read_csv_table(table, flag="")
    if recordings_in:
        folder = Path(recordings_in).expanduser()
        if not folder.is_dir():
            raise UserError(f"--recordings={recordings_in}: there is no such folder.")
        known = [path.relative_to(folder).as_posix() for path in recordings.list_recordings(folder)]
        found = annotations.match_recordings(found, folder, known)
        place = {name: str(folder.absolute() / name) for name in found.files}
    else:
        place = {name: os.path.abspath(name) for name in found.files}
    rows = [dataclasses.replace(row, file=place[row.file]) for row in found.rows]
    return dataclasses.replace(found, rows=rows)


def _check_room(out: Path, overwrite: bool) -> None:
    """Raises a UserError if the results may not be written."""
    if out.is_file():
        raise UserError(f"--out={out}: give a folder.")
    if not overwrite and ((out / _TABLE).exists() or (out / _PAGE).exists()):
        raise UserError(f"{out / _TABLE} exists: choose another --out, or give --overwrite.")


def _clear_room(out: Path, new: Collection[str], page_id: str) -> list[str]:
    """Removes the clips of an earlier command, and renames what may have marks; returns what, and why.

    Args:
        out: the folder of the results.
        new: the new clips, in small letters, which stay.
        page_id: of the new page.
    """
    table, page, kept = out / _TABLE, out / _PAGE, []
    header, *rows = _read_earlier(table)
    names = [cell.strip().lower() for cell in header]
    home = out.resolve() / "clips"
    for row in rows:
        clip = dict(zip(names, row, strict=False)).get("clip", "")
        path = out / clip
        inside = path.resolve().is_relative_to(home)  # A link may leave the folder, too.
        if inside and clip.lower() not in new and os.path.isfile(path):
            path.unlink()
    if table.exists() and not _is_unmarked(header, rows):
        kept.append(f"{own_files.set_aside(table)}, which has marks or was edited")
    if page.exists() and page_id.encode() not in page.read_bytes():
        kept.append(f"{own_files.set_aside(page)}, for which the browser may keep marks")
    return kept


def _read_earlier(table: Path) -> list[list[str]]:
    """Returns the rows of an earlier table, which any program may have saved; no cell if it is unreadable."""
    try:
        text = read_text(table)
        separator = max(",;\t", key=text.partition("\n")[0].count)
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=separator)) or [[]]
    except (OSError, ValueError, csv.Error):
        return [[]]


def _is_unmarked(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Returns whether a table is as this command writes it; programs save marks in other forms too."""
    as_written = tuple(header) == HEADER and all(len(row) == len(HEADER) for row in rows)
    return as_written and not any(row[-1] for row in rows)


def _cut_all(
    chosen: Sequence[tuple[Annotation, str]], context: float, skipped: list[tuple[str, str]]
) -> Iterator[tuple[Annotation, str, float, np.ndarray, int]]:
    """Yields each detection with its band, and start, samples and rate of its clip."""
    by_file: dict[str, list[tuple[Annotation, str]]] = {}
    for one, band in chosen:
        by_file.setdefault(one.file, []).append((one, band))
    for file, rows in by_file.items():
        cut = set()
        reason = "the detection begins after the end of the recording, or is shorter than a sample"
        try:
            if not os.path.exists(file):
                raise recordings.Unreadable(
                    "there is no such file; if it has been moved, give --recordings=FOLDER"
                )
            recording = recordings.probe_recording(file)
            blocks = recordings.stream_samples(recording, recording.rate)
            intervals = [(one.start - context, one.end + context) for one, _ in rows]
            for number, start, samples in clips.cut_clips(blocks, recording.rate, intervals):
                if start + len(samples) / recording.rate <= rows[number][0].start:
                    continue
                cut.add(number)
                yield (*rows[number], start, samples, recording.rate)
        except recordings.Unreadable as error:
            reason = str(error)
        if missing := len(rows) - len(cut):
            skipped.append((file, f"{reason} ({count_noun(missing, 'detection')})"))


def _name_clip(one: Annotation, taken: set[str]) -> str:
    """Returns the path of a clip below the folder of the results, and adds it to those that are taken."""
    folder = groups.make_file_name(one.label)
    stem = groups.name_clip(one.file, one.start, one.score)
    # Some file systems take capitals and small letters for the same.
    name, number = f"clips/{folder}/{stem}.wav", 1
    while name.lower() in taken:
        number += 1
        name = f"clips/{folder}/{stem}-{number}.wav"
    taken.add(name.lower())
    return name


def _write_clip(path: Path, samples: np.ndarray, rate: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replace_file(path) as temporary:
        sound = require_library("soundfile")
        sound.write(temporary, np.clip(samples, -1, 1), rate, format="WAV", subtype="PCM_16")


def _make_card(
    row: Sequence[str], one: Annotation, start: float, samples: np.ndarray, rate: int
) -> Card:
    """Returns a detection for the page: its spectrogram and sound, and where in these it is."""
    seconds = len(samples) / rate
    inside = (max(0.0, (one.start - start) / seconds), min(1.0, (one.end - start) / seconds))
    levels = spectrograms.compute_spectrogram(samples, _make_picture_settings(len(samples), rate))
    picture = spectrograms.apply_colours(levels, "magma")
    return Card(row, picture, clips.encode_mp3(samples, rate), inside)


def _make_picture_settings(length: int, rate: int) -> ConfigDict:
    """Returns the settings of the spectrogram of a whole clip: linear in frequency, up to half the rate."""
    audio = common.get_config("audio").audio.copy_and_resolve_references()
    width = int(np.clip(_COLUMNS_PER_SECOND * length / rate, 100, 900))
    n_fft = int(2 ** np.clip(round(np.log2(rate * 0.025)), 6, 14))
    settings = {"sample_rate": rate, "seconds": length / rate, "picture": "linear", "n_fft": n_fft}
    with audio.unlocked():
        audio.update({**settings, "win": 0, "step": max(1, length // width), "height": _HEIGHT})
        audio.update({"width": width, "low": 0.0, "high": 0.0})
    return audio
