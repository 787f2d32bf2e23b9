import json
import os

import pytest

from experiments.core.errors import UserError
from experiments.runs.folder import check_or_write_config, lock_workdir
from experiments.train.grid import load_config


@pytest.mark.parametrize("first", ["", "base"])
def test_a_study_may_be_given_by_another_path(tmp_path, first):
    def make_config(place):
        return load_config("base", "digits", {"start.config": first, "init_from": place})

    for place in ("runs/base/seed0", "/moved/base/seed0"):
        check_or_write_config(tmp_path, make_config(place))  # nothing has been trained yet
        assert json.loads((tmp_path / "config.json").read_text())["init_from"] == place
    (tmp_path / "summary.json").write_text("{}")
    if first:
        check_or_write_config(tmp_path, make_config("runs/base/seed0"))
    else:
        with pytest.raises(UserError, match="init_from was '/moved"):
            check_or_write_config(tmp_path, make_config("runs/base/seed0"))


def test_a_workdir_is_locked_until_it_is_left(tmp_path):
    with (
        lock_workdir(tmp_path),
        pytest.raises(UserError, match=f"in use by process {os.getpid()} on "),
        lock_workdir(tmp_path),
    ):
        pass
    with lock_workdir(tmp_path):
        pass
