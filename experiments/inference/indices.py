"""Acoustic indices and cepstra, and how well clusters of them and of codes find labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.audio import clusters, indices
from experiments.core import files
from experiments.figures.embeddings import draw_comparison
from experiments.inference.embeddings import Clock, Embedded, Piece

COMPARISONS = (
    *("timing.csv", "compare.csv", "compare.png", "indices.csv", "indices_per_file.csv"),
    *("definitions.csv", "indices.npz"),
)
"""Files of a comparison."""
MEASURES = ("precision", "recall", "f", "purity")

Scores = dict[str, dict[str, tuple[float, float]]]
"""Mean and standard deviation by kind of features and by measure."""


class IndexComparison:
    """Measures windows of sound without a network, and compares the results with their codes."""

    def __init__(self, rate: int):
        self._rate = rate
        self._spectral: list[np.ndarray] = []
        self._cepstra: list[np.ndarray] = []
        self._alpha: list[dict[str, float]] = []

    def add(self, piece: Piece, clock: Clock) -> None:
        """Measures one window; for a silent one nothing is defined."""
        if piece.silent or piece.samples is None:
            self._alpha.append({})
            return
        measures = (
            ("spectral indices", indices.compute_spectral_indices, self._spectral),
            ("alpha indices", indices.compute_alpha_indices, self._alpha),
            ("cepstra", indices.compute_cepstra, self._cepstra),
        )
        if not self._spectral:  # The first call loads libraries, which is not to be timed.
            for _, measure, _ in measures:
                measure(piece.samples, self._rate)
        for activity, measure, results in measures:
            with clock.measure(activity):
                results.append(measure(piece.samples, self._rate))

    def write(
        self, out: Path, embedded: Embedded, labels: Sequence[str], clock: Clock
    ) -> list[tuple[str, str]]:
        """Writes the tables and the figure of the windows, and returns rows that summarise them."""
        heard = np.flatnonzero(~embedded.silent)
        names = list(next((row for row in self._alpha if row), {}))
        alpha = np.array(
            [[row.get(name, np.nan) for name in names] for row in self._alpha], np.float64
        ).reshape(len(self._alpha), len(names))
        features = {
            "spectral indices": np.array(self._spectral, np.float32),
            "alpha indices": alpha[heard],
            "cepstra": np.array(self._cepstra, np.float32),
            "codes": embedded.codes[heard],
        }
        seconds = {kind: clock[kind] for kind in features}
        seconds["codes"] = clock["spectrograms"] + clock["network"]
        self._write_indices(out, embedded, names, alpha, features["spectral indices"])
        files.write_csv(
            out / "timing.csv",
            ["what", "windows", "seconds", "seconds_per_window"],
            (
                [activity, len(heard), f"{spent:.4f}", f"{spent / max(len(heard), 1):.6f}"]
                for activity, spent in sorted(clock.items())
            ),
        )
        scores = _score_clusters([labels[index] for index in heard], features)
        _write_scores(out / "compare.csv", features, scores, seconds)
        (out / "compare.png").unlink(missing_ok=True)
        if not scores:
            return [("comparison", f"{out / 'timing.csv'}; give --labels for more")]
        draw_comparison(scores, seconds, out / "compare.png")
        f_scores = ", ".join(f"{kind} {score['f'][0]:.3f}" for kind, score in scores.items())
        return [("B-cubed F", f_scores), ("comparison", str(out / "compare.csv"))]

    def _write_indices(
        self,
        out: Path,
        embedded: Embedded,
        names: list[str],
        alpha: np.ndarray,
        spectral: np.ndarray,
    ) -> None:
        """Writes the indices of each window and each file, and their definitions."""

        def format_cells(row: np.ndarray) -> list[str | None]:
            return [None if np.isnan(value) else f"{value:.6g}" for value in row]

        columns, places = embedded.locate()
        cells = ([*place, *format_cells(row)] for place, row in zip(places, alpha, strict=True))
        files.write_csv(out / "indices.csv", [*columns, *names], cells)
        heard = ~embedded.silent
        number = {file: n for n, file in enumerate(dict.fromkeys(embedded.files))}
        owners = np.array([number[file] for file in embedded.files])[heard]
        means = zip(
            number,
            np.bincount(owners, minlength=len(number)),
            _average_groups(alpha[heard], owners, len(number)),
            strict=True,
        )
        files.write_csv(
            out / "indices_per_file.csv",
            ["file", "windows", *names],
            ([file, windows, *format_cells(mean)] for file, windows, mean in means),
        )
        definitions = indices.define_indices(names, self._rate)
        files.write_csv(out / "definitions.csv", ["index", "definition", "settings"], definitions)
        arrays = {
            "spectral": spectral,
            "names": np.array(list(indices.PER_BIN)),
            "file": np.array(embedded.files)[heard],
            "start_s": embedded.starts[heard],
        }
        files.write_arrays(out / "indices.npz", arrays)


def _write_scores(
    path: Path, features: dict[str, np.ndarray], scores: Scores, seconds: dict[str, float]
) -> None:
    """Writes a row per kind of features; without scores their cells are empty."""

    def format_scores(kind: str) -> list[str | None]:
        if kind not in scores:
            return [None] * (2 * len(MEASURES))
        return [f"{number:.4f}" for measure in MEASURES for number in scores[kind][measure]]

    columns = [f"{measure}_{part}" for measure in MEASURES for part in ("mean", "std")]
    files.write_csv(
        path,
        ["features", "size", "windows", *columns, "seconds"],
        (
            [kind, values.shape[-1], len(values), *format_scores(kind), f"{seconds[kind]:.4f}"]
            for kind, values in features.items()
        ),
    )


def _average_groups(rows: np.ndarray, owners: np.ndarray, number: int) -> np.ndarray:
    """Returns the mean of each owner's rows, `[number, D]`, over the values that are not NaN."""
    known = ~np.isnan(rows)
    sums, counts = (np.zeros((number, rows.shape[1])) for _ in range(2))
    np.add.at(sums, owners, np.where(known, rows, 0))
    np.add.at(counts, owners, known)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _score_clusters(labels: Sequence[str], features: dict[str, np.ndarray]) -> Scores:
    """Returns how well clusters of each kind of features agree with the labels; needs two labels."""
    labelled = [index for index, label in enumerate(labels) if label]
    names = [labels[index] for index in labelled]
    if len(set(names)) < 2:
        return {}
    return {
        kind: clusters.score_subsets(names, _fill_undefined(values[labelled]))
        for kind, values in features.items()
    }


def _fill_undefined(values: np.ndarray) -> np.ndarray:
    """Replaces undefined values by the mean of the others, which is 0 after standardising."""
    known = np.isfinite(values)
    sums = np.where(known, values, 0).sum(axis=0)
    return np.where(known, values, sums / np.maximum(known.sum(axis=0), 1))
