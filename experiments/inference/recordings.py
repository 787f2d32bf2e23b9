"""Predicts the classes in recordings, window by window.

Any length takes the same memory, except for runs of event detection.
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ml_collections import ConfigDict

import dyn
from experiments.audio import spectrograms
from experiments.audio.detection_formats import FORMATS, Origin
from experiments.audio.detections import LABEL_SUFFIX, NAMES, RAVEN_SUFFIX
from experiments.audio.require import require_library
from experiments.core.console import Progress, print_result
from experiments.core.errors import UserError, suggest_nearest
from experiments.core.words import count_noun
from experiments.inference.audio_windows import SOUND_SUFFIXES, make_audio_settings, prepare_windows
from experiments.inference.detection_tables import (
    RAVEN_LIST,
    DetectionTables,
    TableOptions,
    draw_groups,
    make_room,
    open_tables,
    plan_tables,
)
from experiments.inference.files import check_inputs, expand_paths, track_progress
from experiments.inference.thresholds import make_thresholds
from experiments.inference.trained import Trained

OUT = "predictions"
LONGEST_HOP = 86_400  # seconds, as in the settings
_TASKS = ("classification", "tagging", "event_detection")
_TITLES = {
    "csv": "predictions",
    "raven": "Raven, all",
    "kaleidoscope": "Kaleidoscope",
    "birdnet": "BirdNET",
    "parquet": "Parquet",
}


def predict_recordings(
    trained: Trained,
    paths: Sequence[str],
    out: str | Path = OUT,
    *,
    threshold: float | str = 0.5,
    without: Sequence[str] = (),
    all_scores: bool = False,
    merge: int = 1,
    hop: float = 0.0,
    format: str = "",
    batch_size: int = 0,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Writes the classes that a network detects in recordings; the options are of `experiments.predict`.

    A run of event detection gives events from onset to offset, and no windows. All frames of a recording are
    held at once: a day of frames of 64 ms and ten classes takes 54 MB.

    Returns:
        The number of recordings that were used, and of files that could not be used.

    Raises:
        UserError: if a path does not exist, if tables are in `out`, or if most files cannot be used; the
            predictions for the others are written.
    """
    out = Path(out).expanduser()
    check_inputs(paths, batch_size)
    _check_arguments(trained, out, merge, hop)
    formats = _parse_formats(format)
    thresholds = make_thresholds(trained.classes, trained.source, threshold, without)
    total = sum(1 for _ in expand_paths(paths, suffixes=SOUND_SUFFIXES))
    if not total:
        raise UserError(f"There is no sound file in {', '.join(map(str, paths))}.")
    audio = make_audio_settings(trained.config.audio, hop)
    events = trained.config.task == "event_detection"
    options = TableOptions(
        trained.classes,
        thresholds,
        trained.config.task != "classification",
        all_scores,
        sys.maxsize if events else merge,
        _describe_origin(trained, audio),
        formats,
    )
    planned = plan_tables(out, options, expand_paths(paths, suffixes=SOUND_SUFFIXES))
    own, kept = make_room(out, planned, overwrite)
    with open_tables(out, options, own) as tables, Progress(total, unit="file") as progress:
        sounds = track_progress(expand_paths(paths, suffixes=SOUND_SUFFIXES), progress)
        examples = prepare_windows(sounds, audio, trained.prepare, tables.skip, progress.say)
        predictions = trained.predict(examples, batch_size)
        for recording, group in itertools.groupby(predictions, key=lambda item: item[0][0]):
            windows = ((window, scores) for (_, window), scores in group)
            tables.write_recording(recording, trained.list_scores(windows))
        progress.update(total)
    drawn = []
    if tables.used and tables.activity is not None:
        drawn = draw_groups(out, tables.activity, options)
    if not tables.used or tables.skipped * 2 > total:
        _refuse_most(tables, total, out)
    _print_summary(tables, kept, drawn, out)
    return tables.used, tables.skipped


def _refuse_most(tables: DetectionTables, total: int, out: Path) -> NoReturn:
    """Raises a UserError: most files cannot be used."""
    rest = "Nothing was predicted."
    if tables.used:
        rest = f"The predictions for the others are in {out}."
    raise UserError(
        f"{tables.skipped:,} of {count_noun(total, 'file')} cannot be used, such as "
        f"{'; '.join(tables.reasons)}. {out / 'skipped.csv'} has all reasons. {rest}"
    )


def _print_summary(
    tables: DetectionTables, kept: Sequence[Path], drawn: Sequence[Path], out: Path
) -> None:
    """Prints what was written, and where."""
    options, rows = tables.options, [("recordings", f"{tables.used:,}")]
    rows += [(_TITLES[name], str(out / NAMES[name])) for name in options.common]
    rows.append(("per file", str(out / "per_file.csv")))
    if "raven" in options.common:
        rows.append(("open first", f"{out / RAVEN_LIST}, the recordings, in Raven"))
    titles = {RAVEN_SUFFIX: "for Raven", LABEL_SUFFIX: "for Audacity"}
    rows += [(titles[suffix], str(out / f"NAME{suffix}")) for suffix in options.suffixes]
    rows += [(f"by {path.stem.removesuffix('s')}", str(path)) for path in drawn]
    if kept:
        more = f" and {len(kept) - 1:,} more" if len(kept) > 1 else ""
        rows.append(("kept", f"{kept[0]}{more}, not written by this command or changed since"))
    if tables.noted:
        rows.append(("in part", f"{tables.noted:,}, noted in {out / 'per_file.csv'}"))
    if tables.skipped:
        rows.append(("skipped", f"{tables.skipped:,}, listed in {out / 'skipped.csv'}"))
    print_result("finished", rows)


def _check_arguments(trained: Trained, out: Path, merge: int, hop: float) -> None:
    """Raises a UserError for the first invalid argument."""
    if trained.config.task not in _TASKS:
        raise UserError(
            f"{trained.source} is a run of {trained.config.task}, which cannot label recordings: give a run "
            f"of {' or '.join(_TASKS)}."
        )
    if out.is_file() or out.suffix == ".csv":
        raise UserError(f"--out={out}: for recordings give a folder, such as {OUT}/.")
    if merge != 1 and trained.config.task == "event_detection":
        raise UserError(
            f"--merge={merge} is for windows: {trained.source} detects events, whose length is their own."
        )
    if merge < 1:
        raise UserError(f"--merge={merge}: choose 1 or more; 1 merges nothing.")
    if hop and not 1 / trained.config.audio.sample_rate <= hop <= LONGEST_HOP:
        raise UserError(f"--hop={hop}: choose a number of seconds above 0, up to {LONGEST_HOP:,}.")


def _parse_formats(text: str) -> tuple[str, ...]:
    """Returns the formats in a list such as 'raven,csv'; () for the usual ones."""
    formats = tuple(word for word in (part.strip().lower() for part in text.split(",")) if word)
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--format={name}: there is none{suggest_nearest(name, FORMATS)}")
    if "parquet" in formats:
        require_library("pyarrow.parquet")  # Now, and not after the first recording.
    return formats


def _describe_origin(trained: Trained, audio: ConfigDict) -> Origin:
    """Returns how detections are made, for the tables."""
    band = _find_frequency_band(audio)
    return Origin(str(trained.source), f"dyn {dyn.__version__}", audio.seconds, audio.hop, band)


def _find_frequency_band(audio: ConfigDict) -> tuple[float, float]:
    """Returns the lowest and the highest frequency that the network sees, in Hz."""
    rows = spectrograms.compute_frequencies(audio)
    # The lowest frequency of wavelets has a default of its own.
    low = rows[-1] if audio.picture == "wavelet" else audio.low
    return float(low), float(audio.high or audio.sample_rate / 2)
