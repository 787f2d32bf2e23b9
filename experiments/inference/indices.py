"""Codes beside what needs no network: acoustic indices and cepstra, and which of them finds the labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.audio import clusters, indices
from experiments.core import files
from experiments.figures.embeddings import draw_comparison
from experiments.inference.embed_files import Clock, Piece, timed

if TYPE_CHECKING:
    from experiments.embed import Embedded

MEASURES = ("precision", "recall", "f", "purity")


class Comparison:
    """What is measured of windows of sound beside their codes."""

    def __init__(self, rate: int):
        """Of samples at this rate."""
        self._rate = rate
        self._spectral: list[np.ndarray] = []
        self._cepstra: list[np.ndarray] = []
        self._alpha: list[dict[str, float]] = []

    def add(self, piece: Piece, clock: Clock) -> None:
        """Measures one window; of a silent one nothing is defined."""
        if piece.silent or piece.samples is None:
            self._alpha.append({})
            return
        if not self._spectral:  # what the libraries load at first is no part of what it takes
            for measure in (
                indices.compute_spectral_indices,
                indices.compute_alpha_indices,
                indices.compute_cepstra,
            ):
                measure(piece.samples, self._rate)
        with timed(clock, "spectral indices"):
            self._spectral.append(indices.compute_spectral_indices(piece.samples, self._rate))
        with timed(clock, "alpha indices"):
            self._alpha.append(indices.compute_alpha_indices(piece.samples, self._rate))
        with timed(clock, "cepstra"):
            self._cepstra.append(indices.compute_cepstra(piece.samples, self._rate))

    def write(
        self, out: Path, embedded: "Embedded", labels: Sequence[str], clock: Clock
    ) -> list[tuple[str, str]]:
        """Writes the tables and the figure; returns what is said of them.

        Args:
            out: the folder.
            embedded: the codes of the same windows.
            labels: of each window; '' for none.
            clock: what everything took.
        """
        heard = np.flatnonzero(~embedded.silent)
        names = list(next((found for found in self._alpha if found), {}))
        alpha = np.array(
            [[found.get(name, np.nan) for name in names] for found in self._alpha], np.float64
        ).reshape(len(self._alpha), len(names))
        kinds = {
            "spectral indices": np.array(self._spectral, np.float32),
            "alpha indices": alpha[heard],
            "cepstra": np.array(self._cepstra, np.float32),
            "codes": embedded.codes[heard],
        }
        seconds = {name: clock[name] for name in kinds}
        seconds["codes"] = clock["spectrograms"] + clock["network"]
        self._tables(out, embedded, names, alpha, kinds["spectral indices"])
        files.write_csv(
            out / "timing.csv",
            ["what", "windows", "seconds", "seconds_per_window"],
            (
                [what, len(heard), f"{spent:.4f}", f"{spent / max(len(heard), 1):.6f}"]
                for what, spent in sorted(clock.items())
            ),
        )
        scores = _scores([labels[index] for index in heard], kinds)
        header = ["features", "size", "windows"]
        header += [f"{name}_{part}" for name in MEASURES for part in ("mean", "std")]
        files.write_csv(
            out / "compare.csv",
            [*header, "seconds"],
            (
                [
                    kind,
                    values.shape[-1],
                    len(heard),
                    *(
                        f"{number:.4f}" if kind in scores else None
                        for name in MEASURES
                        for number in scores.get(kind, {}).get(name, (0, 0))
                    ),
                    f"{seconds[kind]:.4f}",
                ]
                for kind, values in kinds.items()
            ),
        )
        (out / "compare.png").unlink(missing_ok=True)
        if not scores:
            return [("comparison", f"{out / 'timing.csv'}; without labels no more: give --labels")]
        draw_comparison(scores, seconds, out / "compare.png")
        said = ", ".join(f"{kind} {found['f'][0]:.3f}" for kind, found in scores.items())
        return [("B-cubed F", said), ("comparison", str(out / "compare.csv"))]

    def _tables(
        self,
        out: Path,
        embedded: "Embedded",
        names: list[str],
        alpha: np.ndarray,
        spectral: np.ndarray,
    ) -> None:
        """The indices themselves, and what they are."""

        def cells(row: np.ndarray) -> list[str | None]:
            return [None if np.isnan(value) else f"{value:.6g}" for value in row]

        files.write_csv(
            out / "indices.csv",
            ["file", "start_s", "end_s", "silent", *names],
            (
                [file, f"{start:.3f}", f"{end:.3f}", int(silent), *cells(row)]
                for file, start, end, silent, row in zip(
                    embedded.files,
                    embedded.starts,
                    embedded.ends,
                    embedded.silent,
                    alpha,
                    strict=True,
                )
            ),
        )
        of_file = np.array(embedded.files)
        number = {file: n for n, file in enumerate(dict.fromkeys(embedded.files))}
        heard = ~embedded.silent
        owners = np.array([number[file] for file in embedded.files])[heard]
        means = zip(
            number,
            np.bincount(owners, minlength=len(number)),
            _mean_of_each(alpha[heard], owners, len(number)),
            strict=True,
        )
        files.write_csv(
            out / "indices_per_file.csv",
            ["file", "windows", *names],
            ([file, windows, *cells(mean)] for file, windows, mean in means),
        )
        files.write_csv(
            out / "definitions.csv",
            ["index", "definition", "settings"],
            indices.define_indices(names, self._rate),
        )
        arrays = {
            "spectral": spectral,
            "names": np.array(list(indices.PER_BIN)),
            "file": of_file[~embedded.silent],
            "start_s": embedded.starts[~embedded.silent],
        }
        files.write_arrays(out / "indices.npz", arrays)


def _mean_of_each(rows: np.ndarray, owners: np.ndarray, number: int) -> np.ndarray:
    """The mean of each owner's rows, `[number, D]`; what a row does not have says nothing of the others."""
    known = ~np.isnan(rows)
    sums, counts = (np.zeros((number, rows.shape[1])) for _ in range(2))
    np.add.at(sums, owners, np.where(known, rows, 0))
    np.add.at(counts, owners, known)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _scores(
    labels: Sequence[str], kinds: dict[str, np.ndarray]
) -> dict[str, dict[str, tuple[float, float]]]:
    """How well clusters of each kind of features agree with the labels; nothing where there are no two."""
    labelled = [index for index, label in enumerate(labels) if label]
    named = [labels[index] for index in labelled]
    if len(set(named)) < 2:
        return {}
    return {
        # What is not defined in a window counts as the mean of the others: 0 after standardising.
        kind: clusters.score_subsets(named, _filled(values[labelled]))
        for kind, values in kinds.items()
    }


def _filled(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    sums = np.where(known, values, 0).sum(axis=0)
    return np.where(known, values, sums / np.maximum(known.sum(axis=0), 1))
