"""The runs that are kept in the repository make the tables that the documents show."""

from pathlib import Path

import pytest

import experiments
from experiments.core.files import read_csv_records
from experiments.reports.report import write_report

RESULTS = Path(experiments.__file__).parent / "results"
# Folder of `runs` and the table that is made from it.
TABLES = {
    "adiac_folds": "adiac_folds.csv",
    "adiac_split": "adiac_split.csv",
    "detection": "detection_subset.csv",
    "digits_factors": "digits_effects.csv",
}


def test_every_folder_has_a_table():
    assert {path.name for path in (RESULTS / "runs").iterdir()} == set(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_kept_runs_make_their_table(tmp_path, name):
    report = write_report([RESULTS / "runs" / name], tmp_path)
    assert "left out" not in report.read_text(encoding="utf-8")
    shown = read_csv_records(RESULTS / TABLES[name])
    made = "effects.csv" if "change" in shown[0] else "report.csv"
    assert read_csv_records(tmp_path / made) == shown


def test_kept_runs_hold_no_paths_and_are_small():
    files = [path for path in (RESULTS / "runs").rglob("*") if path.is_file()]
    for path in files:
        assert path.stat().st_size < 30_000
        text = path.read_text(encoding="utf-8")
        assert not any(part in text for part in ('"/', '"~', "/home/")), path
