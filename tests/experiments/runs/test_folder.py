import os

import pytest

from experiments.core.errors import UserError
from experiments.runs.folder import lock_workdir


def test_a_workdir_is_locked_until_it_is_left(tmp_path):
    with (
        lock_workdir(tmp_path),
        pytest.raises(UserError, match=f"in use by process {os.getpid()} on "),
        lock_workdir(tmp_path),
    ):
        pass
    with lock_workdir(tmp_path):
        pass
