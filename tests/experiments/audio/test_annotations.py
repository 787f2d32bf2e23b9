import dataclasses
import datetime
import itertools
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.audio import annotations, raven, times
from experiments.audio.annotations import Annotation
from experiments.audio.targets import compute_targets
from experiments.core.errors import UserError

HEADER = [
    "Selection",
    "View",
    "Channel",
    "Begin Time (s)",
    "End Time (s)",
    "Low Freq (Hz)",
    "Species",
]


@pytest.fixture
def table(tmp_path):
    """Returns a function that writes a table of lists of cells."""

    def write(name, *rows, separator="\t"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        lines = "".join(separator.join(map(str, row)) + "\n" for row in rows)
        (tmp_path / name).write_text(lines, encoding="utf-8")
        return tmp_path / name

    return write


def test_views_of_a_selection_are_read_once(table):
    path = table(
        "x.Table.1.selections.txt",
        HEADER,
        [1, "Waveform 1", 1, 0.5, 1.25, 900, "wren"],
        [1, "Spectrogram 1", 1, 0.5, 1.25, 900, "wren"],
        [2, "Spectrogram 1", 1, 2, 3.5, 1000, "great tit"],
    )
    rows, skipped = annotations.read_raven_table(path, "x.wav")
    assert rows == [
        Annotation("x.wav", 0.5, 1.25, "wren", True, 900.0),
        Annotation("x.wav", 2.0, 3.5, "great tit", True, 1000.0),
    ]
    assert rows[1].origin == "x.Table.1.selections.txt, line 4" and not skipped


def test_empty_tables_annotate_their_recording(table, tmp_path):
    table("x.Table.1.selections.txt", [*HEADER, ""])
    table("y.Table.1.selections.txt", [*HEADER, ""], [""] * 3)
    found = annotations.read_annotations(tmp_path, ["x.wav", "y.wav", "z.wav"])
    assert found.files == ["x.wav", "y.wav"] and not found.rows and not found.skipped


def test_raven_tables_of_a_recording(table, tmp_path):
    row = [1, "", 1, 0, 1, 0, "wren"]
    for name in (
        "a.Table.1.selections.txt",
        "a.wav.Table.2.selections.txt",
        "a.selections.txt",
        "a.txt",
    ):
        table(name, HEADER, row)
    table("[b] 1.Table.1.selections.txt", HEADER, row)
    table("a.c.Table.1.selections.txt", HEADER, row)
    table("a.dyn.selections.txt", HEADER, row)
    table("ab.txt", HEADER, row)
    table("d.txt", ["recorded by the river"])
    found = {
        name: [path.name for path in annotations.find_own_tables(tmp_path / name)]
        for name in ("a.wav", "[b] 1.WAV", "d.wav", "e.wav")
    }
    assert found["a.wav"] == [
        "a.Table.1.selections.txt",
        "a.selections.txt",
        "a.txt",
        "a.wav.Table.2.selections.txt",
    ]
    assert found["[b] 1.WAV"] == ["[b] 1.Table.1.selections.txt"]
    assert found["d.wav"] == found["e.wav"] == []


def test_folders_are_listed_once(table, tmp_path, monkeypatch):
    table("r7.Table.1.selections.txt", HEADER, [1, "", 1, 0, 1, 0, "wren"])
    (tmp_path / "r8.txt").mkdir()
    listed, listdir = [], annotations.os.listdir
    monkeypatch.setattr(annotations.os, "listdir", lambda at: (listed.append(at), listdir(at))[1])
    found = annotations.read_annotations(tmp_path, [f"r{number}.wav" for number in range(1000)])
    assert found.files == ["r7.wav"] and listed == [tmp_path]


@pytest.mark.parametrize(
    "header, chosen, label",
    [
        (["Common Name", "label", "Annotation", "Species"], "", "d"),
        (["Common Name", "label", "Annotation"], "", "c"),
        (["Common Name", "LABEL"], "", "b"),
        (["Common Name"], "", "a"),
        (["Common Name", "Call"], "call", "b"),
    ],
)
def test_label_column(table, header, chosen, label):
    cells = list("abcd")[: len(header)]
    path = table("x.txt", ["Begin Time (s)", "End Time (s)", *header], [0, 1, *cells])
    rows, skipped = annotations.read_raven_table(path, "x.wav", chosen)
    assert [row.label for row in rows] == [label] and not skipped


def test_table_without_the_column_is_named(table):
    path = table("x.txt", ["Begin Time (s)", "End Time (s)", "Notes"], [0, 1, "wren"])
    assert annotations.read_raven_table(path, "x") == ([], [("x.txt", "it has no column label")])
    assert annotations.read_raven_table(path, "x", "Call")[1] == [
        ("x.txt", "it has no column Call")
    ]


@pytest.mark.parametrize(
    "start, end, label, reason",
    [
        (2, 1, "wren", "it cannot last from 2 s to 1 s"),
        (2, 2, "wren", "it cannot last from 2 s to 2 s"),
        (-1, 1, "wren", "it cannot last from -1 s to 1 s"),
        ("", 1, "wren", "its start, '', is not a number"),
        (0, "soon", "wren", "its end, 'soon', is not a number"),
        (0, "nan", "wren", "its end, 'nan', is not a number"),
        (0, "inf", "wren", "its end, 'inf', is not a number"),
        (0, 1, " ", "it has no label"),
    ],
)
def test_invalid_lines_are_listed(table, start, end, label, reason):
    path = table("x.txt", HEADER, [1, "", 1, start, end, 0, label], [2, "", 1, 4, 5, 0, "tit"])
    rows, skipped = annotations.read_raven_table(path, "x.wav")
    assert [row.label for row in rows] == ["tit"] and skipped == [("x.txt, line 2", reason)]


def test_annotations_are_clipped_at_the_end():
    rows = [Annotation("x", 1, 9, "a"), Annotation("x", 5, 6, "b", origin="t.csv, line 3")]
    kept, skipped = annotations.clip_annotations(rows, {"x": 5.0})
    assert kept == [Annotation("x", 1, 5.0, "a")]
    assert skipped == [("t.csv, line 3", "it begins at 5 s, and x ends at 5 s")]


FILES = ("file", "recording", "audio_file", "uri")
STARTS = ("start", "start_time", "start_offset_s", "x1")
ENDS = ("end", "end_time", "end_offset_s", "x2")


@pytest.mark.parametrize(
    "names",
    list(zip(FILES, STARTS, ENDS, ("label", "annotation", "species", "Species"), strict=True)),
)
@pytest.mark.parametrize("kind", ["label_type", "validated"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_column_names(table, names, kind, separator):
    path = table(
        "labels.csv",
        ["﻿" + names[0], *names[1:], kind, "y1", "y2"],
        ["a.wav", 0.5, 1, "wren", "positive", 100, 2000],
        ["a.wav", 1, 2, "wren", "negative", "", ""],
        ["b.wav", 1, 2, "wren", "uncertain"],
        ["b.wav", 1, 2, "wren", ""],
        ["b.wav", 1, 2, "wren", "perhaps"],
        separator=separator,
    )
    found = annotations.read_csv_table(path)
    assert [row.positive for row in found.rows] == [True, False, None, True]
    assert (found.rows[0].low, found.rows[0].high, found.rows[1].low) == (100.0, 2000.0, None)
    assert found.files == ["a.wav", "b.wav"]
    reason = "'perhaps' is neither positive nor negative nor uncertain"
    assert found.skipped == [("labels.csv, line 6", reason)]


def test_csv_files_match_recordings(table, tmp_path):
    names = ["s1/a.wav", "s1/b.wav", "s2/b.wav", "c.flac"]
    rows = [
        ["s1/a.wav", "train"],
        [str(tmp_path / "s1/b.wav"), "test"],
        ["C:\\birds\\s1\\A.wav", "train"],
        ["c", "validation"],
        ["b.wav", "test"],
        ["gone.wav", "test"],
        ["s3/a.wav", "test"],
    ]
    path = table(
        "labels.csv",
        ["file", "start", "end", "label", "split"],
        *([file, 0, 1, "wren", split] for file, split in rows),
        separator=",",
    )
    found = annotations.read_annotations(tmp_path, names, str(path))
    assert [row.file for row in found.rows] == ["s1/a.wav", "s1/b.wav", "s1/a.wav", "c.flac"]
    assert found.files == ["s1/a.wav", "s1/b.wav", "c.flac"]
    assert found.splits == {"s1/a.wav": "train", "s1/b.wav": "test", "c.flac": "validation"}
    assert found.skipped == [
        ("b.wav", "it is annotated, but more than one recording has this name"),
        ("gone.wav", "it is annotated, but no recording has this name"),
        ("s3/a.wav", "it is annotated, but the only recording of this name may be s1/a.wav"),
    ]


def test_recording_in_two_splits_is_refused(table):
    header = ["file", "start", "end", "label", "split"]
    rows = [["a.wav", 0, 1, "wren", "train"], ["a.wav", 2, 3, "wren", "test"]]
    with pytest.raises(UserError, match=r"a\.wav is in two splits, train and test"):
        annotations.read_csv_table(table("x.csv", header, *rows, separator=","))


def test_unusable_csv_is_refused(table, tmp_path):
    with pytest.raises(
        UserError, match=r"config\.audio\.annotations=.*none\.csv cannot be read: No such"
    ):
        annotations.read_annotations(tmp_path, [], str(tmp_path / "none.csv"))
    header = ["file", "start", "label"]
    with pytest.raises(UserError, match="has no column end: call it end or end_time"):
        annotations.read_csv_table(table("x.csv", header, separator=","))
    with pytest.raises(UserError, match="has no column label: call it Call"):
        annotations.read_csv_table(table("x.csv", [*header, "end"], separator=","), "Call")


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_letters_of_both_forms_are_the_same(table, tmp_path, forms):
    one, other = (unicodedata.normalize(form, "Grünfink") for form in forms)
    rows = [[file, 0, 1, label] for file, label in ((f"{one} 1.WAV", one), ("x.wav", other))]
    path = table("t.csv", ["file", "start", "end", "label"], *rows, separator=",")
    found = annotations.read_annotations(tmp_path, [f"{other} 1.wav", "x.wav"], str(path))
    assert [row.file for row in found.rows] == [f"{other} 1.wav", "x.wav"] and not found.skipped
    assert {row.label for row in found.rows} == {"Grünfink"}
    assert annotations.extract_label(f"{one}/1.wav") == annotations.extract_label(f"{other}/1.wav")
    assert annotations.extract_label(f"{one} 1.wav", r"(Grünfink)") == "Grünfink"
    table(f"{one} 1.Table.1.selections.txt", HEADER, [1, "", 1, 0, 1, 0, "wren"])
    assert annotations.read_annotations(tmp_path, [f"{other} 1.wav"]).files == [f"{other} 1.wav"]


seconds = st.floats(0, 1e5, allow_nan=False)


@settings(deadline=None)  # A busy machine may take longer than 200 ms.
@given(st.lists(st.tuples(seconds, st.floats(1e-4, 1e4), st.text(min_size=1)), max_size=8))
def test_raven_table_round_trip(tmp_path_factory, intervals):
    path = tmp_path_factory.getbasetemp() / "x.Table.1.selections.txt"
    rows = [
        Annotation("x.wav", start, start + length, label, True, 0.0, 16000.0)
        for start, length, label in intervals
        if " ".join(label.split()) and start + length > start and label.isprintable()
    ]
    annotations.write_raven_table(path, rows, "x.wav")
    read, skipped = annotations.read_raven_table(path, "x.wav")
    assert not skipped
    for one, other in itertools.zip_longest(rows, read):
        assert " ".join(one.label.split()) == other.label
        assert dataclasses.replace(one, label=other.label) == other
    assert path.read_text(encoding="utf-8").split("\n")[0].split("\t") == list(raven.COLUMNS)


STARTING = np.arange(5.0)
ENDING = np.minimum(STARTING + 2, 5.5)


@pytest.mark.parametrize(
    "start, end, expected",
    [
        (1.1, 1.9, [1, 1, 0, 0, 0]),
        (2.9, 3.24, [0, 0, 1, 1, 0]),  # 0.1 s, all and 0.24 s of it: the last is more than half.
        (1.95, 2.05, [1, 1, 1, 0, 0]),  # Half of it on both sides.
        (2.1, 2.12, [0, 1, 1, 0, 0]),
        (0.0, 5.5, [1, 1, 1, 1, 1]),
        (1.8, 9.0, [0, 1, 1, 1, 1]),
        (1.75, 9.0, [1, 1, 1, 1, 1]),
    ],
)
def test_annotations_count_for_overlapping_windows(start, end, expected):
    one = Annotation("x", start, end, "wren")
    found = compute_targets(STARTING, ENDING, [one], ["wren"], 0.25, 0.5, exhaustive=True)
    assert found[:, 0].tolist() == expected


def test_short_annotation_counts_for_its_best_window():
    # Windows with gaps: 0.1 s of it are in the first, 0.2 s in the second.
    one = Annotation("x", 0.9, 3.2, "wren")
    found = compute_targets([0, 3], [1, 4], [one], ["wren"], 0.25, 0.5, exhaustive=True)
    assert found[:, 0].tolist() == [0, 1]
    nowhere = Annotation("x", 1.2, 2.8, "wren")
    assert not compute_targets([0, 3], [1, 4], [nowhere], ["wren"], exhaustive=True).any()


def test_unannotated_is_unknown_or_absent():
    rows = [
        Annotation("x", 0, 2, "wren"),
        Annotation("x", 2, 4, "wren", positive=False),
        Annotation("x", 0, 2, "tit", positive=None),
        Annotation("x", 0, 9, "owl"),
    ]
    starts, ends = [0.0, 2.0, 4.0], [2.0, 4.0, 6.0]
    nan = float("nan")
    found = compute_targets(starts, ends, rows, ["wren", "tit"])
    np.testing.assert_array_equal(found, [[1, nan], [0, nan], [nan, nan]])
    found = compute_targets(starts, ends, rows, ["wren", "tit"], exhaustive=True)
    np.testing.assert_array_equal(found, [[1, nan], [0, 0], [0, 0]])
    assert found.dtype == np.float32


@pytest.mark.parametrize("order", list(itertools.permutations([True, False, None])))
def test_positive_takes_precedence(order):
    for kinds, expected in ((order, 1.0), ([k for k in order if k is not True], 0.0)):
        rows = [Annotation("x", 0, 1, "wren", positive=kind) for kind in kinds]
        assert compute_targets([0.0], [2.0], rows, ["wren"]).item() == expected


def test_no_windows_or_classes():
    assert compute_targets([], [], [Annotation("x", 0, 1, "wren")], ["wren"]).shape == (0, 1)
    assert compute_targets([0.0], [1.0], [], []).shape == (1, 0)


@pytest.mark.parametrize(
    "name, changed, expected",
    [
        ("wren/x.wav", {}, (("wren",), ())),
        ("wren/site/x.wav", {}, (("wren",), ())),
        ("wren, tit/x.wav", {}, (("wren", "tit"), ())),
        ("-wren/x.wav", {}, ((), ("wren",))),
        ("tit,-wren/x.wav", {}, (("tit",), ("wren",))),
        ("Noise/x.wav", {}, ((), ())),
        ("Noise/x.wav", {"no_class": ()}, (("Noise",), ())),
        ("x.wav", {}, None),
        ("Great Tit 12.wav", {"label_pattern": r"([^/]+) \d+\.wav$"}, (("Great Tit",), ())),
        ("NoClass 1.wav", {"label_pattern": r"(\w+) ", "no_class": ("noclass",)}, ((), ())),
        ("12.wav", {"label_pattern": r"([^/]+) \d+\.wav$"}, None),
    ],
)
def test_labels_from_folders_and_patterns(audio, name, changed, expected):
    settings = audio(**changed)
    text = annotations.extract_label(name, settings.label_pattern)
    found = None if text is None else annotations.parse_labels(text, settings.no_class)
    assert found == expected


@pytest.mark.parametrize("pattern", ["(", "wren"])
def test_invalid_pattern_is_refused(pattern):
    with pytest.raises(UserError, match=r"--config\.audio\.label_pattern="):
        annotations.extract_label("wren/x.wav", pattern)


@pytest.mark.parametrize(
    "name, date",
    [
        ("S4A03895_20190522_061500.wav", datetime.datetime(2019, 5, 22, 6, 15)),
        ("site/20190522T061501-x.wav", datetime.datetime(2019, 5, 22, 6, 15, 1)),
        ("99999999_000000_20190522_061500.wav", datetime.datetime(2019, 5, 22, 6, 15)),
        ("20190101_000000/20190522_061500.wav", datetime.datetime(2019, 5, 22, 6, 15)),
        (
            "S20190522T061501+1000_E20190522T063501+1000.wav",
            datetime.datetime(2019, 5, 22, 6, 15, 1),
        ),
        ("20191322_061500.wav", None),
        ("120190522_061500.wav", None),
        ("wren 3.wav", None),
    ],
)
def test_times_in_names(name, date):
    assert times.parse_time(name) == date
