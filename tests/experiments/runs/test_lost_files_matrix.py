"""One file of a run is lost: the run goes on as it would have, and what is missing is said."""

import shutil

import pytest
from small_runs import interrupted_before, small

from experiments.configs import base
from experiments.core.errors import UserError
from experiments.load import load
from experiments.train.loop import train

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("standard_promotion")]

UNFINISHED = {  # to the words that say so
    "config.json": "config.json was missing; it has been restored",
    "metrics.jsonl": "no row before step 6: the curves begin there",
    "checkpoints": "no checkpoint is left: it begins again",
    "checkpoints/6": "",  # as if it had been stopped before
    "checkpoints/6/progress/metadata": "checkpoint 6 is not used",
    "checkpoints/6/state": "checkpoint 6 is not used",
    "checkpoints/6/state/_METADATA": "checkpoint 6 is not used",
    "checkpoints/6/checksums.json": "",
    "checkpoints/4/metrics": "checkpoint 4 is not used",
    "checkpoints/4": "",
    "lock": "",
}
FINISHED = {
    "config.json": "",
    "checkpoints": "checkpoints/8 is missing",
    "metrics.jsonl": "",
    "figures": "",
    "lock": "",
    "summary.json": "not a finished run",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, compiled_once):
    """The folder of an unfinished and of a finished run, and a function that continues one."""
    folder, config, programs = tmp_path_factory.mktemp("runs"), small(base), {}
    with interrupted_before(7):
        train(config, folder / "unfinished", programs)
    train(config, folder / "finished", programs)
    return folder, lambda workdir: train(config, workdir, programs)


def lose(folder, name, place):
    """Copies a run without one file or folder."""
    shutil.copytree(folder, place)
    target = place / name
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    return place


@pytest.mark.parametrize("name", UNFINISHED)
def test_an_unfinished_run_goes_on(runs, name, tmp_path, capfd):
    folder, go_on = runs
    workdir = lose(folder / "unfinished", name, tmp_path / "run")
    summary = go_on(workdir)
    assert UNFINISHED[name] in capfd.readouterr().err
    assert summary["steps"] == 8 and (workdir / "config.json").exists()
    assert summary["params_sha256"] == go_on(folder / "finished")["params_sha256"]


@pytest.mark.parametrize("name", FINISHED)
def test_a_finished_run_is_loaded_or_says_what_it_lacks(runs, name, tmp_path):
    workdir = lose(runs[0] / "finished", name, tmp_path / "run")
    if not FINISHED[name]:
        assert load(workdir).classes
        return
    with pytest.raises(UserError, match=FINISHED[name]):
        load(workdir)
