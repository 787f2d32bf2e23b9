"""Tables and figures that the classifiers of recordings leave beside those of all classifiers."""

from pathlib import Path

import numpy as np

from experiments.core import files
from experiments.figures.calibration import draw_calibration
from experiments.tasks.per_class import round_down, split_by_class
from experiments.tasks.ranking import choose_threshold, compute_ranking, measure_calibration
from experiments.tasks.task import Results

THRESHOLDS = "thresholds.csv"
HEADER = ("label", "threshold", "precision", "recall", "predicted", "positives", "target")
_NEVER = 1.0  # A probability that hardly any window reaches.


def write_sound_evaluation(
    results: Results, probabilities: np.ndarray, validation: np.ndarray, precision: float
) -> None:
    """Writes ranking and calibration of the test examples, and thresholds chosen on the validation ones.

    Args:
        results: of a run on recordings.
        probabilities: of the test examples, `[N, C]`.
        validation: probabilities of the validation examples.
        precision: that the thresholds are to have.
    """
    classes, workdir = list(results.dataset.classes), results.workdir
    labels = results.inspected["labels"]
    write_ranking(workdir, classes, labels, probabilities)
    write_calibration(workdir, labels, probabilities)
    write_thresholds(workdir, classes, results.validation["labels"], validation, precision)


def write_ranking(
    workdir: Path, classes: list[str], labels: np.ndarray, probabilities: np.ndarray
) -> None:
    """Writes `ranking.csv`: label, average_precision and auroc of each class, empty where there is none."""
    found = compute_ranking(labels, probabilities, classes)
    rows = [
        [
            name,
            *(
                "" if x is None else f"{x:.6f}"
                for x in (found["ap"][name], found["class_auroc"][name])
            ),
        ]
        for name in classes
    ]
    files.write_csv(workdir / "ranking.csv", ["label", "average_precision", "auroc"], rows)


def write_thresholds(
    workdir: Path,
    classes: list[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    precision: float,
) -> None:
    """Writes `thresholds.csv`: for each class the lowest threshold with a precision on these examples.

    The table has a row for each class: label, threshold (1 where none has this precision), precision, recall
    and number of the predictions at it (empty in that case), positives, and the precision that was asked for.

    Args:
        workdir: the run's folder.
        classes: C names.
        labels: int `[N]`, where only the class with the highest score is predicted; or float `[N, C]`, 1 and
            0, NaN where unknown.
        probabilities: `[N, C]`; NaN counts as 0.
        precision: above 0, up to 1.
    """
    scores = np.nan_to_num(np.asarray(probabilities, np.float64))
    if labels.ndim == 1:
        is_best = np.arange(len(classes)) == scores.argmax(axis=1)[:, None]
        scores = np.where(is_best, scores, -np.inf)
    rows = []
    for name, (truth, score) in zip(classes, split_by_class(labels, scores), strict=True):
        found = choose_threshold(truth, score, precision)
        cells = [f"{_NEVER:.6f}", "", "", ""]
        if found:
            shares = (round_down(found.threshold), found.precision, found.recall)
            cells = [*(f"{share:.6f}" for share in shares), str(found.predicted)]
        rows.append([name, *cells, int(truth.sum()), f"{precision:g}"])
    files.write_csv(workdir / THRESHOLDS, HEADER, rows)


def write_calibration(workdir: Path, labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Writes `calibration.csv` and `figures/calibration.png`; see `ranking.measure_calibration`."""
    found = measure_calibration(labels, probabilities)
    columns = (found.edges[:-1], found.edges[1:], found.counts, found.predicted, found.observed)
    files.write_csv(
        workdir / "calibration.csv",
        ["from", "to", "predictions", "mean_probability", "share_right"],
        (
            [
                f"{low:g}",
                f"{high:g}",
                int(count),
                *("" if np.isnan(x) else f"{x:.6f}" for x in shares),
            ]
            for low, high, count, *shares in zip(*columns, strict=True)
        ),
    )
    draw_calibration(*found, workdir / "figures" / "calibration.png")
