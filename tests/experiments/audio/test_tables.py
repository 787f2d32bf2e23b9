"""Tables of annotations as other programs and people write them."""

import pytest

from experiments.audio import annotations
from experiments.audio.annotations import Annotation
from experiments.core.errors import UserError

HEAD = "Selection\tBegin Time (s)\tEnd Time (s)\tSpecies\n"
ROW = "1\t0\t1\twren\n"


@pytest.fixture
def read(tmp_path):
    """Returns a function that reads a Raven table next to `x.wav`."""

    def read(content, name="x.Table.1.selections.txt"):
        content = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(content)
        return annotations.read_annotations(tmp_path, ["x.wav"])

    return read


@pytest.fixture
def read_csv(tmp_path):
    """Returns a function that reads a table for all recordings."""

    def read(content):
        path = tmp_path / "all.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return annotations.read_annotations(tmp_path, ["x.wav", "b.wav"], str(path))

    return read


def describe(found):
    return [(row.start, row.end, row.label) for row in found.rows]


def test_numbers_of_selections_may_repeat(read):
    found = read(HEAD + "1\t0\t1\twren\n2\t1\t2\twren\n1\t4\t5\trobin\n")
    assert describe(found) == [(0, 1, "wren"), (1, 2, "wren"), (4, 5, "robin")]
    found = read(
        HEAD.replace("\t", "\tView\t", 1)
        + "1\tWaveform 1\t0\t1\twren\n1\tSpectrogram 1\t0\t1\twren\n1\tSpectrogram 1\t0\t1\trobin\n"
    )
    assert describe(found) == [(0, 1, "wren"), (0, 1, "robin")]


ENCODINGS = [
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "utf-32",
    "cp1252",
    "latin-1",
]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(read, read_csv, encoding, end):
    text = (HEAD + ROW + "2\t2\t3\tGrünfink\n").replace("\n", end)
    for name in ("x.Table.1.selections.txt", "x.txt"):
        found = read(text.encode(encoding), name)
        assert describe(found)[-2:] == [(0, 1, "wren"), (2, 3, "Grünfink")] and not found.skipped
    found = read_csv(f"file,start,end,label{end}x.wav,0,1,Grünfink{end}".encode(encoding))
    assert describe(found) == [(0, 1, "Grünfink")]


@pytest.mark.parametrize(
    "content",
    [
        (HEAD + "1\t0\t1\tGrünfink\n").encode() + b"2\t1\t2\tGr\xfcnfink\n",
        (HEAD + ROW).encode() + b"2\t1\t2\t\x81\x8d\n",
        (HEAD + ROW).encode("utf-16") + b"\0",
        (HEAD + ROW).encode("utf-16")[:-9] + (HEAD + ROW).encode("utf-16")[-8:] + b"\0",
        (HEAD + ROW).encode("utf-16").replace(b"S\0e\0l\0", b"S\0e\0\0", 1) + b"\0",
        (HEAD + ROW).encode() + bytes(500),
        bytes(999),
        b"",
        b"\xff\xd8\xff\xe0\x00\x10JFIF",
    ],
)
def test_a_table_that_cannot_be_decoded_is_named(read, read_csv, content):
    found = read(content)
    assert not found.rows and not found.files
    assert [name for name, _ in found.skipped] == ["x.Table.1.selections.txt"]
    with pytest.raises(UserError, match=r"all\.csv"):
        read_csv(content)


def test_file_offsets_count_in_tables_over_several_files(read, read_csv):
    head = "Begin File,Begin Time (s),End Time (s),File Offset (s),Species\n"
    found = read_csv(head + "x.wav,2,3.5,2,wren\nb.wav,61.1,62.3,1,robin\nb.wav,63,64,,owl\n")
    assert found.rows == [
        Annotation("x.wav", 2.0, 3.5, "wren"),
        Annotation("b.wav", 1.0, 2.2, "robin"),
    ]
    assert [(line, "File Offset (s)" in why) for line, why in found.skipped] == [
        ("all.csv, line 4", True)
    ]
    found = read((head + "b.wav,1,2,1,owl\nX.WAV,61,62,1,wren\n").replace(",", "\t"))
    assert describe(found) == [(1, 2, "wren")]
    assert found.skipped == [("x.Table.1.selections.txt, line 2", "it is in b.wav")]
    found = read((head + "renamed.wav,1,2,1,owl\n").replace(",", "\t"))
    assert describe(found) == [(1, 2, "owl")] and not found.skipped


def test_a_table_about_the_recording_beside_its_own_is_not_about_its_own(tmp_path):
    head = "Begin File\tBegin Time (s)\tEnd Time (s)\tFile Offset (s)\tSpecies\n"
    table = tmp_path / "A.Table.1.selections.txt"
    table.write_text(head + "B.WAV\t65\t66\t5\twren\n")
    found = annotations.read_annotations(tmp_path, ["A.wav", "B.wav"])
    assert not found.rows and found.skipped == [(f"{table.name}, line 2", "it is in B.WAV")]
    # Not a recording of this folder: A.wav has been renamed.
    found = annotations.read_annotations(tmp_path, ["A.wav"])
    assert describe(found) == [(5, 6, "wren")]
    (tmp_path / "other").mkdir()
    found = annotations.read_annotations(tmp_path, ["A.wav", "other/B.wav"])
    assert describe(found) == [(5, 6, "wren")] and found.files == ["A.wav"]


def test_times_in_several_files_need_offsets(read, read_csv):
    head = "Begin File\tBegin Time (s)\tEnd Time (s)\tSpecies\n"
    rows = ["b.wav\t65\t66\twren\n", "x.wav\t5\t6\twren\n", "b.wav\t70\t71\towl\n"]
    for found, name in ((read_csv(head + "".join(rows)), "all.csv"), (read(head + rows[1]), "")):
        assert describe(found) == [(5, 6, "wren")]
        reason = "its time in its file is unknown: add Raven's column File Offset (s)"
        assert found.skipped == [(f"{name}, line {line}", reason) for line in (2, 4) if name]
    found = read(head + rows[1].replace("x.wav", "a.wav") + rows[0].replace("b.wav", "x.wav"))
    assert not found.rows and "File Offset (s)" in found.skipped[-1][1]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("-0.001", "1", (0, 1)),
        ("0,5", "1,25", (0.5, 1.25)),
        (" 1e-1", "+1.", (0.1, 1)),
        ("-0.001", "-0.0005", "cannot last"),
        ("-5", "1", "cannot last"),
        ("nan", "1", "not a number"),
        ("0", "inf", "not a number"),
        ("1_0", "20", "not a number"),
        ("1,234.5", "2,000.5", "not a number"),
    ],
)
def test_times(read, read_csv, start, end, expected):
    tables = (f"file;start;end;label\nx.wav;{start};{end};wren\n", None)
    for found in (read(HEAD + f"1\t{start}\t{end}\twren\n"), read_csv(tables[0])):
        if isinstance(expected, str):
            assert not found.rows and expected in found.skipped[0][1]
        else:
            assert describe(found) == [(*expected, "wren")] and not found.skipped


def test_a_table_without_its_header_is_not_passed_over(read):
    found = read(ROW)
    assert found.skipped == [("x.Table.1.selections.txt", "it has no column start, end, label")]
    assert not found.files
