"""Shows comparisons as tables: formatted cells for Markdown and LaTeX, plain numbers for CSV."""

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.core.escaping import escape_control, escape_markdown
from experiments.reports.attention import LayerAttention
from experiments.reports.comparison import (
    COSTS,
    PERCENT,
    ConfigResults,
    DatasetComparison,
    MeanDeviation,
    PairedDifference,
)
from experiments.reports.effects import MEASURES, Effect, group_effects, name_quantity
from experiments.runs.find import ExcludedRun, Run, finite_or_none
from experiments.runs.metrics import count_classes, select_scalars

MISSING = "-"
SHARES = (*PERCENT, "precision", "recall")
ATTENTION_HEADER = (
    "dataset", "over", "config", *(field.name for field in dataclasses.fields(LayerAttention)),
)  # fmt: skip
EFFECTS_HEADER = (
    "change", "dataset", "over", "metric", "pairs", "replicates",
    *(
        f"{split}_{quantity}_{part}"
        for split, quantity in MEASURES
        for part in ("mean", "error", "p", "q")
    ),
)  # fmt: skip
METRIC_NAMES = {
    "accuracy": "accuracy",
    "top5": "top-5 accuracy",
    "precision": "macro precision",
    "recall": "macro recall",
    "f1": "macro F1",
    "map": "mAP",
    "auroc": "AUROC",
    "psnr": "PSNR in dB",
    "miou": "mIoU",
    "ap50": "AP50",
    "mask_ap": "mask AP",
    "box_ap": "box AP",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean class accuracy",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """A title, headings and rows of cells. The first `words` columns are text, the others numbers."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1

    def align(self, left: str, right: str) -> list[str]:
        """Returns `left` for each column of text and `right` for each column of numbers."""
        return [left if n < self.words else right for n in range(len(self.headings))]


# ---------------------------------------------------------------- tables
def make_results_table(comparison: DatasetComparison) -> Table:
    """Returns mean and deviation of the test metrics, and the difference to the baseline."""
    main = comparison.metric
    metrics = _select_metrics(comparison)
    labels = {results.config: results.label for results in comparison.results}
    differences = [results.difference for results in comparison.results]
    baselines = sorted({labels[gap.baseline] for gap in differences if gap})
    has_published = any(results.published for results in comparison.results)
    headings = ["config", "runs"]
    headings += [f"{name_metric(name, main)}{name_unit(name)}" for name in metrics]
    if baselines:
        to = baselines[0] if len(baselines) == 1 else "baseline"
        headings += [
            f"difference to {to}",
            "p (pairs)",
            *(["q"] if comparison.has_several_tests else []),
        ]
    if has_published:
        headings += ["the study's own"]
    rows = []
    for results, gap in zip(comparison.results, differences, strict=True):
        cells = [results.label, str(len(results.runs))]
        cells += [format_mean(results.metrics.get(name), name) for name in metrics]
        if baselines:
            mean, p = format_difference(gap, main)
            cells += [f"{mean} to {labels[gap.baseline]}" if gap and len(baselines) > 1 else mean]
            cells += [p]
        if comparison.has_several_tests:
            cells += [format_p(gap.q) if gap else MISSING]
        if has_published:
            cells += [_format_published(results)]
        rows.append(cells)
    return Table(f"{comparison.dataset}: test results over {comparison.replicates}", headings, rows)


def _select_metrics(comparison: DatasetComparison) -> list[str]:
    """Returns the metric that ranks, then the other shares that any config has."""
    measured = {name for results in comparison.results for name in results.metrics}
    known = {
        name
        for run in comparison.runs
        for name in select_scalars(run.summary["test"], count_classes(run.summary))
        if name in measured
    }
    if all((run.settings.get("data") or {}).get("name") != "audio" for run in comparison.runs):
        known.discard("f1")  # always measured, but informative where classes differ much in size
    return [comparison.metric, *(n for n in PERCENT if n in known and n != comparison.metric)]


def make_cost_table(comparison: DatasetComparison) -> Table:
    """Returns parameters, operations and times of each config."""
    headings = [
        "config", "parameters", "MACs", "XLA FLOPs a step", "batch", "step, ms", "examples/s",
        "run, s", "compiling, s",
    ]  # fmt: skip
    rows = []
    for results in comparison.results:
        cost = results.costs
        step = cost["step_seconds"]
        cells = [results.label]
        cells += [format_si(cost[name]) for name in ("parameters", "macs", "xla_flops_per_step")]
        cells += [_format_batch_size(results)]
        cells += [format_significant(None if step is None else 1e3 * step)]
        times = ("examples_per_second", "seconds", "compile_seconds")
        rows.append([*cells, *(format_significant(cost[name]) for name in times)])
    return Table(f"{comparison.title}: costs", headings, rows)


def make_attention_table(
    comparison: DatasetComparison, attention: Mapping[str, Sequence[LayerAttention]]
) -> Table | None:
    """Returns how each config mixes its kernels, as means over its layers; None if none does.

    Args:
        comparison: the configs.
        attention: config to its layers.
    """
    headings = [
        "config", "layers", "entropy", "spread over examples", "spread over classes", "unused kernels, %",
        "agreement of runs",
    ]  # fmt: skip
    rows = []
    for results in comparison.results:
        layers = attention.get(results.config)
        if not layers:
            continue
        cells = [results.label, str(len(layers))]
        for name in ("entropy", "spread", "class_spread", "dead", "agreement"):
            known = [value for layer in layers if (value := getattr(layer, name)) is not None]
            mean = sum(known) / len(known) if known else None
            if name == "dead":
                cells.append(f"{100 * mean:.1f}")
            else:
                cells.append(MISSING if mean is None else f"{mean:.3f}")
        rows.append(cells)
    return Table(f"{comparison.title}: attention over kernels", headings, rows) if rows else None


def list_attention_records(
    comparison: DatasetComparison, attention: Mapping[str, Sequence[LayerAttention]]
) -> Iterator[list[object]]:
    """Yields a record for each layer of each config, in the order of `ATTENTION_HEADER`."""
    for results in comparison.results:
        for layer in attention.get(results.config, ()):
            record = [comparison.dataset, comparison.replicates, results.label]
            yield [*record, *dataclasses.astuple(layer)]


def make_effects_table(comparison: DatasetComparison, effects: Sequence[Effect]) -> Table | None:
    """Returns what each value of a sweep changes, with standard errors; None without effects."""
    headings = ["setting", "value", "pairs", comparison.replicates]
    for split, quantity in MEASURES:
        name = name_quantity(quantity, comparison.metric)
        headings += [f"{split} {name_metric(name, comparison.metric)}{name_unit(name)}", "q"]
    rows = []
    for (setting, value, reference), by_measure in group_effects(effects).items():
        first = next(iter(by_measure.values()))
        cells = [setting, f"{value} instead of {reference}", str(first.pairs), str(first.n)]
        for measure in MEASURES:
            if one := by_measure.get(measure):
                cells += [format_effect(one, comparison.metric), format_p(one.q)]
            else:
                cells += [MISSING, MISSING]
        rows.append(cells)
    title = f"{comparison.title}: effects of settings, all others being equal"
    return Table(title, headings, rows, words=2) if rows else None


def format_effect(effect: Effect, metric: str) -> str:
    """Formats a mean difference with its sign, and its standard error."""
    name = name_quantity(effect.quantity, metric)
    sign = "+" if effect.mean > 0 else "−"
    spread = "" if effect.error is None else f" ± {format_metric(effect.error, name)}"
    return f"{sign}{format_metric(abs(effect.mean), name)}{spread}"


def list_effect_records(
    comparison: DatasetComparison, effects: Sequence[Effect]
) -> Iterator[list[object]]:
    """Yields a record for each change of a setting, in the order of `EFFECTS_HEADER`."""
    for (setting, value, reference), by_measure in group_effects(effects).items():
        first = next(iter(by_measure.values()))
        change = f"{setting}={value} instead of {reference}"
        record: list[object] = [change, comparison.dataset, comparison.replicates]
        record += [comparison.metric, first.pairs, first.n]
        for measure in MEASURES:
            one = by_measure.get(measure)
            record += [one.mean, one.error, one.p, one.q] if one else [None] * 4
        yield record


def _format_batch_size(results: ConfigResults) -> str:
    sizes = {
        run.summary_number("batch_size") or finite_or_none(run.settings.get("batch_size"))
        for run in results.runs
    }
    size = sizes.pop() if len(sizes) == 1 else None
    return MISSING if size is None else f"{size:g}"


def make_iou_table(comparison: DatasetComparison) -> Table | None:
    """Returns the intersection over union of each class; None if the task does not measure it."""
    measured = [results for results in comparison.results if results.iou]
    if not measured:
        return None
    classes = {name: None for results in measured for name in results.iou}
    rows = []
    for name in classes:
        shares = [results.iou.get(name) for results in measured]
        rows.append([name, *(MISSING if iou is None else f"{100 * iou:.1f}" for iou in shares)])
    means = [format_metric(r.metrics[comparison.metric].mean, comparison.metric) for r in measured]
    rows.append([name_metric(comparison.metric, comparison.metric), *means])
    return Table(
        f"{comparison.dataset}: intersection over union of each class, %, mean over "
        f"{comparison.replicates}",
        ["class", *(results.label for results in measured)],
        rows,
    )


def make_runs_table(comparison: DatasetComparison) -> Table:
    """Returns the metric that ranks, and the test loss, of every fold or seed."""
    keys = sorted({run.fold_and_seed for run in comparison.runs})
    several_seeds = len({seed for _, seed in keys}) > 1
    runs = [{run.fold_and_seed: run for run in results.runs} for results in comparison.results]
    rows = []
    for fold, seed in keys:
        name = f"fold {fold}" if fold >= 0 else f"seed {seed}"
        if fold >= 0 and several_seeds:
            name += f", seed {seed}"
        cells = [_format_run(by_key.get((fold, seed)), comparison.metric) for by_key in runs]
        rows.append([name, *cells])
    metric = name_metric(comparison.metric, comparison.metric) + name_unit(comparison.metric)
    return Table(
        f"{comparison.title}: {metric} (and test loss) of each run",
        ["run", *(results.label for results in comparison.results)],
        rows,
    )


def _format_run(run: Run | None, metric: str) -> str:
    if run is None:
        return MISSING
    loss = run.test_metric("loss")
    cell = format_metric(run.test_metric(metric), metric)
    return cell if loss is None else f"{cell} ({loss:.3f})"


def make_excluded_table(excluded: Sequence[ExcludedRun], place: Path) -> Table:
    """Returns the runs that are in no other table, with their folders as seen from `place`."""
    rows = [
        [os.path.relpath(run.folder, place), run.config, run.dataset, run.reason]
        for run in excluded
    ]
    return Table("Runs that are in no table", ["run", "config", "data set", "why"], rows, words=4)


# ---------------------------------------------------------------- cells
def name_metric(metric: str, main: str) -> str:
    """Returns the name of a test metric beside the one that ranks, `main`."""
    if metric == "accuracy" and main == "miou":
        return "pixel accuracy"
    return METRIC_NAMES.get(metric, metric)


def name_unit(metric: str) -> str:
    """Returns the unit after the name of a metric: shares are shown in percent."""
    return ", %" if metric in SHARES else ""


def format_metric(value: float | None, metric: str) -> str:
    """Formats the value of a metric, shares in percent."""
    if value is None:
        return MISSING
    return f"{100 * value:.2f}" if metric in SHARES else f"{value:.4f}"


def format_mean(value: MeanDeviation | None, metric: str) -> str:
    """Formats mean and standard deviation; a single run has only the mean."""
    if value is None:
        return MISSING
    sd = "" if value.sd is None else f" ± {format_metric(value.sd, metric)}"
    return format_metric(value.mean, metric) + sd


def format_difference(gap: PairedDifference | None, metric: str) -> tuple[str, str]:
    """Formats the mean difference with its sign, and p with the number of pairs."""
    if gap is None:
        return MISSING, MISSING
    size = format_metric(abs(gap.mean), metric)
    sign = "" if float(size) == 0 else "+" if gap.mean > 0 else "−"
    return sign + size, f"{format_p(gap.p)} ({gap.n})"


def format_p(p: float) -> str:
    """Formats the p of a test."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _format_published(results: ConfigResults) -> str:
    published = results.published
    if published is None:
        return MISSING
    sd = "" if published.sd is None else f" ± {100 * published.sd:.1f}"
    flops = "" if published.flops is None else f" ({published.flops / 1e9:.1f} GFLOPs)"
    return f"{100 * published.mean:.1f}{sd}{flops}"


def format_si(value: float | None) -> str:
    """Formats a number with three significant digits or more, and k, M, G or T."""
    if value is None:
        return MISSING
    power = min(4, int(math.log10(abs(value)) // 3)) if abs(value) >= 1000 else 0
    prefix = ("", " k", " M", " G", " T")[power]
    return format_significant(value / 1000**power) + prefix


def format_significant(value: float | None) -> str:
    """Formats a number with three significant digits, or with all digits before the point."""
    if value is None:
        return MISSING
    if abs(value) >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.{2 - math.floor(math.log10(abs(value)))}f}"


# ---------------------------------------------------------------- Markdown and LaTeX
def render_markdown(table: Table) -> str:
    """Returns the table in Markdown, without its title."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(map(escape_markdown, cells)) + " |"

    rule = f"|{'|'.join(table.align('---', '---:'))}|"
    return "\n".join([line(table.headings), rule, *map(line, table.rows)])


def render_latex(table: Table) -> str:
    """Returns the table in LaTeX, with its title as caption; it needs the package booktabs."""

    def line(cells: Iterable[str]) -> str:
        return "    " + " & ".join(map(escape_latex, cells)) + r" \\"

    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{escape_latex(table.title)}}}",
            rf"  \begin{{tabular}}{{{''.join(table.align('l', 'r'))}}}",
            r"    \toprule",
            line(table.headings),
            r"    \midrule",
            *map(line, table.rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


_LATEX_ESCAPES = str.maketrans(
    {
        **{character: f"\\{character}" for character in "{}&%$#_"},
        **{character: f"${character}$" for character in "<>"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "−": "$-$",
    }
)


def escape_latex(text: str) -> str:
    """Escapes all characters that have a meaning in LaTeX."""
    return escape_control(text).translate(_LATEX_ESCAPES)


# ---------------------------------------------------------------- CSV
def list_config_records(
    comparisons: Sequence[DatasetComparison],
) -> tuple[list[str], list[list[Any]]]:
    """Returns header and rows of `report.csv`: one row per config, numbers unrounded."""
    metrics = _list_test_metrics(comparisons)
    header = ["dataset", "config", "label", "baseline", "runs", "over", "metric"]
    header += [f"{name}_{part}" for name in metrics for part in ("mean", "sd")]
    header += ["difference", "p", "q", "pairs", *COSTS, "study_mean", "study_sd"]
    rows = []
    for comparison in comparisons:
        for results in comparison.results:
            row: list[Any] = [comparison.dataset, results.config, results.label]
            row += [results.runs[0].baseline, len(results.runs), comparison.replicates]
            row += [comparison.metric]
            for name in metrics:
                value = results.metrics.get(name)
                row += [value.mean, value.sd] if value else [None, None]
            gap, published = results.difference, results.published
            row += [gap.mean, gap.p, gap.q, gap.n] if gap else [None] * 4
            row += [results.costs[name] for name in COSTS]
            row += [published.mean, published.sd] if published else [None, None]
            rows.append(row)
    return header, rows


def list_run_records(
    comparisons: Sequence[DatasetComparison], place: Path
) -> tuple[list[str], list[list[Any]]]:
    """Returns header and rows of `runs.csv`: one row per run, numbers unrounded, folders from `place`."""
    metrics = _list_test_metrics(comparisons)
    header = ["dataset", "config", "fold", "seed", *metrics, "best_step", "steps", *COSTS, "folder"]
    rows = []
    for run in (run for comparison in comparisons for run in comparison.runs):
        best = run.summary.get("best")
        row: list[Any] = [run.dataset, run.config, run.fold, run.seed]
        row += [run.test_metric(name) for name in metrics]
        row += [finite_or_none(best.get("step")) if isinstance(best, dict) else None]
        row += [run.summary_number(name) for name in ("steps", *COSTS)]
        rows.append([*row, os.path.relpath(run.folder, place)])
    return header, rows


def _list_test_metrics(comparisons: Sequence[DatasetComparison]) -> list[str]:
    """Lists every test metric that some run has as a number, in the order of first occurrence."""
    runs = [run for comparison in comparisons for run in comparison.runs]
    names = {name: None for run in runs for name in run.summary["test"]}
    return [name for name in names if any(run.test_metric(name) is not None for run in runs)]
