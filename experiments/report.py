"""Makes a report of finished runs: tables, figures, and how the numbers were made.

    python -m experiments.report RUNS... [--out=DIR]

    RUNS             folders; all runs at and below them are compared
    --out=DIR        the folder of report.md, report.csv, runs.csv, report.tex and figures/; without it the
                     folder that contains all RUNS
    --baseline=NAME  the config that the others are compared with; without it the one that each names
    --keep=DIR       also copies settings, results and evaluations of the runs to DIR, a few kilobytes each:
                     enough to make tables and curves again, and small enough for a repository
    --debug          shows the traceback of an error

It reads what the runs have left, trains nothing, and may be repeated at any time.
"""

from experiments.core import cli
from experiments.core.console import print_line
from experiments.core.errors import UserError
from experiments.core.words import count_noun
from experiments.reports.keep import keep_summaries
from experiments.reports.report import write_report
from experiments.runs.find import find_runs


def main(run: str, *runs: str, out: str = "", baseline: str = "", keep: str = "") -> None:
    """Writes the report of some runs, and prints its path."""
    print_line(str(write_report([run, *runs], out, baseline)))
    if keep:
        try:
            copies = keep_summaries(find_runs([run, *runs])[0], keep)
        except OSError as error:
            raise UserError(f"--keep={keep} cannot be written: {error.strerror}.") from error
        print_line(f"{count_noun(len(copies), 'run')} kept in {keep}")


if __name__ == "__main__":
    cli.run_command(main, __doc__, failure="The report cannot be written")
