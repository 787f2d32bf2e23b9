"""Makes a report of finished runs: tables, figures, and how the numbers were made.

    python -m experiments.report RUNS... [--out=DIR]

    RUNS         folders; all runs at and below them are compared
    --out=DIR    the folder of report.md, report.csv, runs.csv, report.tex and figures/; without it the
                 folder that contains all RUNS

It reads what the runs have left, trains nothing, and may be repeated at any time.
"""

from absl import flags

from experiments.core import cli
from experiments.core.errors import UserError
from experiments.reports.report import write_report
