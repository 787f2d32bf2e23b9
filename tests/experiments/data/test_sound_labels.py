from finished_runs import config_with

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
