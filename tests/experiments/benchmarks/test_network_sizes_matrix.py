import pytest

from experiments.benchmarks import documents, network_sizes

pytestmark = pytest.mark.matrix


def test_sizes_in_the_readme_are_those_of_the_networks():
    known = documents.read_records("network_sizes.csv")
    for name, *sizes in network_sizes.count_all():
        assert sizes == [int(known[name][column]) for column in ("parameters", "macs")], name
