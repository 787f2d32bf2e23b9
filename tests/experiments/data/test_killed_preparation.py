"""Processes that are killed while they unpack or prepare: the next one starts from whole files."""

import signal
import subprocess
import sys

import numpy as np
import pytest
from picture_files import (
    make_tiny_imagenet_files,
    make_voc_files,
    write_tiny_imagenet_zip,
    write_voc_tar,
)

from experiments import data

pytestmark = pytest.mark.process

# Kills itself when it reads the file with this number.
DIES = """
import os, signal, sys
from ml_collections import ConfigDict
from experiments import data
from experiments.data import archives
name, source, dir, read_name, number = sys.argv[1:]
read, left = getattr(archives, read_name), [int(number)]
def dies(*args):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(*args)
setattr(archives, read_name, dies)
config = {"name": name, "source": source, "dir": dir, "validation": 0.25, "test": 0.2, "limit": 0}
data.load(ConfigDict(config), 0)
"""


@pytest.mark.parametrize(
    ("name", "write", "files", "reader", "moments", "finished"),
    [
        ("voc2012", write_voc_tar, make_voc_files, "read_tar", (1, 30, 25), "val.txt"),
        (
            "tiny_imagenet",
            write_tiny_imagenet_zip,
            make_tiny_imagenet_files,
            "read_zip",
            (8, 23),
            "dataset_info.json",
        ),
    ],
)
def test_killed_preparation_starts_again(
    make_config, tmp_path, name, write, files, reader, moments, finished
):
    source = write(tmp_path / "archive", files())
    for moment in moments:
        arguments = [name, source, tmp_path / "prepared", reader, moment]
        process = subprocess.run(
            [sys.executable, "-c", DIES, *map(str, arguments)], capture_output=True, text=True
        )
        assert process.returncode == -signal.SIGKILL, process.stderr
        left = [path for path in (tmp_path / "prepared").rglob(finished)]
        assert all("incomplete" in str(path) for path in left), left
    interrupted, untouched = (
        data.load(make_config(name=name, source=source, dir=tmp_path / where, validation=0.25), 0)
        for where in ("prepared", "elsewhere")
    )
    assert interrupted.notes == untouched.notes and not interrupted.skipped
    for split, expected in untouched.splits.items():
        found = interrupted.splits[split]
        assert len(found) == len(expected)
        for index in range(len(expected)):
            for key, value in expected[index].items():
                np.testing.assert_array_equal(found[index][key], value)
