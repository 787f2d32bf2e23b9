import pytest

from experiments.reports.comparison import compare_runs
from experiments.runs.find import read_run


@pytest.fixture
def compare():
    """Returns a function: the comparison of runs on one data set, by their folders."""

    def read(*folders):
        (comparison,) = compare_runs([read_run(folder) for folder in folders])
        return comparison

    return read
