"""Predicting recordings: the tables, what is left out, breaks, interruptions and memory."""

import csv
import dataclasses
import hashlib
import sys
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from finished_runs import config_with, read_table

from experiments.audio import annotations, raven
from experiments.core import files
from experiments.core.errors import UserError
from experiments.inference.predict import predict
from experiments.inference.recordings import predict_recordings
from experiments.inference.trained import Trained

soundfile = pytest.importorskip("soundfile")

RATE = 8_000
CLASSES = ["wren", 'a "great" owl', "rain"]
AUDIO = {
    "sample_rate": RATE, "seconds": 1.0, "hop": 0.5, "n_fft": 256, "step": 500, "bands": 12,
    "colour": "magma",
}  # fmt: skip
COLUMNS = ["file", "start_s", "end_s", "label", "score", "silent"]


def make_trained(task="classification", source="run"):
    """A linear network, quick to compile, for windows of a second, 12 bands by 17 moments."""

    def predict(model, variables, inputs):
        weights = jax.numpy.array([[9, -5, 2], [-8, 4, 1], [3, 2, -6]], inputs.dtype)
        return jax.nn.softmax(inputs.mean((1, 2)) @ weights)

    config = config_with("audio,smoke", task=task, **{f"audio.{n}": v for n, v in AUDIO.items()})
    trained = Trained(config, CLASSES, (12, 17, 3), {}, Path(source))
    trained.task.predict = predict
    return trained


@pytest.fixture(scope="module")
def trained():
    return make_trained()


def make_sweep(seconds, rng, rate=RATE):
    """A tone that rises and falls."""
    times = np.arange(round(seconds * rate)) / rate
    low, high = rng.uniform(300, 900), rng.uniform(1000, 3000)
    phase = low * times + (high - low) * np.sin(2 * times) / 4
    return (0.5 * np.sin(2 * np.pi * phase)).astype(np.float32)


@pytest.fixture
def field(tmp_path, rng):
    """Recordings in two folders, two with one stem, and files that are no recordings."""
    root = tmp_path / "field"
    for place, seconds in (("a/1.wav", 3.25), ("b/1.wav", 2.0), ("b/1.FLAC", 0.4)):
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        sound = make_sweep(seconds, rng)
        sound[RATE : 2 * RATE] = 0
        soundfile.write(path, sound, RATE, subtype="PCM_16")
    (root / "b" / "1.Table.1.selections.txt").write_text("not meant")
    (root / "b" / "empty.wav").touch()
    return root


def read_raven(path):
    return read_table(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def test_windows_above_the_threshold_become_rows(trained, field, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(trained, [str(field)], out, threshold=0.4) == (3, 1)
    rows = read_table(out / "predictions.csv")
    assert list(rows[0]) == COLUMNS

    expected, best = [], {}
    for name in ("a/1.wav", "b/1.FLAC", "b/1.wav"):
        path = field / name
        places, scores = trained.sounds(*soundfile.read(path, dtype="float32"))
        two = np.sort(scores, axis=0)[::-1][:2]
        best[str(path)] = np.stack([two[0], two.mean(axis=0)], axis=-1).ravel()
        for (start, end), row in zip(places, scores, strict=True):
            if row.max() >= 0.4:
                label, score = CLASSES[row.argmax()], row.max()
                expected.append((str(path), f"{start:.3f}", f"{end:.3f}", label, score))
    assert [tuple(row.values())[:4] for row in rows] == [row[:4] for row in expected]
    assert len(rows) > 5
    scores = [float(row["score"]) for row in rows]
    np.testing.assert_allclose(scores, [row[4] for row in expected], atol=1e-5)
    assert {row["end_s"] for row in rows} >= {"3.250", "0.400", "2.000"}
    for row in rows:
        silent = row["start_s"] == "1.000" and not row["file"].endswith("FLAC")
        assert row["silent"] == str(int(silent))

    windows = {"a/1.wav": 6, "b/1.FLAC": 1, "b/1.wav": 3}
    for row in read_table(out / "per_file.csv"):
        path, number, note, *shares = row.values()
        assert int(number) == windows[Path(path).relative_to(field).as_posix()] and note == ""
        np.testing.assert_allclose(np.array(shares, float), best[path], atol=1e-5)
    assert list(row)[3:5] == ["wren_max", "wren_mean_top2"]
    (bad,) = read_table(out / "skipped.csv")
    assert bad == {"file": str(field / "b" / "empty.wav"), "reason": "the file is empty"}
    output = capsys.readouterr().out
    assert "3" in output and f"1, listed in {out / 'skipped.csv'}" in output

    # The same rows for Raven, one table per recording; the next test compares their intervals.
    names = ("a/1", "b/1", "b/1.wav")
    tables = [read_raven(out / f"{name}.dyn.selections.txt") for name in names]
    assert len(list(out.rglob("*.txt"))) == 3 and list(tables[0][0]) == list(raven.COLUMNS)
    selections = [(row["Begin Path"], row["Score"]) for table in tables for row in table]
    assert selections == [(row["file"], row["score"]) for row in rows]


def test_tables_for_raven_are_read_back(trained, field, tmp_path):
    out = tmp_path / "out"
    predict(trained, [str(field)], out, threshold=0.4, hop=0.3)
    rows = read_table(out / "predictions.csv")
    for name, path in (("a/1", "a/1.wav"), ("b/1", "b/1.FLAC"), ("b/1.wav", "b/1.wav")):
        read, wrong = annotations.read_raven_table(out / f"{name}.dyn.selections.txt", path)
        written = [row for row in rows if row["file"] == str(field / path)]
        assert not wrong and len(read) == len(written) > 0
        for one, row in zip(read, written, strict=True):
            assert (one.start, one.end) == (float(row["start_s"]), float(row["end_s"]))
            assert (one.label, one.low, one.high) == (row["label"], 0, RATE / 2)


def test_tagging_writes_all_labels_that_reach_the_threshold(tmp_path, rng):
    trained, out = make_trained("tagging"), tmp_path / "out"
    sound = make_sweep(4, rng)
    soundfile.write(tmp_path / "one.wav", sound, RATE, subtype="FLOAT")
    places, scores = trained.sounds(sound, RATE)
    # Between two scores: those of another batch differ in the last digits.
    threshold = float(np.sort(scores.ravel())[[9, 10]].mean())
    predict(trained, [str(tmp_path / "one.wav")], out, threshold=threshold)
    rows = [(row["start_s"], row["label"]) for row in read_table(out / "predictions.csv")]
    assert rows == [
        (f"{start:.3f}", CLASSES[number])
        for (start, _), row in zip(places, scores, strict=True)
        for number in np.argsort(-row)
        if row[number] >= threshold
    ]
    assert len(rows) == scores.size - 10 > len(places)


def test_all_scores_are_a_matrix(trained, field, tmp_path):
    out, path = tmp_path / "out", field / "a" / "1.wav"
    predict(trained, [str(path)], out, threshold=1.0, all_scores=True, hop=1.0)
    rows = read_table(out / "predictions.csv")
    assert list(rows[0]) == ["file", "start_s", "end_s", "silent", *CLASSES]
    assert [(row["start_s"], row["silent"]) for row in rows] == [
        ("0.000", "0"), ("1.000", "1"), ("2.000", "0"), ("3.000", "0"),
    ]  # fmt: skip
    _, scores = trained.sounds(*soundfile.read(path, dtype="float32"))
    written = np.array([[row[name] for name in CLASSES] for row in rows], float)
    np.testing.assert_allclose(written[:3], scores[[0, 2, 4]], atol=1e-5)  # The last differs.
    np.testing.assert_allclose(written.sum(axis=1), 1, atol=1e-5)
    # Nothing reaches the threshold: the table for Raven has only its header.
    header, rest = (out / "1.dyn.selections.txt").read_text().split("\n")
    assert header.strip().split("\t") == list(raven.COLUMNS) and not rest


def test_earlier_tables_are_replaced_only_with_overwrite(trained, field, tmp_path):
    out = tmp_path / "out"
    predict(trained, [str(field / "a")], out, threshold=1.0)
    assert read_table(out / "predictions.csv") == []  # A header alone protects, too.
    with pytest.raises(UserError, match=r"predictions\.csv exists.*--overwrite"):
        predict(trained, [str(field / "b")], out)
    predict(trained, [str(field / "b" / "1.wav")], out, overwrite=True, merge=2)
    assert [path.name for path in out.rglob("*.txt")] == ["1.dyn.selections.txt"]
    assert not (out / "skipped.csv").exists()


def test_tables_that_somebody_has_corrected_are_kept(trained, field, tmp_path, capsys):
    out, inputs = tmp_path / "out", [str(field / "a"), str(field / "b")]
    predict(trained, inputs, out, threshold=0.0)
    corrected, own = out / "a" / "1.dyn.selections.txt", out / "b" / "1.dyn.selections.txt"
    corrected.write_text("Selection\tSpecies\n1\tlark\n")
    other = out / "other" / "9.dyn.selections.txt"  # of another prediction
    other.parent.mkdir()
    other.write_text("theirs")
    for name in ("predictions.csv", "per_file.csv"):
        (out / name).rename(tmp_path / name)
    with pytest.raises(UserError, match=r"1\.dyn\.selections\.txt exists.*--overwrite"):
        predict(trained, inputs, out)
    assert "lark" in corrected.read_text() and own.exists()

    predict(trained, [str(field / "a"), str(field / "b" / "1.wav")], out, overwrite=True)
    assert not own.exists() and other.read_text() == "theirs"
    assert "lark" in corrected.with_name("1.dyn.selections.earlier.txt").read_text()
    assert "lark" not in corrected.read_text()
    assert "1.dyn.selections.earlier.txt, not written" in capsys.readouterr().out


def test_a_foreign_list_of_files_deletes_nothing(trained, field, tmp_path):
    out, victim = tmp_path / "out", tmp_path / "x.dyn.selections.txt"
    out.mkdir()
    victim.write_text("")
    digest = hashlib.sha256(b"").hexdigest()
    names = ("../x.dyn.selections.txt", str(victim), ".", "..")
    (out / "written.csv").write_text("".join(f"{n},{digest}\n" for n in ("file", *names)))
    with pytest.raises(UserError, match=r"written\.csv is not the list"):
        predict(trained, [str(field / "a")], out, overwrite=True)
    (out / "written.csv").write_text("file,sha256\n" + "".join(f"{n},{digest}\n" for n in names))
    (out / "skipped.csv").write_text("my notes")
    with pytest.raises(UserError, match=r"skipped\.csv exists.*not written it"):
        predict(trained, [str(field / "a")], out, overwrite=True)
    (out / "skipped.csv").unlink()
    predict(trained, [str(field / "a")], out, overwrite=True)
    assert victim.exists()


def test_classes_are_left_out(field, tmp_path):
    trained = make_trained("tagging")
    options = {"threshold": 0.0, "without": ["rain"]}
    predict(trained, [str(field)], tmp_path / "all", threshold=0.0)
    predict(trained, [str(field)], tmp_path / "less", **options)
    rows = read_table(tmp_path / "all" / "predictions.csv")
    less = read_table(tmp_path / "less" / "predictions.csv")
    assert less == [row for row in rows if row["label"] != "rain"] and 0 < len(less) < len(rows)
    assert "rain_max" not in read_table(tmp_path / "less" / "per_file.csv")[0]
    predict(trained, [str(field)], tmp_path / "scores", all_scores=True, **options)
    columns = list(read_table(tmp_path / "scores" / "predictions.csv")[0])
    assert columns == [*COLUMNS[:3], "silent", *CLASSES[:2]]
    with pytest.raises(UserError, match=r"--without=wrne.*wren"):
        predict(trained, [str(field)], tmp_path / "x", without=["wrne"])
    with pytest.raises(UserError, match="leaves no class"):
        predict(trained, [str(field)], tmp_path / "x", without=CLASSES)


def test_thresholds_of_the_classes_are_those_of_the_run(field, tmp_path):
    trained = make_trained("tagging", tmp_path / "run")
    predict(trained, [str(field)], tmp_path / "all", threshold=0.0)
    with pytest.raises(UserError, match=r"per_class\.csv cannot be read"):
        predict(trained, [str(field)], tmp_path / "x", threshold="run")
    table = tmp_path / "run" / "per_class.csv"
    table.parent.mkdir()
    limits = dict(zip(CLASSES, (0.3, 0.5, 0.2), strict=True))
    cells = ["" if limit == 0.5 else str(limit) for limit in limits.values()]
    files.write_csv(table, ["label", "best_threshold"], zip(CLASSES, cells, strict=True))
    expected = [
        row
        for row in read_table(tmp_path / "all" / "predictions.csv")
        if float(row["score"]) >= limits[row["label"]]
    ]
    for number, threshold in enumerate(("run", str(table))):
        predict(trained, [str(field)], tmp_path / f"{number}", threshold=threshold)
        assert read_table(tmp_path / f"{number}" / "predictions.csv") == expected
    for cells, message in ((["2"] * 3, "not 0 to 1"), (["x"] * 3, "not 0 to 1"), ([], "no table")):
        files.write_csv(table, ["label", "threshold"], zip(CLASSES, cells, strict=False))
        with pytest.raises(UserError, match=message):
            predict(trained, [str(field)], tmp_path / "x", threshold="run")
    files.write_csv(table, ["label", "threshold"], [("wren", "0.5")])
    with pytest.raises(UserError, match="no threshold of a"):
        predict(trained, [str(field)], tmp_path / "x", threshold="run")


def test_sounds_of_other_formats_are_listed(trained, field, tmp_path):
    (field / "a" / "2.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(99))
    assert predict(trained, [str(field / "a")], tmp_path / "out") == (1, 1)
    (row,) = read_table(tmp_path / "out" / "skipped.csv")
    assert row["file"].endswith("2.m4a") and "MPEG-4" in row["reason"]


def test_windows_before_the_break_of_a_recording_are_kept(trained, field, tmp_path, rng, capsys):
    whole = field / "a" / "1.wav"
    cut, flac, broken = (tmp_path / "bad" / name for name in ("cut.wav", "cut.flac", "nan.wav"))
    cut.parent.mkdir()
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    soundfile.write(flac, rng.normal(0, 0.1, 4 * RATE), RATE)
    flac.write_bytes(flac.read_bytes()[: flac.stat().st_size // 2])
    sound = make_sweep(3, rng)
    sound[-10] = np.nan
    soundfile.write(broken, sound, RATE, subtype="FLOAT")
    soundfile.write(cut.with_name("slow.wav"), make_sweep(1, rng, 4_000), 4_000)
    for name in ("text.wav", "other.mp3"):
        cut.with_name(name).write_text("no sound")
    out = tmp_path / "out"
    assert predict(trained, [str(cut.parent)], out, threshold=0.0) == (4, 2)
    notes = {Path(row["file"]).name: row["note"] for row in read_table(out / "per_file.csv")}
    assert notes.pop("slow.wav") == ""
    assert all(note.startswith("truncated") for note in notes.values()) and len(notes) == 3
    assert "nonfinite" in notes["nan.wav"]
    rows = read_table(out / "predictions.csv")
    ends = {
        name: max(float(r["end_s"]) for r in rows if r["file"].endswith(name)) for name in notes
    }
    assert 1.5 < ends["cut.wav"] < 1.7 and 1 < ends["cut.flac"] < 2.1 and 2 < ends["nan.wav"] < 3
    assert len(read_table(out / "skipped.csv")) == 2
    output = capsys.readouterr().out
    assert output.count("above 2,000 Hz") == 1 and "3, noted in" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paths": ["."]}, r"no sound file in \."),
        ({"paths": ["notes.wav"]}, r"1 of 1 file .*notes\.wav \(not a "),
        ({"out": "p.csv"}, "give a folder"),
        ({"threshold": 1.5}, "--threshold=1.5"),
        ({"threshold": float("nan")}, "--threshold=nan"),
        ({"merge": 0}, "--merge=0"),
        ({"hop": -1.0}, "--hop=-1.0"),
        ({"hop": float("inf")}, "--hop=inf"),
        ({"top": 3}, "--top is not for runs on recordings"),
        ({"format": "raven,wav"}, "--format=wav"),
    ],
)
def test_mistakes_are_explained(trained, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    Path("notes.wav").write_text("no sound")
    if options.get("paths") == ["."]:
        Path("notes.wav").rename("notes.txt")
    with pytest.raises(UserError, match=message):
        predict(trained, **{"paths": ["notes.wav"], "out": "p", **options})
    assert not Path("p/predictions.csv").exists()


def test_runs_without_classes_cannot_label_recordings(trained, tmp_path):
    config = trained.config.copy_and_resolve_references()
    config.task = "acgan"
    with pytest.raises(UserError, match="run of acgan"):
        predict_recordings(dataclasses.replace(trained, config=config), ["."], tmp_path / "out")


def test_a_failed_command_does_not_stop_the_next(trained, field, tmp_path):
    out, bad = tmp_path / "out", field / "b" / "empty.wav"
    for _ in range(2):
        with pytest.raises(UserError, match=r"skipped\.csv has all reasons"):
            predict(trained, [str(bad)], out)
    assert predict(trained, [str(field / "a")], out) == (1, 0)
    assert not (out / "skipped.csv").exists()


def test_if_most_files_cannot_be_used_the_rest_is_kept(trained, field, tmp_path):
    for number in range(7):
        (field / "b" / f"bad-{number}.wav").write_text("no sound")
    with pytest.raises(UserError, match=r"8 of 11 files .*b/bad-0") as caught:
        predict(trained, [str(field)], tmp_path / "out")
    assert "b/bad-4" in str(caught.value) and "b/bad-5" not in str(caught.value)
    assert len(read_table(tmp_path / "out" / "per_file.csv")) == 3


def test_sounds_of_any_rate_are_cut_into_windows(trained, rng):
    sound = make_sweep(2.2, rng)
    places, scores = trained.sounds(sound, RATE)
    np.testing.assert_allclose(places, [[0, 1], [0.5, 1.5], [1, 2], [1.5, 2.2]])
    assert scores.shape == (4, 3) and scores.dtype == np.float32
    np.testing.assert_allclose(trained.sounds(np.repeat(sound, 2), 2 * RATE)[0], places)
    spectrogram = rng.integers(0, 256, (12, 17, 1), np.uint8)
    np.testing.assert_allclose(trained([spectrogram]).sum(), 1, atol=1e-5)
    for bad in (np.zeros((5, 2)), np.zeros(0), np.zeros(5, int), np.full(5, np.nan)):
        with pytest.raises(ValueError):
            trained.sounds(bad, RATE)


def test_a_long_recording_takes_no_more_memory_than_a_short_one(trained, tmp_path, rng):
    peaks = []
    for seconds in (20, 20, 200):
        path = tmp_path / f"{seconds}.wav"
        soundfile.write(path, rng.normal(0, 0.1, seconds * RATE), RATE)
        tracemalloc.start()
        predict(trained, [str(path)], tmp_path / "out", threshold=0.0, overwrite=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(read_table(tmp_path / "out" / "predictions.csv")) == 399
    assert peaks[2] < 1.5 * peaks[1]


def test_predictions_before_an_interruption_are_written(trained, field, tmp_path, monkeypatch):
    real, out = Trained.predict_batches, tmp_path / "out"

    def interrupted(self, *args, **options):
        for number, batch in enumerate(real(self, *args, **options)):
            if number == 2:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(Trained, "predict_batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(trained, [str(field)], out, threshold=0.0, batch_size=3)
    assert len(read_table(out / "predictions.csv")) == 5  # The last waits for its successor.
    assert len(read_raven(out / "a" / "1.dyn.selections.txt")) == 5


def test_a_missing_library_is_named(trained, field, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[audio\]"'):
        predict(trained, [str(field)], field / "out")
