"""The runs that are kept in the repository make the tables that the documents show."""

from pathlib import Path

import pytest

import experiments
from experiments.core.files import read_csv_records
from experiments.reports.report import write_report

RESULTS = Path(experiments.__file__).parent / "results"
# Folder of `runs`, and the tables that are made of it: their names here, and those in a report.
TABLES = {
    "adiac_awake": {"adiac_awake.csv": "report.csv"},
    "adiac_folds": {"adiac_folds.csv": "report.csv"},
    "adiac_split": {"adiac_split.csv": "report.csv"},
    "detection": {"detection_subset.csv": "report.csv"},
    "digits_factors": {"digits_factors.csv": "report.csv", "digits_effects.csv": "effects.csv"},
    "digits_warm": {"digits_warm.csv": "report.csv"},
    "digits_awake": {"digits_awake.csv": "report.csv"},
    "neutral": {"neutral.csv": "report.csv"},
    "neutral_warm": {"neutral_warm.csv": "report.csv"},
}
BASELINES = {"neutral": "base"}  # of a sweep's configs, too


def test_every_folder_has_tables():
    assert {path.name for path in (RESULTS / "runs").iterdir()} == set(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_kept_runs_make_their_tables(tmp_path, name):
    report = write_report([RESULTS / "runs" / name], tmp_path, BASELINES.get(name, ""))
    assert "left out" not in report.read_text(encoding="utf-8")
    for shown, made in TABLES[name].items():
        assert read_csv_records(tmp_path / made) == read_csv_records(RESULTS / shown)


def test_kept_runs_hold_no_paths_and_are_small():
    files = [path for path in (RESULTS / "runs").rglob("*") if path.is_file()]
    for path in files:
        assert path.stat().st_size < 30_000
        text = path.read_text(encoding="utf-8")
        assert not any(part in text for part in ('"/', '"~', "/home/")), path
