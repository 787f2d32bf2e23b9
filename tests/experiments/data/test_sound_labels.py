import numpy as np
from finished_runs import config_with

from experiments.audio.annotations import Annotation
from experiments.audio.targets import compute_targets
from experiments.data import sound_labels


def test_a_pattern_labels_the_recordings_that_no_table_names(tmp_path):
    marks = tmp_path / "marks.csv"
    marks.write_text(
        "file,start,end,label,mark\nnew/a.wav,1,3,owl,right\nnew/a.wav,4,6,owl,wrong\n"
    )
    config = config_with("audio,smoke", **{"audio.labels": "multi"})
    audio = config.audio.copy_and_resolve_references()
    audio.annotations, audio.label_pattern = str(marks), "^old/([^/]+)/"
    names = ["old/wren/x.wav", "new/a.wav", "new/b.wav"]
    table = sound_labels.read_labels(tmp_path, names, audio)
    assert set(table.by_name) == {"old/wren/x.wav", "new/a.wav"}
    assert table.by_name["old/wren/x.wav"].positive == ("wren",)
    marked = table.by_name["new/a.wav"]
    assert (marked.positive, marked.negative) == (("owl",), ("owl",))
    assert [name for name, _ in table.skipped] == ["new/b.wav"]


def test_labels_of_clips_say_nothing_about_windows_that_only_touch_them():
    starts = np.arange(5.0)
    for positive, windows, (start, end) in (
        (True, [1], (1.001, 3.001)),  # as heard, with a rounded time
        (False, [1], (1.001, 3.001)),
        (True, [1, 2, 3], (1.0, 5.0)),  # a longer clip is in none of its windows for sure
        (False, [1, 2, 3], (1.0, 5.0)),
        (True, [0, 1], (1.2, 1.8)),
        (False, [], (1.2, 1.8)),
        (True, [0], (0.5, 2.5)),  # of another grid: the window that overlaps it most
        (False, [], (0.5, 2.5)),
    ):
        clip = Annotation("a.wav", start, end, "wren", positive, is_clip=True)
        found = compute_targets(starts, starts + 2, [clip], ["wren"])[:, 0]
        assert np.flatnonzero(found == float(positive)).tolist() == windows, (positive, start, end)
        assert np.isnan(np.delete(found, windows)).all()


def test_recordings_of_other_species_are_absences_where_everything_is_annotated():
    audio = config_with("audio,smoke", **{"audio.labels": "multi"}).audio
    by_name = {
        f"{label}.wav": sound_labels.RecordingLabels(
            (label,), annotations=[Annotation(f"{label}.wav", 1, 2, label)]
        )
        for label in ("wren", "owl")
    }
    for labels in ("class", "multi", "frames"):
        audio.labels = labels
        for audio.exhaustive in (False, True):
            kept = set(sound_labels.select_classes(by_name, ["wren"], audio))
            both = audio.exhaustive and labels != "class"
            assert kept == ({"wren.wav", "owl.wav"} if both else {"wren.wav"})
