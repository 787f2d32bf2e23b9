"""Writes the report of finished runs: `report.md`, `report.tex`, tables for programs, and `figures/`."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from experiments.core import files
from experiments.core.console import print_line
from experiments.core.errors import UserError, suggest_nearest
from experiments.core.escaping import escape_markdown
from experiments.core.words import count_noun
from experiments.reports import map_figures, published, recipes, study_figures, tables
from experiments.reports.attention import LayerAttention, measure_attention
from experiments.reports.comparison import DatasetComparison, compare_runs
from experiments.reports.data_agreement import list_data_differences
from experiments.reports.effects import Effect, measure_effects
from experiments.runs import artifacts
from experiments.runs.find import Run, find_runs, is_run_folder

Saved = TypeVar("Saved", artifacts.Maps, artifacts.Samples)


_TITLE = "# Comparison of runs"
_TABLES = ("report.tex", "report.csv", "runs.csv", "attention.csv", "effects.csv")


def write_report(
    folders: Iterable[str | os.PathLike],
    out: str | os.PathLike | None = None,
    baseline: str = "",
) -> Path:
    """Compares all runs at and below some folders, writes the report, and returns the path of `report.md`.

    Configs that were not trained on the same data are named in the report and in the terminal.

    Args:
        folders: the folders of the runs.
        out: the folder of the report; None for the folder that contains all of `folders`.
        baseline: the config that the others are compared with; '' for the one that each config names.

    Raises:
        UserError: if there are no runs, or none of the baseline, or `out` is the folder of a run.
    """
    folders = [Path(folder).expanduser() for folder in folders]
    runs, excluded = find_runs(folders)
    if not runs and not excluded:
        raise UserError(f"There are no runs in {', '.join(map(str, folders))}.")
    if baseline:
        runs = _compare_with(runs, baseline)
    place = _choose_place(folders, out)
    _check_place(place)
    comparisons = compare_runs(runs)
    all_effects: list[Effect] = []
    layers: list[list[object]] = []
    changes: list[list[object]] = []

    lines = [
        _TITLE,
        "",
        f"{count_noun(len(runs), 'finished run')}. `python -m experiments.report RUNS... --out=DIR` "
        "makes it again.",
        "",
    ]
    for comparison, folder in zip(comparisons, _name_figure_folders(comparisons), strict=True):
        effects = measure_effects(comparison.runs)
        section, attention = _write_section(comparison, effects, place, folder)
        lines += section
        all_effects += effects
        layers += tables.list_attention_records(comparison, attention)
        changes += tables.list_effect_records(comparison, effects)
    if excluded:
        table = tables.make_excluded_table(excluded, place)
        lines += [f"## {escape_markdown(table.title)}", "", tables.render_markdown(table), ""]
    if comparisons:
        lines += ["## How the numbers were made", ""]
        notes = _list_notes(comparisons, all_effects)
        lines += [*(f"* {escape_markdown(note)}" for note in notes), ""]
    files.write_text(place / "report.md", "\n".join(lines))
    files.write_text(place / "report.tex", _render_latex(comparisons))
    files.write_csv(place / "report.csv", *tables.list_config_records(comparisons))
    files.write_csv(place / "runs.csv", *tables.list_run_records(comparisons, place))
    for name, header, rows in (
        ("attention.csv", tables.ATTENTION_HEADER, layers),
        ("effects.csv", tables.EFFECTS_HEADER, changes),
    ):
        if rows:
            files.write_csv(place / name, header, rows)
        else:
            (place / name).unlink(missing_ok=True)  # of an earlier report
    return place / "report.md"


def _compare_with(runs: Sequence[Run], baseline: str) -> list[Run]:
    """Returns the runs with another baseline, which must be the config of some of them."""
    configs = {run.config for run in runs}
    if baseline not in configs:
        raise UserError(
            f"--baseline={baseline}: no run is of that config{suggest_nearest(baseline, sorted(configs))}"
        )
    return [dataclasses.replace(run, baseline=baseline) for run in runs]


def _choose_place(folders: Sequence[Path], out: str | os.PathLike | None) -> Path:
    """Returns the folder of the report: never a run's own, whose figures it would replace."""
    if out:
        place = Path(out).expanduser().resolve()
        if is_run_folder(place):
            raise UserError(
                f"--out={out} is the folder of a run; choose another one for the report."
            )
        return place
    common = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    return common / "report" if is_run_folder(common) else common


def _name_figure_folders(comparisons: Sequence[DatasetComparison]) -> list[Path]:
    """Returns `figures`, or a folder in it for each of several data sets and their folds."""
    if len(comparisons) == 1:
        return [Path("figures")]
    names = ["".join(c if c.isalnum() else "_" for c in one.title) for one in comparisons]
    return [
        Path("figures") / (name if names.count(name) == 1 else f"{name}_{comparison.metric}")
        for name, comparison in zip(names, comparisons, strict=True)
    ]


def _check_place(place: Path) -> None:
    """Raises a UserError if a file is in the way that no report has written."""
    files.check_own_text(place / "report.md", _TITLE)
    tables_there = [place / name for name in _TABLES if (place / name).exists()]
    if tables_there and not (place / "report.md").exists():
        raise UserError(
            f"{tables_there[0]} exists, and there is no report.md beside it: move it away, or choose another "
            "--out."
        )


def _write_section(
    comparison: DatasetComparison, effects: Sequence[Effect], place: Path, folder: Path
) -> tuple[list[str], dict[str, list[LayerAttention]]]:
    """Draws the figures of a data set.

    Args:
        comparison: the configs on the data set.
        effects: of the settings that differ between runs.
        place: the report's folder.
        folder: the folder of the figures, as seen from there.

    Returns:
        its section of the report in Markdown, and the layers that mix kernels of each config that has any.
    """
    lines = [
        f"## {escape_markdown(comparison.title)}",
        "",
        *_render_titled_table(tables.make_results_table(comparison)),
    ]
    if text := published.describe_published(comparison.dataset):
        lines += [text, ""]
    for difference in list_data_differences(comparison):
        print_line(f"note: {comparison.title}: {difference}")
        lines += [f"**Note**: {escape_markdown(difference)}", ""]

    def draw(name: str, draw_figure: Callable[..., bool], content: Any) -> list[str]:
        path = folder / f"{name}.png"
        is_drawn = draw_figure(content, place / path)
        return [f"![{name.replace('_', ' ')}]({path.as_posix()})", ""] if is_drawn else []

    lines += draw("accuracy_against_macs", study_figures.draw_accuracy_against_macs, comparison)
    lines += _render_titled_table(tables.make_cost_table(comparison))
    lines += _render_titled_table(tables.make_iou_table(comparison))
    lines += _render_titled_table(tables.make_runs_table(comparison))
    lines += draw("per_run", study_figures.draw_runs, comparison)
    lines += _render_titled_table(tables.make_effects_table(comparison, effects))
    lines += draw("effects", partial(study_figures.draw_effects, comparison), effects)
    lines += draw("curves", study_figures.draw_curves, comparison)
    saved_maps, damaged_maps = _load_saved(comparison, "maps.npz", artifacts.load_maps, place)
    attention = _measure_attention(saved_maps)
    maps, other_maps = _choose_comparable(comparison, "maps.npz", saved_maps)
    lines += draw("attention_maps", map_figures.draw_attention_maps, maps)
    lines += draw("mixtures", map_figures.draw_mixtures, maps)
    lines += _render_titled_table(tables.make_attention_table(comparison, attention))
    draw_depth = partial(study_figures.draw_attention_by_depth, comparison)
    lines += draw("attention_by_depth", draw_depth, attention)
    lines += draw("pixel_attention", map_figures.draw_pixel_attention, maps)
    saved_samples, damaged_samples = _load_saved(
        comparison, "samples.npz", artifacts.load_samples, place
    )
    samples, other_samples = _choose_comparable(comparison, "samples.npz", saved_samples)
    lines += draw("segmentation_samples", map_figures.draw_segmentation_samples, samples)

    first = comparison.results[0]
    if recipe := recipes.describe_recipe(first):
        lines += [f"**Recipe** of {escape_markdown(f'{first.label}: {recipe}')}.", ""]
    lines += _render_titled_table(recipes.make_changes_table(comparison))
    remarks = [*_list_remarks(comparison, place), *damaged_maps, *other_maps]
    if remarks := [*remarks, *damaged_samples, *other_samples]:
        lines += [*(f"* {escape_markdown(remark)}" for remark in remarks), ""]
    return lines, attention


def _render_titled_table(table: tables.Table | None) -> list[str]:
    if table is None:
        return []
    return [f"**{escape_markdown(table.title)}**", "", tables.render_markdown(table), ""]


def _load_saved(
    comparison: DatasetComparison, name: str, load: Callable[[Path], Saved], place: Path
) -> tuple[dict[str, list[tuple[Run, Saved]]], list[str]]:
    """Returns what the runs of each config saved in a file, and remarks on damaged ones."""
    saved, remarks = {}, []
    for results in comparison.results:
        loaded = []
        for run in results.runs:
            if not (run.folder / name).exists():
                continue
            try:
                loaded.append((run, load(run.folder / name)))
            except UserError as error:
                remarks.append(f"{results.label}: {_shorten_path(error, run, place)}")
        if loaded:
            saved[results.config] = loaded
    return saved, remarks


def _choose_comparable(
    comparison: DatasetComparison, name: str, saved: Mapping[str, Sequence[tuple[Run, Saved]]]
) -> tuple[dict[str, Saved], list[str]]:
    """Returns what a run of each config saved of the same test examples, by label, and remarks on others."""
    labels = {results.config: results.label for results in comparison.results}
    by_replicate = {
        labels[config]: {run.fold_and_seed: (run, content) for run, content in loaded}
        for config, loaded in saved.items()
    }
    # If the seed decides which examples are tested, only runs of one seed have seen the same ones.
    common = set.intersection(*map(set, by_replicate.values())) if by_replicate else set()
    comparable: dict[str, Saved] = {}
    first, remarks = None, []
    for label, replicates in by_replicate.items():
        run, content = replicates[min(common or replicates)]
        examples = content.inputs if isinstance(content, artifacts.Maps) else content.images
        first = examples if first is None else first
        if len(examples) == len(first) and all(map(np.array_equal, examples, first)):
            comparable[label] = content
        else:
            remarks.append(f"{label}: {name} of {run.replicate} shows other examples; left out.")
    return comparable, remarks


def _measure_attention(
    saved: Mapping[str, Sequence[tuple[Run, artifacts.Maps]]],
) -> dict[str, list[LayerAttention]]:
    """Returns the layers that mix kernels of each config that has any."""
    measured = {
        config: measure_attention([maps.mixtures for _, maps in loaded])
        for config, loaded in saved.items()
    }
    return {config: layers for config, layers in measured.items() if layers}


def _shorten_path(error: UserError, run: Run, place: Path) -> str:
    """Returns the message with the run's folder as seen from the report."""
    return str(error).replace(str(run.folder), os.path.relpath(run.folder, place))


def _list_remarks(comparison: DatasetComparison, place: Path) -> list[str]:
    """Lists what a reader must know about the runs on a data set."""
    remarks = []
    for results in comparison.results:
        if settings := recipes.list_inconsistent(results):
            remarks.append(
                f"The runs of {results.label} do not have the same settings: they differ in "
                f"{', '.join(settings)}."
            )
        for run in results.runs:
            if run.trouble:
                text = _shorten_path(UserError(run.trouble), run, place)
                remarks.append(
                    f"The settings of {results.label}, {run.replicate}, are not known: {text}"
                )
            try:
                if not run.log:
                    remarks.append(f"{results.label}, {run.replicate}, has no metrics.jsonl.")
            except UserError as error:
                text = _shorten_path(error, run, place)
                remarks.append(
                    f"{results.label}, {run.replicate}, is left out of the curves: {text}"
                )
    sizes = {tuple((run.summary.get("examples") or {}).items()) for run in comparison.runs}
    if len(sizes) == 1 and (counts := sizes.pop()):
        text = ", ".join(f"{count:,} {split}" for split, count in counts)
        remarks.append(f"Examples: {text}.")
    return remarks


def _list_notes(
    comparisons: Sequence[DatasetComparison], effects: Sequence[Effect]
) -> Iterator[str]:
    """Yields the notes on how the numbers were made, as far as the tables show them."""
    runs = [run for comparison in comparisons for run in comparison.runs]
    all_results = [results for comparison in comparisons for results in comparison.results]
    gaps = [results.difference for results in all_results if results.difference]
    has_folds = any(run.fold is not None for run in runs)
    yield (
        "Test results are those of the parameters with the best validation; the test split is evaluated "
        "once. Tables of test results show the mean and, after ±, the standard deviation (n − 1) over the "
        "runs of a config; a single run has none."
    )
    yield (
        "A seed decides the initial parameters and the order of the examples. If a data set comes without a "
        "test split, it also decides which examples are tested: runs are compared seed by seed"
        f"{' and fold by fold' if has_folds else ''}."
    )
    if gaps:
        has_several = any(comparison.has_several_tests for comparison in comparisons)
        fewest_pairs = min(gap.n for gap in gaps)
        yield " ".join(_describe_test(fewest_pairs, has_several, has_folds))
    if effects:
        yield " ".join(_describe_effects(min(effect.n for effect in effects), has_folds))
    yield (
        "MACs: multiply-adds for one example, counted from the network's operations: convolutions and matrix "
        "products, including padding, attention and the mixing of kernels; one multiply-add is one MAC. XLA "
        "FLOPs: of a training step on a whole batch, by XLA's cost analysis of the compiled program, which "
        "counts the body of a loop once."
    )
    yield (
        "Step: median time of a training step without evaluations; run: the whole run with compilation, "
        "evaluations and figures. Costs are medians over the runs of a config; compiling is the longest, "
        f"because other runs may have used the same program. {tables.MISSING}: not known."
    )
    devices = {", ".join(map(str, run.summary.get("devices") or ["unknown"])) for run in runs}
    yield f"Devices: {'; '.join(sorted(devices))}."
    versions = set()
    for run in runs:
        known = run.summary.get("versions") or {"unknown": ""}
        versions.add(
            ", ".join(f"{package} {version}".strip() for package, version in known.items())
        )
    yield f"Versions: {'; or '.join(sorted(versions))}."


def _describe_test(fewest_pairs: int, has_several: bool, has_folds: bool) -> Iterator[str]:
    yield (
        "Difference: mean over the seeds or folds that a config and its baseline both have. p: two-sided "
        "Wilcoxon signed-rank test of these pairs."
    )
    if has_several:
        yield (
            "q: p after the correction of Benjamini and Hochberg for the number of configs on this data set. "
            "Of all differences with q up to 0.05, one in twenty is expected to be chance."
        )
    yield from _list_limits(fewest_pairs, "pairs", has_folds)


def _describe_effects(fewest: int, has_folds: bool) -> Iterator[str]:
    yield (
        "Effects: the differences between runs that differ in nothing else are averaged for each seed or "
        "fold; the table shows the mean of these averages and, after ±, its standard error. q: p of their "
        "two-sided Wilcoxon signed-rank test, after the correction of Benjamini and Hochberg for all rows."
    )
    yield from _list_limits(fewest, "seeds or folds", has_folds)


def _list_limits(number: int, name: str, has_folds: bool) -> Iterator[str]:
    """Yields what p cannot show."""
    if number < 6:
        yield (
            f"With fewer than 6 {name} p cannot be below 0.05, however large the differences are: it is no "
            "evidence either way."
        )
    if has_folds:
        yield "Folds share training examples, so their p is somewhat too small."


def _render_latex(comparisons: Sequence[DatasetComparison]) -> str:
    """Returns all tables; the document that includes them needs the package booktabs."""
    make_all = (
        tables.make_results_table, tables.make_cost_table, tables.make_iou_table, tables.make_runs_table,
    )  # fmt: skip
    made = [make(comparison) for comparison in comparisons for make in make_all]
    latex = [tables.render_latex(table) for table in made if table is not None]
    return "\n\n".join(["% \\usepackage{booktabs}", *latex]) + "\n"
