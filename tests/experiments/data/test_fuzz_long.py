"""Thousands of damaged tables of labels and files of series end in a data set or in one sentence."""

import time

import numpy as np
import pytest
from picture_files import write_classes

from experiments import data
from experiments.core.errors import UserError
from experiments.data import table, ucr
from tests.fuzz import EDGES, mutate, run_fuzz

pytestmark = pytest.mark.long

TOKENS = (
    *EDGES,
    b",",
    b";",
    b":",
    b"\r",
    b"?",
    b"NaN",
    b"@data",
    b"@classLabel",
    b"cat",
    b"\xe9",
    b"..",
)
HEADER = "@problemName Toy\n@timeStamps false\n@univariate {}\n@classLabel true a b\n@data\n"
SERIES = {
    "tsv": ["a\t1\t2\t3.5\tNaN", "b\t4\t-5e-1\t6\t7", "a\t1\t1\t2\t2", "b\t3\t9\t1\t0"],
    "txt": ["a,1,2,3.5,", "b,4,-5e-1,6,7", "a,1,1,2,2", "b,3,9,1,0"],
    "ts": ["1,2,3:a", "4,5,?:b", "7,8,9:a", "3,1,2:b"],
    "channels.ts": ["1,2,3:4,5,6:a", "4,5,?:1,1,2:b", "7,8,9:0,0,1:a", "3,1,2:9,9,8:b"],
}


def mutate_tokens(content, rng):
    return mutate(content, rng, TOKENS)


@pytest.mark.parametrize("kind", SERIES)
def test_series(tmp_path, make_config, kind):
    rows = SERIES[kind]
    header = HEADER.format("false" if "channels" in kind else "true") if "ts" == kind[-2:] else ""
    text = (header if kind != "tsv" else "") + "\n".join(rows * 3) + "\n"
    suffix = kind.rpartition(".")[2]
    for part in ("TRAIN", "TEST"):
        (tmp_path / f"Toy_{part}.{suffix}").write_text(text)
    config = make_config(name="ucr", source=tmp_path, validation=0.0)
    file = tmp_path / f"Toy_TRAIN.{suffix}"

    def read():
        dataset = data.load(config, 0)
        lost = [name for name, _ in dataset.skipped]
        # Everything neither used nor listed is blank or a comment.
        lines = file.read_text("utf-8-sig").splitlines()
        if suffix == "ts":
            keys = [one.strip().partition(" ")[0].lower() for one in lines]
            start = keys.index("@data")
            lines = [one for one in lines[start + 1 :] if not one.strip().startswith(("#", "%"))]
        in_train = sum("TRAIN" in name for name in lost) + len(dataset.splits["train"])
        assert in_train == sum(bool(one.strip()) for one in lines)
        for source in dataset.splits.values():
            assert all(np.isfinite(source[i]["inputs"]).all() for i in range(len(source)))

    outcomes = run_fuzz(file, read, UserError, count=3000, seed=11, mutate=mutate_tokens)
    assert outcomes["read"] and outcomes["UserError"]


def test_label_tables(tmp_path, make_config):
    root = write_classes(tmp_path / "pets")
    file = root / "labels.csv"
    names = [f"{kind}/{n}.png" for kind in ("cat", "dog") for n in range(10)]
    rows = [
        f"{name},{name[:3]};small,{'test' if n % 4 else 'train'}" for n, name in enumerate(names)
    ]
    file.write_text("\n".join(["path,label,split", *rows]) + "\n")
    config = make_config(name="folder", source=file)

    def read():
        dataset = data.load(config, 0)
        rows, _ = table.read_rows(file)
        used = sum(map(len, dataset.splits.values()))
        assert used + len(dataset.skipped) >= len(rows) and len(dataset.classes) > 1

    outcomes = run_fuzz(file, read, UserError, count=4000, seed=12, mutate=mutate_tokens)
    assert outcomes["read"] and outcomes["UserError"]


def test_reading_one_long_line_is_quick(tmp_path):
    """A megabyte in a line takes less than the second that a file may take."""
    file = tmp_path / "Toy_TRAIN.tsv"
    file.write_text("a\t" + "\t".join(["1.5"] * 250_000) + "\n")
    started = time.monotonic()
    assert len(ucr.read_series(file)) == 1
    assert time.monotonic() - started < 5
