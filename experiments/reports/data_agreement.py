"""Finds runs of one comparison that were not made with the same data."""

from experiments.core.errors import UserError
from experiments.data.fingerprint import describe_changes
from experiments.reports.comparison import DatasetComparison
from experiments.runs.data_record import read_record
from experiments.runs.find import Run

UNKNOWN = "the digests in summary.json differ, and data.json, which would say more, cannot be read"


def list_data_differences(comparison: DatasetComparison) -> list[str]:
    """Returns a sentence for each config whose data is not the first's, with the same seed or fold.

    Between seeds and folds the data may differ: they decide the splits of a data set that comes without them.
    A run from before its data was recorded is not compared.
    """
    by_pair: dict[tuple[str, str, str], list[str]] = {}
    first: dict[tuple[int, int], tuple[str, Run]] = {}
    for results in comparison.results:
        for run in results.runs:
            if not run.summary.get("data"):
                continue
            label, reference = first.setdefault(run.fold_and_seed, (results.label, run))
            if run.summary["data"] != reference.summary["data"]:
                key = (label, results.label, _describe_difference(reference, run))
                by_pair.setdefault(key, []).append(run.replicate)
    return [
        f"The runs of {label} and {reference} do not have the same data ({', '.join(replicates)}), so more "
        f"than their configs may make the difference. From {reference} to {label}: {difference}."
        for (reference, label, difference), replicates in by_pair.items()
    ]


def _describe_difference(reference: Run, run: Run) -> str:
    """Returns what differs, as the middle of a sentence."""
    try:
        records = [read_record(one.folder) for one in (reference, run)]
    except UserError:
        return UNKNOWN
    if None in records:
        return UNKNOWN
    before, now = (record.fingerprint for record in records if record)
    return describe_changes(before, now) or UNKNOWN
