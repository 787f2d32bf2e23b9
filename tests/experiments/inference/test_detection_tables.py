"""Tables of detections in the formats of other programs, read back with pandas and pyarrow."""

import csv
from pathlib import Path

import numpy as np
import pytest
from finished_runs import read_table

from experiments.audio import annotations, detection_formats
from experiments.audio.detection_formats import Origin
from experiments.audio.detections import Interval
from experiments.core.errors import UserError
from experiments.data.reading import File
from experiments.inference.audio_windows import OpenRecording
from experiments.inference.detection_tables import (
    NAMES,
    TableOptions,
    make_room,
    open_tables,
    plan_tables,
)
from experiments.inference.recordings import _parse_formats

CLASSES = ["Turdus merula_Eurasian Blackbird", "wren"]
ORIGIN = Origin("runs/birds", "dyn 1.0", 2.0, 1.0, (0.0, 4000.0))
FORMATS = ("csv", "raven", "audacity", "kaleidoscope", "birdnet", "parquet")
# Two recordings of 3.5 and 2 s, and what is heard in each window.
HEARD = {
    "a/one.wav": (3.5, [(0.0, 2.0, (0.9, 0.1)), (1.0, 3.0, (0.2, 0.75)), (2.0, 3.5, (0.1, 0.1))]),
    "b/two.wav": (2.0, [(0.0, 2.0, (0.6, 0.7))]),
}


def write_tables(out, formats, all_scores=False, overwrite=False):
    options = TableOptions(CLASSES, np.full(2, 0.5), True, all_scores, 1, ORIGIN, formats)
    recordings = [File(Path("field", name), name) for name in HEARD]
    own, kept = make_room(out, plan_tables(out, options, recordings), overwrite)
    with open_tables(out, options, own) as tables:
        for file, (seconds, windows) in zip(recordings, HEARD.values(), strict=True):
            scored = [(Interval(a, b, False), np.array(s, np.float32)) for a, b, s in windows]
            tables.write_recording(OpenRecording(file, "", seconds), scored)
    return kept


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables") / "out"
    write_tables(folder, FORMATS)
    return folder


# File, start, end, label and score.
EXPECTED = [
    ("a/one.wav", 0.0, 2.0, CLASSES[0], 0.9),
    ("a/one.wav", 1.0, 3.0, "wren", 0.75),
    ("b/two.wav", 0.0, 2.0, "wren", 0.7),
    ("b/two.wav", 0.0, 2.0, CLASSES[0], 0.6),
]


def test_one_raven_table_counts_from_the_first_recording(out):
    rows = read_table(out / "predictions.raven.txt", delimiter="\t", quoting=csv.QUOTE_NONE)
    assert list(rows[0]) == list(detection_formats.RAVEN_COLUMNS)
    begins = [float(row["Begin Time (s)"]) for row in rows]
    assert begins == [0.0, 1.0, 3.5, 3.5] and [row["Selection"] for row in rows] == list("1234")
    for row, (file, start, end, label, _) in zip(rows, EXPECTED, strict=True):
        assert row["Begin Path"] == str(Path("field", file).absolute())
        assert (row["Begin File"], float(row["File Offset (s)"])) == (Path(file).name, start)
        length = float(row["End Time (s)"]) - float(row["Begin Time (s)"])
        assert (length, row["Label"]) == (end - start, label)
        assert (row["Run"], row["Version"]) == ("runs/birds", "dyn 1.0")
        assert [float(row[n]) for n in ("Window (s)", "Hop (s)", "Threshold")] == [2.0, 1.0, 0.5]
    listed = (out / "predictions.raven.list.txt").read_text().splitlines()
    assert listed == [str(Path("field", file).absolute()) for file in HEARD]
    # Annotations are read back to the places in the recordings.
    read = annotations.read_csv_table(out / "predictions.raven.txt")
    assert [(r.start, r.end, r.label) for r in read.rows] == [row[1:4] for row in EXPECTED]


def test_label_tracks_have_three_columns(out):
    read = [
        (f"{name}.wav", *line.split("\t"))
        for name in ("a/one", "b/two")
        for line in (out / f"{name}.dyn.labels.txt").read_text().splitlines()
    ]
    assert [(f, float(a), float(b), label) for f, a, b, label in read] == [
        row[:4] for row in EXPECTED
    ]


def test_tables_of_kaleidoscope_and_birdnet(out):
    pandas = pytest.importorskip("pandas")
    table = pandas.read_csv(out / "predictions.kaleidoscope.csv", keep_default_na=False)
    assert tuple(table.columns) == detection_formats.KALEIDOSCOPE_COLUMNS
    for (_, row), (file, start, end, label, score) in zip(table.iterrows(), EXPECTED, strict=True):
        path = Path(row["INDIR"], row["FOLDER"], row["IN FILE"])
        assert path == Path("field", file).absolute() and row["MANUAL ID"] == ""
        assert (row["OFFSET"], row["DURATION"]) == (start, end - start)
        assert (row["TOP1MATCH"], row["Score"]) == (label, pytest.approx(score))
    table = pandas.read_csv(out / "predictions.birdnet.csv")
    assert tuple(table.columns) == detection_formats.BIRDNET_COLUMNS
    assert table["Scientific name"][0] == "Turdus merula" and table["Common name"][1] == "wren"
    assert table["Common name"][0] == "Eurasian Blackbird"
    assert list(table["Confidence"]) == [row[4] for row in EXPECTED]


def test_parquet_has_the_rows_of_the_csv(out, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(out / "predictions.parquet").to_pydict()
    rows = read_table(out / "predictions.csv")
    assert list(rows[0]) == ["file", "start_s", "end_s", "label", "score", "silent"]
    assert table["file"] == [row["file"] for row in rows]
    np.testing.assert_allclose(table["score"], [float(row["score"]) for row in rows], atol=1e-6)
    assert table["silent"] == [False] * 4 and table["window_s"] == [2.0] * 4
    write_tables(tmp_path / "all", ("parquet",), all_scores=True)
    table = parquet.read_table(tmp_path / "all" / "predictions.parquet")
    assert table.column_names[3:6] == ["silent", *CLASSES] and table.num_rows == 4
    assert not (tmp_path / "all" / "predictions.csv").exists()


def test_corrected_tables_are_kept(tmp_path):
    out = tmp_path / "out"
    write_tables(out, FORMATS)
    with pytest.raises(UserError, match="exists"):
        write_tables(out, ("birdnet",))
    corrected = [out / "predictions.raven.txt", out / "a" / "one.dyn.labels.txt"]
    for path in corrected:
        path.write_text("mine")
    kept = write_tables(out, ("raven", "audacity"), overwrite=True)
    assert [path.read_text() for path in kept] == ["mine", "mine"]
    assert all(path.read_text() != "mine" for path in corrected)
    assert not (out / "predictions.parquet").exists() and not (out / "predictions.csv").exists()


def test_tables_over_all_recordings_that_were_edited_are_kept(tmp_path):
    out = tmp_path / "out"
    names = ("csv", "raven", "kaleidoscope", "birdnet")
    write_tables(out, names)
    unchanged = write_tables(out, names, overwrite=True)
    assert unchanged == [] and not list(out.rglob("*.earlier*"))
    edited = [out / NAMES[name] for name in names]
    for path in edited:
        with path.open("a") as file:
            file.write("mine\n")
    with pytest.raises(UserError, match="exists"):
        write_tables(out, names)
    kept = write_tables(out, ("audacity",), overwrite=True)
    assert {path.name for path in kept} == {f"{path.stem}.earlier{path.suffix}" for path in edited}
    assert all(path.read_text().endswith("mine\n") for path in kept)
    assert not any(path.exists() for path in edited)
    write_tables(out, names, overwrite=True)
    assert len(list(out.rglob("*.earlier*"))) == len(edited)


def test_the_table_for_spreadsheets_has_the_mark_of_its_encoding(out):
    assert {name for name in NAMES if (out / NAMES[name]).read_bytes()[:3] == b"\xef\xbb\xbf"} == {
        "csv"
    }
    assert (out / "per_file.csv").read_text(encoding="utf-8").startswith("\ufefffile,")


def test_formats_are_checked():
    assert _parse_formats("") == () and _parse_formats(" Raven,csv") == ("raven", "csv")
    with pytest.raises(UserError, match=r"--format=ravn.*raven"):
        _parse_formats("csv,ravn")
