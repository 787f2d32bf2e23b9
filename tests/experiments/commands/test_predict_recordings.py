"""What a finished run says of recordings: tables whose numbers are its own, and what bad files leave."""

import csv
import itertools
import sys
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from finished_runs import config_with, write_finished

from experiments.audio import annotations, detections
from experiments.audio import raven as raven_rows
from experiments.audio.detections import Interval, join_intervals, select_classes
from experiments.core.errors import UserError
from experiments.inference import recordings as predict_recordings
from experiments.inference import trained
from experiments.load import load
from experiments.predict import predict

soundfile = pytest.importorskip("soundfile")
pytestmark = pytest.mark.usefixtures("standard_promotion")

RATE = 8_000
CLASSES = ["wren", 'a "great" owl', "rain"]
AUDIO = {
    "sample_rate": RATE, "seconds": 1.0, "hop": 0.5, "n_fft": 256, "step": 500, "bands": 12,
    "colour": "magma",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on windows of a second, 12 bands by 17 moments, that nobody has trained."""
    folder = tmp_path_factory.mktemp("runs") / "sounds"
    with jax.numpy_dtype_promotion("standard"):
        config = config_with("audio,smoke", **{f"audio.{name}": v for name, v in AUDIO.items()})
        write_finished(folder, config, CLASSES, (12, 17, 3))
    return folder


@pytest.fixture(scope="module")
def asked(run):
    """Its network, compiled once."""
    with jax.numpy_dtype_promotion("standard"):
        return load(run)


def sweep(seconds, rng, rate=RATE, level=0.5):
    """A tone that rises and falls."""
    times = np.arange(round(seconds * rate)) / rate
    low, high = rng.uniform(300, 900), rng.uniform(1000, 3000)
    phase = low * times + (high - low) * np.sin(2 * times) / 4
    return (level * np.sin(2 * np.pi * phase)).astype(np.float32)


@pytest.fixture
def field(tmp_path, rng):
    """Recordings in two folders, two of one stem in each, and what is none."""
    root = tmp_path / "field"
    for place, seconds in (("a/1.wav", 3.25), ("b/1.wav", 2.0), ("b/1.FLAC", 0.4)):
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        sound = sweep(seconds, rng)
        sound[RATE : 2 * RATE] = 0
        soundfile.write(path, sound, RATE, subtype="PCM_16")
    (root / "b" / "1.Table.1.selections.txt").write_text("not meant")
    (root / "b" / "empty.wav").touch()
    return root


def table(path, **options):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, **options))


def raven(path):
    return table(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def test_windows_of_recordings_become_rows_above_the_threshold(run, asked, field, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(run, [str(field)], out, threshold=0.4) == (3, 1)
    rows = table(out / "predictions.csv")
    assert list(rows[0]) == ["file", "start_s", "end_s", "label", "score", "silent"]

    expected, best = [], {}
    for name in ("a/1.wav", "b/1.FLAC", "b/1.wav"):
        path = field / name
        places, scores = asked.sounds(*soundfile.read(path, dtype="float32"))
        two = np.sort(scores, axis=0)[::-1][:2]
        best[str(path)] = np.stack([two[0], two.mean(axis=0)], axis=-1).ravel()
        for (start, end), shares in zip(places, scores, strict=True):
            if shares.max() >= 0.4:
                label, score = CLASSES[shares.argmax()], shares.max()
                expected.append((str(path), f"{start:.3f}", f"{end:.3f}", label, score))
    assert [tuple(row.values())[:4] for row in rows] == [row[:4] for row in expected]
    assert len(rows) > 5
    found = [float(row["score"]) for row in rows]
    np.testing.assert_allclose(found, [row[4] for row in expected], atol=1e-5)
    assert {row["end_s"] for row in rows} >= {"3.250", "0.400", "2.000"}
    for row in rows:
        quiet = row["start_s"] == "1.000" and not row["file"].endswith("FLAC")
        assert row["silent"] == str(int(quiet))

    for row in table(out / "per_file.csv"):
        path, windows, note, *shares = row.values()
        assert (int(windows), note) == (
            {"a/1.wav": 6, "b/1.FLAC": 1, "b/1.wav": 3}[Path(path).relative_to(field).as_posix()],
            "",
        )
        np.testing.assert_allclose(np.array(shares, float), best[path], atol=1e-5)
    assert list(row)[3:5] == ["wren_max", "wren_mean_top2"]
    (bad,) = table(out / "skipped.csv")
    assert bad == {"file": str(field / "b" / "empty.wav"), "reason": "the file is empty"}
    said = capsys.readouterr().out
    assert "3" in said and f"1, listed in {out / 'skipped.csv'}" in said

    # The same intervals for Raven, one table for each recording.
    names = ("a/1", "b/1", "b/1.wav")
    selections = [raven(out / f"{name}.dyn.selections.txt") for name in names]
    assert {p.relative_to(out).as_posix() for p in out.rglob("*.txt")} == {
        f"{name}.dyn.selections.txt" for name in names
    }
    assert list(selections[0][0]) == list(raven_rows.COLUMNS)
    for found in selections:
        assert [row["Selection"] for row in found] == [str(n) for n in range(1, len(found) + 1)]
    names = ("Begin Path", "Label", "Score")
    chosen = [row for table in selections for row in table]
    assert [tuple(row[name] for name in names) for row in chosen] == [
        (row["file"], row["label"], row["score"]) for row in rows
    ]
    # The table of predictions is rounded to milliseconds.
    for selection, row in zip(chosen, rows, strict=True):
        for theirs, ours in (("Begin Time (s)", "start_s"), ("End Time (s)", "end_s")):
            assert float(selection[theirs]) == pytest.approx(float(row[ours]), abs=5e-4)
    assert {(row["Low Freq (Hz)"], row["High Freq (Hz)"]) for row in selections[0]} == {
        ("0.0", "4000.0")
    }


def test_raven_s_tables_are_read_back_to_the_same_intervals(run, field, tmp_path):
    out = tmp_path / "out"
    predict(run, [str(field)], out, threshold=0.4, hop=0.3, quiet=True)
    rows = table(out / "predictions.csv")
    for name, path in (("a/1", "a/1.wav"), ("b/1", "b/1.FLAC"), ("b/1.wav", "b/1.wav")):
        found, wrong = annotations.read_raven_table(out / f"{name}.dyn.selections.txt", path)
        said = [row for row in rows if row["file"] == str(field / path)]
        assert not wrong and len(found) == len(said) > 0
        for one, row in zip(found, said, strict=True):
            assert (one.start, one.end) == (float(row["start_s"]), float(row["end_s"]))
            assert (one.label, one.low, one.high) == (row["label"], 0, RATE / 2)


def test_where_labels_are_for_themselves_all_that_reach_the_threshold_are_told(tmp_path, rng):
    settings = {f"audio.{name}": value for name, value in AUDIO.items()}
    config = config_with("audio,smoke", task="tagging", **settings)
    write_finished(tmp_path / "run", config, CLASSES, (12, 17, 3))
    sound = sweep(4, rng)
    soundfile.write(tmp_path / "one.wav", sound, RATE, subtype="FLOAT")
    places, scores = load(tmp_path / "run").sounds(sound, RATE)
    # Between two scores: what is computed in other company differs in the last digits.
    low, high = np.sort(scores.ravel())[[9, 10]]
    threshold = float((low + high) / 2)
    out = tmp_path / "out"
    predict(tmp_path / "run", [str(tmp_path / "one.wav")], out, threshold=threshold, quiet=True)
    found = [(row["start_s"], row["label"]) for row in table(out / "predictions.csv")]
    expected = [
        (f"{start:.3f}", CLASSES[number])
        for (start, _), row in zip(places, scores, strict=True)
        for number in np.argsort(-row)
        if row[number] >= threshold
    ]
    assert found == expected and len(found) == scores.size - 10 > len(places)


def test_all_scores_of_all_windows_are_a_matrix(run, asked, field, tmp_path):
    out = tmp_path / "out"
    path = field / "a" / "1.wav"
    predict(run, [str(path)], out, threshold=1.0, all_scores=True, hop=1.0, quiet=True)
    rows = table(out / "predictions.csv")
    assert list(rows[0]) == ["file", "start_s", "end_s", "silent", *CLASSES]
    assert [(row["start_s"], row["silent"]) for row in rows] == [
        ("0.000", "0"), ("1.000", "1"), ("2.000", "0"), ("3.000", "0"),
    ]  # fmt: skip
    _, scores = asked.sounds(*soundfile.read(path, dtype="float32"))
    found = np.array([[row[name] for name in CLASSES] for row in rows], float)
    np.testing.assert_allclose(found[:3], scores[[0, 2, 4]], atol=1e-5)  # the last begins elsewhere
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    # Nothing reaches the threshold: the table for Raven has its header.
    only = (out / "1.dyn.selections.txt").read_text()
    assert (
        only.split("\n")[0].strip().split("\t") == list(raven_rows.COLUMNS)
        and only.count("\n") == 1
    )


def test_an_earlier_command_s_tables_go_where_that_is_asked_for(run, field, tmp_path):
    out = tmp_path / "out"
    predict(run, [str(field / "a")], out, threshold=1.0, quiet=True)
    assert table(out / "predictions.csv") == []  # a header alone: it was asked
    with pytest.raises(UserError, match=r"predictions\.csv is there already: .* give --overwrite"):
        predict(run, [str(field / "b")], out)
    predict(run, [str(field / "b" / "1.wav")], out, overwrite=True, merge=2, quiet=True)
    assert [p.name for p in out.rglob("*.txt")] == ["1.dyn.selections.txt"]
    assert not (out / "skipped.csv").exists()


def test_what_lies_before_the_break_of_a_recording_is_kept(run, field, tmp_path, rng, capsys):
    whole = field / "a" / "1.wav"
    cut, flac, broken = (tmp_path / "bad" / name for name in ("cut.wav", "cut.flac", "nan.wav"))
    cut.parent.mkdir()
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    noise = rng.normal(0, 0.1, 4 * RATE)
    soundfile.write(flac, noise, RATE)
    flac.write_bytes(flac.read_bytes()[: flac.stat().st_size // 2])
    sound = sweep(3, rng)
    sound[-10] = np.nan
    soundfile.write(broken, sound, RATE, subtype="FLOAT")
    soundfile.write(cut.with_name("slow.wav"), sweep(1, rng, 4_000), 4_000)
    for name in ("text.wav", "other.mp3"):
        cut.with_name(name).write_text("no sound")
    out = tmp_path / "out"
    assert predict(run, [str(cut.parent)], out, threshold=0.0) == (4, 2)
    notes = {Path(row["file"]).name: row["note"] for row in table(out / "per_file.csv")}
    assert notes.pop("slow.wav") == ""
    assert all(note.startswith("truncated") for note in notes.values()) and len(notes) == 3
    assert "nonfinite" in notes["nan.wav"]
    rows = table(out / "predictions.csv")
    ends = {
        name: max(float(r["end_s"]) for r in rows if r["file"].endswith(name)) for name in notes
    }
    assert 1.5 < ends["cut.wav"] < 1.7 and 1 < ends["cut.flac"] < 2.1 and 2 < ends["nan.wav"] < 3
    assert len(table(out / "skipped.csv")) == 2
    said = capsys.readouterr().out
    assert said.count("above 2,000 Hz nothing can be heard") == 1 and "3, noted in" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"paths": []}, "Give recordings or folders"),
        ({"paths": ["nowhere"]}, "There is no file or folder nowhere"),
        ({"paths": ["."]}, r"There is no sound file in \."),
        (
            {"paths": ["notes.wav"]},
            r"1 of 1 files cannot be used, such as notes\.wav \(not a .*csv says",
        ),
        ({"out": "p.csv"}, "for recordings give a folder"),
        ({"threshold": 1.5}, "--threshold=1.5: choose 0 to 1"),
        ({"threshold": float("nan")}, "--threshold=nan: choose 0 to 1"),
        ({"merge": 0}, "--merge=0: choose 1 or more"),
        ({"hop": -1.0}, "--hop=-1.0: choose a number"),
        ({"hop": float("inf")}, "--hop=inf: choose a number"),
        ({"batch_size": -1}, "--batch_size=-1: choose 1 or more"),
        ({"top": 3}, "--top is not for runs on recordings"),
    ],
)
def test_what_cannot_be_done_is_said(run, tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    Path("notes.wav").write_text("no sound")
    (tmp_path / "empty").mkdir()
    if options.get("paths") == ["."]:
        Path("notes.wav").rename("notes.txt")
    with pytest.raises(UserError, match=says):
        predict(run, **{"paths": ["notes.wav"], "out": "p", **options})
    assert not Path("p/predictions.csv").exists()


def test_after_a_command_that_found_nothing_the_next_one_goes_on(run, field, tmp_path):
    out, bad = tmp_path / "out", field / "b" / "empty.wav"
    for paths in ([str(bad)], [str(bad)]):
        with pytest.raises(UserError, match=r"skipped\.csv says why"):
            predict(run, paths, out, quiet=True)
    assert predict(run, [str(field / "a")], out, quiet=True) == (1, 0)
    assert not (out / "skipped.csv").exists()


def test_where_most_files_cannot_be_used_the_command_says_so_and_keeps_the_rest(
    run, field, tmp_path
):
    for number in range(7):
        (field / "b" / f"bad-{number}.wav").write_text("no sound")
    with pytest.raises(UserError, match=r"8 of 11 files cannot be used, such as b/bad-0") as caught:
        predict(run, [str(field)], tmp_path / "out", quiet=True)
    assert "b/bad-4" in str(caught.value) and "b/bad-5" not in str(caught.value)
    assert len(table(tmp_path / "out" / "per_file.csv")) == 3


def test_what_is_for_recordings_is_refused_elsewhere(tmp_path):
    write_finished(tmp_path / "run", config_with("folder,smoke", image_size=8), "abc", (8, 8, 3))
    for name, value in {"threshold": 0.5, "all_scores": True, "merge": 2, "hop": 1.0}.items():
        with pytest.raises(UserError, match=f"--{name} is for runs on recordings"):
            predict(tmp_path / "run", ["."], **{name: value})
    with pytest.raises(ValueError, match="the run was on folder"):
        load(tmp_path / "run").sounds(np.zeros(9), RATE)


def test_a_network_of_another_kind_says_nothing_of_recordings(asked, tmp_path):
    config = asked.config.copy_and_resolve_references()
    config.task = "acgan"
    other = trained.Trained(config, CLASSES, asked.shape, {})
    with pytest.raises(UserError, match="A run of the task acgan says of no recording"):
        predict_recordings.predict(other, ["."], tmp_path / "out")


def test_sounds_are_heard_at_any_rate_and_others_are_refused(asked, rng):
    sound = sweep(2.2, rng)
    places, scores = asked.sounds(sound, RATE)
    np.testing.assert_allclose(places, [[0, 1], [0.5, 1.5], [1, 2], [1.5, 2.2]])
    assert scores.shape == (4, 3) and scores.dtype == np.float32
    np.testing.assert_allclose(asked.sounds(np.repeat(sound, 2), 2 * RATE)[0], places)
    picture = rng.integers(0, 256, (12, 17, 1), np.uint8)
    np.testing.assert_allclose(asked([picture]).sum(), 1, atol=1e-5)
    for bad in (np.zeros((5, 2)), np.zeros(0), np.zeros(5, int), np.full(5, np.nan)):
        with pytest.raises(ValueError):
            asked.sounds(bad, RATE)


def test_of_several_classes_at_once_all_that_reach_the_threshold_are_said():
    scores = np.array([0.5, 0.9, np.nan, 0.2, 0.9])
    assert select_classes(scores, 0.5, several=True) == {1: 0.9, 4: 0.9, 0: 0.5}
    assert select_classes(scores, 0.5, several=False) == {1: 0.9}
    assert select_classes(scores, 0.95, several=False) == {}


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1, [(0, 0, 2, 0.5), (0, 1, 3, 1.0), (1, 1, 3, 0.25), (0, 2, 4, 0.6), (0, 5, 7, 0.5)]),
        (2, [(0, 0, 3, 0.75), (1, 1, 3, 0.25), (0, 2, 4, 0.6), (0, 5, 7, 0.5)]),
        (9, [(1, 1, 3, 0.25), (0, 0, 4, 0.7), (0, 5, 7, 0.5)]),
    ],
)
def test_neighbours_are_joined_and_a_gap_is_not_bridged(most, expected):
    starts = {0: {0: 0.5}, 1: {0: 1.0, 1: 0.25}, 2: {0: 0.6}, 5: {0: 0.5}}
    said = [(Interval(start, start + 2, start < 2), scores) for start, scores in starts.items()]
    found = list(join_intervals(iter(said), most))
    assert [(d.number, d.start, d.end, pytest.approx(d.score)) for d in found] == expected
    assert found[0].silent and not found[-1].silent


def test_a_cell_of_raven_s_table_stays_one_whatever_is_in_it(tmp_path):
    found = detections.Detection(0, 0.5, 1.25, 0.5, False)
    place = tmp_path / "x.txt"
    with detections.open_raven_table(place, Path("/a\tb/ 'c\"\n.wav"), 0, 4000) as select:
        select('big\towl, "Bubo"', found)
    (row,) = raven(place)
    assert row["Label"] == 'big owl, "Bubo"' and row["Begin Path"] == "/a b/ 'c\" .wav"
    assert (row["Begin Time (s)"], row["End Time (s)"], row["Score"]) == (
        "0.5",
        "1.25",
        "0.500000",
    )


def test_a_long_recording_takes_no_more_memory_than_a_short_one(run, tmp_path, rng, monkeypatch):
    one = load(run)
    said = np.array([0.2, 0.7, 0.1], np.float32)
    monkeypatch.setattr(
        trained.Trained, "_answer", lambda self, batch, _: ((key, said) for key, _ in batch)
    )
    peaks = []
    for seconds in (20, 20, 200):
        path = tmp_path / f"{seconds}.wav"
        soundfile.write(path, rng.normal(0, 0.1, seconds * RATE), RATE)
        tracemalloc.start()
        predict_recordings.predict(one, [str(path)], tmp_path / "out", overwrite=True, quiet=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(table(tmp_path / "out" / "predictions.csv")) == 399
    assert peaks[2] < 1.5 * peaks[1]


def test_what_was_heard_before_an_interruption_is_written(run, field, tmp_path, monkeypatch):
    one, answers = load(run), itertools.count()
    plain = trained.Trained._answer

    def interrupted(self, batch, size):
        if next(answers) == 2:
            raise KeyboardInterrupt
        return plain(self, batch, size)

    monkeypatch.setattr(trained.Trained, "_answer", interrupted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict_recordings.predict(one, [str(field)], out, threshold=0.0, batch_size=3, quiet=True)
    assert len(table(out / "predictions.csv")) == 5  # the last waits for what follows it
    assert len(raven(out / "a" / "1.dyn.selections.txt")) == 5


def test_a_command_ends_with_2_and_a_sentence_where_a_library_is_missing(run, field, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[audio\]"'):
        predict(run, [str(field)], field / "out")
