from experiments.core.files import write_json
from experiments.reports.data_agreement import list_data_differences
from experiments.reports.report import write_report


def write_data(folder, digest, examples):
    record = {
        "digest": digest,
        "classes": ["a"],
        "examples": {"train": examples},
        "digests": {"train": digest},
    }
    write_json(folder / "data.json", record)


def test_runs_on_other_data_are_named_in_the_report(tmp_path, write_run, capsys):
    for seed in range(2):
        write_data(write_run("base", seed=seed, data=f"one {seed}"), f"one {seed}", 90)
        write_data(write_run("hard", seed=seed, data=f"one {seed}"), f"one {seed}", 90)
        write_data(write_run("odconv", seed=seed, data="two"), "two", 1000)
    text = write_report([tmp_path / "runs"]).read_text()
    (note,) = [line for line in text.split("\n") if "same data" in line]
    assert "odconv and base" in note and "seed 0, seed 1" in note
    assert "train had 90 examples and has 1,000" in note
    assert "note: digits: The runs of odconv and base" in capsys.readouterr().out


def test_the_data_of_seeds_and_of_older_runs_may_differ(write_run, compare):
    folders = [write_run("base", data="a"), write_run("base", seed=1, data="b"), write_run("hard")]
    assert list_data_differences(compare(*folders)) == []


def test_without_its_record_only_the_digest_tells(write_run, compare):
    folders = [write_run("base", data="a"), write_run("odconv", data="b")]
    (note,) = list_data_differences(compare(*folders))
    assert "digests in summary.json differ" in note
    (folders[0] / "data.json").write_text("{")
    assert list_data_differences(compare(*folders)) == [note]
