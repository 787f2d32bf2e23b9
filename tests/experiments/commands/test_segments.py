"""Clips of detections: which are cut, what is in them, the page, and marks that become annotations."""

import html.parser
import json

import numpy as np
import pytest
from finished_runs import read_table

from experiments import segments as command
from experiments.audio import annotations
from experiments.audio.annotations import Annotation
from experiments.audio.clips import cut_clips
from experiments.core import cli
from experiments.core.errors import UserError
from experiments.inference.segments import HEADER, Options, choose_detections, cut_segments

soundfile = pytest.importorskip("soundfile")

RATE = 8_000
LABEL = '</script><b>"owl"'


@pytest.fixture
def heard(tmp_path, rng):
    """Two recordings, one damaged and one missing, and the detections in them."""
    sounds = {}
    for name, seconds in (("a.wav", 12), ("b.wav", 5)):
        sounds[name] = rng.normal(0, 0.1, seconds * RATE).astype(np.float32)
        soundfile.write(tmp_path / name, sounds[name], RATE, subtype="FLOAT")
    (tmp_path / "bad.wav").write_text("no sound")
    rows = [f"{tmp_path / 'a.wav'},{s},{s + 2},wren,{0.5 + s / 25:.3f},0" for s in range(10)]
    rows += [f"{tmp_path / 'b.wav'},{s},{s + 2},'{LABEL},0.95,0" for s in (0, 3, 60)]
    rows += [f"{tmp_path / name},0,2,wren,0.99,0" for name in ("bad.wav", "gone.wav")]
    (tmp_path / "heard").mkdir()
    table = tmp_path / "heard" / "predictions.csv"
    text = "file,start_s,end_s,label,score,silent\n" + "\n".join(rows) + "\n"
    table.write_text(text.replace(f"'{LABEL}", '"' + LABEL.replace('"', '""') + '"'))
    return tmp_path / "heard", sounds


class Page(html.parser.HTMLParser):
    """The elements of the page, and the data in its script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.data, self.inside = [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = dict(attrs).get("id") == "data"

    def handle_data(self, text):
        self.data += text if self.inside else ""

    def handle_endtag(self, tag):
        self.inside = False


def test_clips_a_table_and_a_page(heard, tmp_path, capsys):
    folder, sounds = heard
    out = tmp_path / "out"
    words = ["segments", str(folder), f"--out={out}", "--per_class=8", "--context=0.5"]
    assert cli.run(command.main, words, command.__doc__) == 0
    rows = read_table(out / "segments.csv")
    assert tuple(rows[0]) == HEADER and len(rows) == 8
    assert [row["label"] for row in rows].count(LABEL) == 2
    for row in rows:
        clip, rate = soundfile.read(out / row["clip"], dtype="float32")
        sound = sounds[row["file"].rpartition("/")[2]]
        start, end = (float(row[name]) for name in ("start", "end"))
        expected = sound[round(max(0, start - 0.5) * RATE) : round((end + 0.5) * RATE)]
        np.testing.assert_allclose(clip, np.clip(expected, -1, 1), atol=1e-4)
        low, high = map(float, row["band"].split("-"))
        assert rate == RATE and low <= float(row["score"]) <= high and row["mark"] == ""
    reasons = {
        row["file"].rpartition("/")[2]: row["reason"] for row in read_table(out / "skipped.csv")
    }
    assert set(reasons) == {"b.wav", "bad.wav", "gone.wav"}
    assert "after the end" in reasons["b.wav"] and "--recordings" in reasons["gone.wav"]
    assert "segments.html" in capsys.readouterr().out

    text = (out / "segments.html").read_text(encoding="utf-8")
    assert r'Blob(["\ufeff", makeCsv()]' in text  # The mark for spreadsheets.
    page = Page(text)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("article") == tags.count("audio") == tags.count("img") == 8 == len(rows)
    assert tags.count("b") == 8  # One score each: the label is text, and no tag.
    data = json.loads(page.data)
    assert data["header"] == list(HEADER)
    assert [row[1:3] for row in data["rows"]] == [[row["file"], row["start"]] for row in rows]
    outside = [
        a[n]
        for _, a in page.tags
        for n in ("src", "href")
        if not a.get(n, "data:").startswith("data:")
    ]
    assert not outside


def test_marks_become_annotations(heard, tmp_path):
    folder, _ = heard
    out, options = tmp_path / "out", Options(per_class=3)
    with pytest.raises(UserError, match=r"--only=wrne.*wren"):
        cut_segments(folder, out, options=Options(only=["wrne"]))
    cut_segments(folder, out, options=options)
    with pytest.raises(UserError, match="--overwrite"):
        cut_segments(folder, out, options=options)
    table = out / "segments.csv"
    lines = table.read_text(encoding="utf-8").splitlines()
    marked = [
        lines[0],
        *(line + mark for line, mark in zip(lines[1:], ("right", "wrong"), strict=False)),
    ]
    table.write_text("\n".join([*marked, *lines[3:]]) + "\n")
    found = annotations.read_annotations(tmp_path, ["a.wav", "b.wav"], str(table))
    assert [row.positive for row in found.rows] == [True, False] and not found.skipped
    rows = read_table(table)[:2]
    for row, one in zip(rows, found.rows, strict=True):
        assert (str(tmp_path / one.file), one.start) == (row["file"], float(row["start"]))
    cut_segments(folder, out, overwrite=True, options=options)
    assert "right" in (out / "segments.earlier.csv").read_text()
    assert "right" not in table.read_text()


@pytest.mark.parametrize("mark", [",", ";", "\t"])  # Spreadsheets separate cells by others, too.
def test_clips_of_an_earlier_command_are_removed_and_no_other_files(heard, tmp_path, mark):
    folder, _ = heard
    out, mine = tmp_path / "out", tmp_path / "mine"
    cut_segments(folder, out, options=Options(per_class=3, only=["wren"]))
    table, page = out / "segments.csv", (out / "segments.html").read_bytes()
    earlier = {row["clip"] for row in read_table(table)}
    mine.mkdir()
    (out / "clips" / "link").symlink_to(mine)
    others = ["clips/wren/mine.wav", "clips/../own.wav", "clips/link/x.wav", "../mine/y.wav"]
    others += [str(mine / "z.wav"), "clips/wren"]
    for name in others[:-1]:
        (out / name).write_text("mine")
    lines = table.read_text(encoding="utf-8-sig").splitlines()
    lines += [f"{name},a,0,1,wren,0.9,," for name in [*others[1:], "clips/" + 99 * "long"]]
    table.write_text("\n".join(lines).replace(",", mark), encoding="utf-8-sig")

    rows = (folder / "predictions.csv").read_text().replace(",0.", ",0.1")
    (folder / "predictions.csv").write_text(rows)
    cut_segments(folder, out, overwrite=True, options=Options(per_class=3, only=["wren"]))
    clips = {row["clip"] for row in read_table(table)}
    assert len(clips) == 3 and not clips & earlier
    found = {path.relative_to(out).as_posix() for path in (out / "clips" / "wren").iterdir()}
    assert found == {*clips, "clips/wren/mine.wav"}
    assert all((out / name).exists() for name in others)
    # The browser keeps the marks of the earlier page under its own name.
    assert (out / "segments.earlier.html").read_bytes() == page
    cut_segments(folder, out, overwrite=True, options=Options(per_class=3, only=["wren"]))
    assert all((out / clip).exists() for clip in clips)
    assert not (out / "segments.earlier-2.html").exists()


def test_a_command_that_cuts_nothing_leaves_the_earlier_results(heard, tmp_path):
    folder, _ = heard
    out = tmp_path / "out"
    cut_segments(folder, out, options=Options(only=["wren"]))
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.name != "skipped.csv"}
    (tmp_path / "a.wav").unlink()
    with pytest.raises(UserError, match="can be cut"):
        cut_segments(folder, out, overwrite=True, options=Options(only=["wren"]))
    assert all(path.read_bytes() == content for path, content in before.items())


def test_spreadsheets_know_the_encoding_of_the_table(heard, tmp_path):
    folder, _ = heard
    table = folder / "predictions.csv"
    table.write_text(table.read_text().replace(",wren,", ",Grünfink,"), encoding="utf-8")
    cut_segments(folder, tmp_path / "out", options=Options(per_class=3, only=["Grünfink"]))
    content = (tmp_path / "out" / "segments.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbfclip,") and "Grünfink" in content.decode("utf-8-sig")


@pytest.mark.parametrize(
    ("content", "is_kept"),
    [
        ("{header}\nc,a,0,1,w,0.9,,\n", False),
        ("{header}\nc,a,0,1,w,0.9,,Right\n", True),
        ("{header},note\nc,a,0,1,w,0.9,,,listened\n", True),
        ("\ufeffclip;file;start;end;label;score;band;mark\nc;a;0;1;w;0,9;;right\n", True),
        ("CLIP\tFILE\tSTART\tEND\tLABEL\tSCORE\tBAND\tMARK\nc\ta\t0\t1\tw\t1\t\tright\n", True),
        ("\0", True),
    ],
)
def test_marks_of_other_programs_are_not_overwritten(heard, tmp_path, content, is_kept):
    folder, _ = heard
    out = tmp_path / "out"
    out.mkdir()
    content = content.format(header=",".join(HEADER))
    (out / "segments.csv").write_text(content, encoding="utf-8")
    cut_segments(folder, out, overwrite=True, options=Options(per_class=4, only=["wren"]))
    kept = out / "segments.earlier.csv"
    assert kept.exists() == is_kept
    assert not is_kept or kept.read_text(encoding="utf-8") == content


def test_names_and_times_that_no_file_can_have(tmp_path):
    bird = "\u9ce5" * 200
    sound = tmp_path / f"{bird[:60]}.wav"
    soundfile.write(sound, np.zeros(RATE), RATE)
    table = tmp_path / "found.csv"
    labels = (bird, "../../up", "Wren", "wren")
    rows = [f"{sound},0,0.5,{label},0.9" for label in labels]
    rows += [f"{sound},0,1e300,owl,0.9", f"{sound},1e307,1e308,owl,0.8"]
    table.write_text("\n".join(["file,start,end,label,score", *rows]), encoding="utf-8")
    assert cut_segments(table, tmp_path / "out") == (5, 1)
    clips = [row["clip"] for row in read_table(tmp_path / "out" / "segments.csv")]
    assert len({clip.lower() for clip in clips}) == 5
    assert all(
        (tmp_path / "out" / clip).resolve().is_relative_to(tmp_path / "out") for clip in clips
    )


def test_detections_that_cannot_be_used_are_explained(heard, tmp_path):
    folder, _ = heard
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UserError, match="no recording has this name"):
        cut_segments(folder, tmp_path / "out", recordings_in=str(tmp_path / "elsewhere"))


def test_recordings_may_have_moved(heard, tmp_path):
    folder, _ = heard
    (tmp_path / "moved" / "site").mkdir(parents=True)
    (tmp_path / "a.wav").rename(tmp_path / "moved" / "site" / "a.wav")
    done = cut_segments(
        folder,
        tmp_path / "out",
        recordings_in=str(tmp_path / "moved"),
        options=Options(only=["wren"]),
    )
    assert done[0] == 10
    assert read_table(tmp_path / "out" / "segments.csv")[0]["file"].endswith("moved/site/a.wav")


def test_bands_are_drawn_in_turn():
    rows = [
        Annotation("a", s, s + 1, "wren", score=score)
        for s, score in enumerate([0.2] * 50 + [0.95] * 2)
    ]
    chosen = choose_detections(rows, Options(per_class=6))
    assert [band for _, band in chosen] == ["0.9-1", "0-0.5", "0.9-1", "0-0.5", "0-0.5", "0-0.5"]
    assert chosen == choose_detections(rows[::-1], Options(per_class=6))
    other = choose_detections(rows, Options(per_class=6, seed=1))
    assert {row.start for row, _ in other} != {row.start for row, _ in chosen}


def test_clips_do_not_depend_on_blocks(rng):
    sound = rng.normal(size=1000).astype(np.float32)
    intervals = [
        (a, a + n) for a, n in zip(rng.uniform(-5, 110, 40), rng.uniform(0.1, 30, 40), strict=True)
    ]
    for size in (1, 7, 64, 1000):
        blocks = [sound[at : at + size] for at in range(0, 1000, size)]
        found = {number: (start, clip) for number, start, clip in cut_clips(blocks, 10, intervals)}
        for number, (start, end) in enumerate(intervals):
            expected = sound[max(0, round(start * 10)) : max(0, round(end * 10))]
            if round(start * 10) < 1000 and round(end * 10) > 0 and len(expected):
                np.testing.assert_array_equal(found[number][1], expected)
            else:
                assert number not in found or not len(found[number][1])
