import pathlib

import pytest
from ml_collections import ConfigDict

SHARED = pathlib.Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture
def make_config(tmp_path):
    """Returns a function that makes the data part of a configuration."""

    def make(**fields):
        usual = {
            "name": "digits",
            "source": "",
            "dir": str(tmp_path / "prepared"),
            "variant": "",
            "validation": 0.1,
            "test": 0.2,
            "limit": 0,
        }
        given = {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in fields.items()}
        return ConfigDict(usual | given)

    return make


@pytest.fixture
def real_data():
    """Returns a function from a path below the real data to the path; it skips where absent."""

    def find(path):
        if not (SHARED / path).exists():
            pytest.skip(f"the real data is not here ({SHARED / path})")
        return SHARED / path

    return find
