"""Folders of predictions that somebody has corrected: what was deleted in one table is in others still."""

import hashlib

import pytest

from experiments.audio import annotations, corrections
from experiments.inference import detection_tables

NAMES = ["s/x.wav", "y.wav"]
RAVEN = "Selection\tBegin Time (s)\tEnd Time (s)\tLabel\tBegin Path\n"
WRITTEN = {
    "predictions.csv": "file,start_s,end_s,label,score,silent\ns/x.wav,0,1,wren,0.9,0\n"
    "s/x.wav,1,2,wren,0.9,0\ny.wav,0,1,wren,0.9,0\n",
    "predictions.raven.txt": RAVEN.replace("Label", "File Offset (s)\tLabel")
    + "1\t0\t1\t0\twren\ts/x.wav\n2\t1\t2\t1\twren\ts/x.wav\n3\t9\t10\t0\twren\ty.wav\n",
    "s/x.dyn.selections.txt": RAVEN + "1\t0\t1\twren\ts/x.wav\n2\t1\t2\twren\ts/x.wav\n",
    "y.dyn.selections.txt": RAVEN + "1\t0\t1\twren\ty.wav\n",
    "s/x.dyn.labels.txt": "0\t1\twren\n1\t2\twren\n",
    "y.dyn.labels.txt": "0\t1\twren\n",
}
ALL = [("s/x.wav", 0), ("s/x.wav", 1), ("y.wav", 0)]


@pytest.fixture
def read(tmp_path):
    """Returns a function that reads a folder of some tables, of which a few have been changed."""

    def read(names, **changed):
        heard = tmp_path / "heard"
        digests = [["file", "sha256"]]
        for name in names:
            content = WRITTEN[name].encode()
            digests.append([name, hashlib.sha256(content).hexdigest()])
            (heard / name).parent.mkdir(parents=True, exist_ok=True)
            (heard / name).write_bytes(content)
        (heard / "written.csv").write_text("\n".join(map(",".join, digests)) + "\n")
        for name, content in changed.items():
            (heard / name).write_text(content)
        return annotations.read_annotations(tmp_path, NAMES, str(heard))

    return read


def describe(found):
    return sorted((row.file, row.start) for row in found.rows)


def test_names_are_those_of_the_predictions():
    common = set(detection_tables.NAMES.values()) - {"predictions.parquet"}  # It is not read.
    assert set(corrections.EDITABLE) == common


def test_what_was_deleted_stays_deleted(read):
    deleted = {
        "s/x.dyn.selections.txt": RAVEN + "2\t1\t2\twren\ts/x.wav\n",
        "y.dyn.selections.txt": RAVEN,
        "s/x.dyn.selections.earlier.txt": WRITTEN["s/x.dyn.selections.txt"],
        "predictions.earlier-2.csv": WRITTEN["predictions.csv"],
    }
    found = read(WRITTEN, **deleted)
    assert describe(found) == [("s/x.wav", 1)] and set(found.files) == set(NAMES)
    assert {row.origin.split(",")[0] for row in found.rows} == {"x.dyn.selections.txt"}
    reasons = dict(found.skipped)
    for name in WRITTEN.keys() - deleted.keys():
        assert reasons[name].startswith("its detections are read from")
    assert all("earlier" in reasons[name] for name in deleted if "earlier" in name)


@pytest.mark.parametrize(
    ("changed", "content", "expected"),
    [
        ("s/x.dyn.labels.txt", "1\t2\twren\n", [("s/x.wav", 1), ("y.wav", 0)]),
        ("s/x.dyn.labels.txt", "", [("y.wav", 0)]),
        ("predictions.csv", "file;start_s;end_s;label\ny.wav;0,0;1,0;wren\n", [("y.wav", 0)]),
        ("predictions.raven.txt", WRITTEN["predictions.raven.txt"].rpartition("3\t")[0], ALL[:2]),
    ],
)
def test_the_table_that_was_changed_is_read(read, changed, content, expected):
    found = read(WRITTEN, **{changed: content})
    assert describe(found) == expected


@pytest.mark.parametrize(
    "names", [WRITTEN, ["predictions.csv"], [name for name in WRITTEN if "labels" in name]]
)
def test_without_corrections_each_detection_is_read_once(read, names):
    found = read(names)
    assert describe(found) == ALL and set(found.files) == set(NAMES)


def test_tables_in_other_folders_are_all_read(read, tmp_path):
    found = read(WRITTEN)
    (tmp_path / "heard" / "written.csv").write_text("file,split\na,b\n")
    found = annotations.read_annotations(tmp_path, NAMES, str(tmp_path / "heard"))
    assert len(found.rows) == 4 * len(ALL) and not found.skipped[1:]
