"""A run's record of its data is written and read, and an old or damaged one is not believed."""

from experiments.core.files import write_csv
from experiments.data.dataset import Dataset
from experiments.data.fingerprint import Entry, Fingerprint
from experiments.runs import data_record
from experiments.runs.data_record import DataRecord, read_known_entries, read_record, write_record

# A name that is no UTF-8, and others that a table has to quote.
NAMES = ["a.wav", "\udcff.wav", 'b, "c"\n.wav', "=cmd.wav"]
ENTRIES = [Entry("train", name, "x;y", "0f", "1a") for name in NAMES]
FINGERPRINT = Fingerprint("d1", ["x", "y"], {"train": 4}, {"train": "d2"}, ENTRIES)
DATASET = Dataset("birds", {}, ["x", "y"], (1, 1, 1), assignment=[("a.wav", "train")])


def test_what_is_written_is_read(tmp_path):
    record = DataRecord(FINGERPRINT, [{"step": 3, "change": "1 file was added", "digest": "d0"}])
    write_record(tmp_path, record, DATASET)
    assert read_record(tmp_path) == record and read_known_entries(tmp_path) == ENTRIES
    first = (tmp_path / "data.jsonl.gz").read_bytes()
    write_record(tmp_path, record, DATASET)
    assert (tmp_path / "data.jsonl.gz").read_bytes() == first


def test_older_runs_on_recordings_have_splits_alone(tmp_path):
    assert read_record(tmp_path) is None and read_known_entries(tmp_path) == []
    write_csv(tmp_path / "splits.csv", ("file", "split"), [("a.wav", "test"), ("z.wav", "test")])
    assert read_known_entries(tmp_path) == [
        Entry("test", name, "", "", "") for name in ("a.wav", "z.wav")
    ]


def test_a_list_of_another_form_is_no_list(tmp_path, monkeypatch):
    write_record(tmp_path, DataRecord(FINGERPRINT), DATASET)
    file = tmp_path / "data.jsonl.gz"
    content = file.read_bytes()
    for damaged in (content[:-9], b"", b"\x1f\x8b", content[:20] + b"?" + content[21:]):
        file.write_bytes(damaged)
        assert read_record(tmp_path).fingerprint.entries == []
    file.write_bytes(content)
    monkeypatch.setattr(data_record, "MAX_LIST_BYTES", 40)  # a bomb is not unpacked
    assert data_record.read_entries(tmp_path) == []
