"""A run is continued with its own data, or with a word about what has changed."""

import json
import shutil

import pytest
from picture_files import encode_grey, write_classes
from small_runs import small

from experiments.configs import base
from experiments.core.errors import UserError
from experiments.core.files import write_json
from experiments.data.fingerprint import list_files_and_contents
from experiments.runs.data_record import reload_data
from experiments.train import run_data
from experiments.train.run_data import describe_new_data, load_run_data


@pytest.fixture
def root(tmp_path):
    return write_classes(tmp_path / "pets")


@pytest.fixture
def config(root):
    return small(base, "folder,smoke", **{"data.source": str(root), "data.limit": 0})


@pytest.fixture
def workdir(tmp_path, config):
    """The folder of a run that has been stopped after its fourth step."""
    workdir = tmp_path / "run"
    record = load_run_data(config, workdir, False)[1]
    digest = record.fingerprint.digest
    write_json(workdir / "checkpoints" / "4" / "progress" / "metadata", {"data": digest})
    return workdir


def read_facts(workdir):
    return json.loads((workdir / "data.json").read_text())


def split_of_files(workdir):
    return {row[1]: row[0] for row in run_data.read_record(workdir).fingerprint.entries}


def test_changed_data_is_refused_unless_it_is_meant(workdir, config, root, capsys):
    before, known = read_facts(workdir), split_of_files(workdir)
    load_run_data(config, workdir, False)
    (root / "cat" / "new.png").write_bytes(encode_grey(77))
    (root / "dog" / "3.png").unlink()
    with pytest.raises(UserError) as error:
        load_run_data(config, workdir, False)
    for words in ("1 file was added (cat/new.png)", "1 file was removed", "--accept_new_data"):
        assert words in str(error.value)
    assert read_facts(workdir) == before
    load_run_data(config, workdir, True)
    assert "this run continues with other data: 1 file was added" in capsys.readouterr().out
    (change,) = read_facts(workdir)["changes"]
    assert (
        change["step"] == 4 and change["digest"] == before["digest"] and "added" in change["change"]
    )
    after = split_of_files(workdir)
    assert all(after[file] == known[file] for file in known if file in after)
    assert load_run_data(config, workdir, False)[1].changes == [change]


def test_a_run_without_results_takes_any_data(workdir, config, root):
    shutil.rmtree(workdir / "checkpoints")
    (root / "cat" / "new.png").write_bytes(encode_grey(77))
    assert not load_run_data(config, workdir, False)[1].changes


def test_the_checkpoint_knows_the_data_too(workdir, config, root):
    (workdir / "data.json").unlink()
    (root / "cat" / "new.png").write_bytes(encode_grey(77))
    with pytest.raises(UserError, match="differs from the checkpoint's"):
        load_run_data(config, workdir, False)
    # A run from before there were digests continues, and has one from now on.
    write_json(workdir / "checkpoints" / "4" / "progress" / "metadata", {})
    load_run_data(config, workdir, False)
    assert read_facts(workdir)["examples"]["train"] == 15


def test_a_damaged_record_is_one_sentence(workdir, config):
    (workdir / "data.json").write_text("{}")
    with pytest.raises(UserError, match=r"data.json cannot be read: it has no digest"):
        load_run_data(config, workdir, False)
    (workdir / "data.json").unlink()
    (workdir / "data.jsonl.gz").write_bytes(b"\x1f\x8b\x08 no list")
    load_run_data(config, workdir, False)


@pytest.mark.parametrize("one_of_many", [False, True])
def test_a_finished_run_says_what_has_changed(workdir, config, root, one_of_many):
    assert describe_new_data(config, workdir, one_of_many) == ""
    run_data._compute_digest_once.cache_clear()
    (root / "dog" / "3.png").unlink()
    note = describe_new_data(config, workdir, one_of_many)
    assert note.startswith("The data has changed since this run: 1 file was removed (dog/3.png)")
    run_data._compute_digest_once.cache_clear()
    shutil.rmtree(root)
    assert "could not be compared" in describe_new_data(config, workdir, one_of_many)
    (workdir / "data.json").unlink()
    assert describe_new_data(config, workdir, one_of_many) == ""


def test_hosts_with_different_data_are_refused(workdir, config, monkeypatch):
    monkeypatch.setattr(run_data, "hosts_agree", lambda text: False)
    with pytest.raises(UserError, match="the processes see different data"):
        load_run_data(config, workdir, False)


def test_the_test_split_of_a_run_is_what_it_was_tested_on(workdir, config, root):
    known = split_of_files(workdir)
    dataset, warning = reload_data(config, ["cat", "dog"], workdir, ["test"])
    assert len(dataset.splits["test"]) == 4 and warning == ""
    for number in range(30):
        (root / "cat" / f"00{number}.png").write_bytes(encode_grey(200 + number))
    dataset, warning = reload_data(config, ["cat", "dog"], workdir, ["test"])
    source = dataset.splits["test"]
    assert "the data has changed since" in warning and "30 files were added" in warning
    files, _ = list_files_and_contents(source)
    assert all(known.get(file, "test") == "test" for file in files) and len(files) > 4
    assert reload_data(config, ["cat", "dog"], workdir / "weights.safetensors", ["test"])[1] == ""


@pytest.mark.parametrize("place", ["", "weights.safetensors"])
def test_data_with_other_classes_than_the_run_is_refused(workdir, config, root, place):
    (root / "ant").mkdir()
    for number in range(10):
        (root / "ant" / f"{number}.png").write_bytes(encode_grey(100 + number))
    with pytest.raises(UserError, match=r"new: ant; missing: none"):
        reload_data(config, ["cat", "dog"], workdir / place, ["test"])
