"""Comparisons as tables: of cells in Markdown and LaTeX, of plain numbers for CSV."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from experiments.reports.comparison import COSTS, PERCENT, Comparison, Difference, Row, Spread
from experiments.runs.find import Problem, Run, number

MISSING = "-"
NAMES = {
    "accuracy": "accuracy",
    "top5": "top-5 accuracy",
    "f1": "macro F1",
    "map": "mAP",
    "psnr": "PSNR in dB",
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean class accuracy",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """A title, headings and rows of cells; the first columns are words, the others numbers."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1

    def alignments(self, left: str, right: str) -> list[str]:
        """How each column is aligned."""
        return [left if n < self.words else right for n in range(len(self.headings))]


def metric_name(metric: str, main: str) -> str:
    """What a test metric is called beside the one that counts most."""
    if metric == "accuracy" and main == "miou":
        return "pixel accuracy"
    return NAMES.get(metric, metric)


def shown_metrics(comparison: Comparison) -> list[str]:
    """The metric that counts most, then the other shares that any config has."""
    known = {name for row in comparison.rows for name in row.metrics}
    if not any(of_sounds(run) for run in comparison.runs):
        known.discard("f1")  # measured for all, but asked for where classes differ much in size
    others = [name for name in PERCENT if name in known and name != comparison.metric]
    return [comparison.metric, *others]


def of_sounds(run: Run) -> bool:
    """Whether a run was on recordings."""
    data = run.settings.get("data")
    return isinstance(data, dict) and data.get("name") == "audio"


def results(comparison: Comparison) -> Table:
    """Mean and standard deviation of the test metrics, and the difference to the baseline."""
    main = comparison.metric
    metrics = shown_metrics(comparison)
    labels = {row.config: row.label for row in comparison.rows}
    baselines = {labels[row.difference.baseline] for row in comparison.rows if row.difference}
    with_published = any(row.published for row in comparison.rows)
    headings = ["config", "runs"]
    headings += [f"{metric_name(name, main)}{unit(name)}" for name in metrics]
    if baselines:
        to = baselines.copy().pop() if len(baselines) == 1 else "baseline"
        headings += [f"difference to {to}", "p (pairs)"]
    headings += ["the study's own"] if with_published else []
    rows = []
    for row in comparison.rows:
        cells = [row.label, str(len(row.runs))]
        cells += [spread(row.metrics.get(name), name) for name in metrics]
        if baselines:
            gap, p = difference(row.difference, main)
            named = row.difference and len(baselines) > 1
            cells += [f"{gap} to {labels[row.difference.baseline]}" if named else gap, p]
        if with_published:
            cells.append(_published(row))
        rows.append(cells)
    return Table(f"{comparison.dataset}: test results over {comparison.over}", headings, rows)


def costs(comparison: Comparison) -> Table:
    """What each config costs."""
    headings = [
        "config", "parameters", "MACs", "XLA FLOPs a step", "batch", "step, ms", "examples/s",
        "run, s", "compiling, s",
    ]  # fmt: skip
    rows = []
    for row in comparison.rows:
        cost = row.costs
        batch = {
            run.cost("batch_size") or number(run.settings.get("batch_size")) for run in row.runs
        }
        step = cost["step_seconds"]
        rows.append(
            [
                row.label,
                *(engineering(cost[name]) for name in ("parameters", "macs", "xla_flops_per_step")),
                f"{batch.pop():g}" if len(batch) == 1 and None not in batch else MISSING,
                significant(None if step is None else 1e3 * step),
                *(
                    significant(cost[n])
                    for n in ("examples_per_second", "seconds", "compile_seconds")
                ),
            ]
        )
    return Table(f"{comparison.dataset}: costs", headings, rows)


def iou(comparison: Comparison) -> Table | None:
    """Intersection over union of each class; None where classes were not measured."""
    rows = [row for row in comparison.rows if row.iou]
    if not rows:
        return None
    names = {name: None for row in rows for name in row.iou}
    lines = [[name, *(share(row.iou.get(name)) for row in rows)] for name in names]
    means = [f"{100 * row.metrics[comparison.metric].mean:.2f}" for row in rows]
    lines.append([NAMES.get(comparison.metric, comparison.metric), *means])
    return Table(
        f"{comparison.dataset}: intersection over union of each class, %, mean over {comparison.over}",
        ["class", *(row.label for row in rows)],
        lines,
    )


def each_run(comparison: Comparison) -> Table:
    """The metric that counts most, and the test loss, of every fold or seed."""
    keys = sorted({run.key for run in comparison.runs})
    seeds = len({seed for _, seed in keys}) > 1
    by_row = [{run.key: run for run in row.runs} for row in comparison.rows]
    lines = []
    for fold, seed in keys:
        name = f"seed {seed}" if fold < 0 else f"fold {fold}{f', seed {seed}' * seeds}"
        runs = [runs.get((fold, seed)) for runs in by_row]
        lines.append([name, *(_run_cell(run, comparison.metric) for run in runs)])
    name = metric_name(comparison.metric, comparison.metric)
    return Table(
        f"{comparison.dataset}: {name}{unit(comparison.metric)} (and test loss) of each run",
        ["run", *(row.label for row in comparison.rows)],
        lines,
    )


def _run_cell(run: Run | None, metric: str) -> str:
    if run is None:
        return MISSING
    loss = run.test("loss")
    return scaled(run.test(metric), metric) + (f" ({loss:.3f})" if loss is not None else "")


def problems(found: Sequence[Problem], names: Sequence[str]) -> Table:
    """The runs that are in no table; `names` are those of their folders."""
    rows = [
        [name, problem.config, problem.dataset, problem.reason]
        for name, problem in zip(names, found, strict=True)
    ]
    return Table("Runs that are in no table", ["run", "config", "data set", "why"], rows, 4)


# ---------------------------------------------------------------- cells
def unit(metric: str) -> str:
    """Shares are shown in percent."""
    return ", %" if metric in PERCENT else ""


def scaled(value: float | None, metric: str) -> str:
    """A metric's value, shares in percent."""
    if value is None:
        return MISSING
    return f"{100 * value:.2f}" if metric in PERCENT else f"{value:.4f}"


def share(value: float | None) -> str:
    """A share in percent; None for a class that is in neither truth nor prediction."""
    return MISSING if value is None else f"{100 * value:.1f}"


def spread(found: Spread | None, metric: str) -> str:
    """Mean and standard deviation; without the latter for a single run."""
    if found is None:
        return MISSING
    sd = "" if found.sd is None else f" ± {scaled(found.sd, metric)}"
    return scaled(found.mean, metric) + sd


def difference(found: Difference | None, metric: str) -> list[str]:
    """The mean difference with its sign, and the p with its number of pairs."""
    if found is None:
        return [MISSING, MISSING]
    text = scaled(abs(found.mean), metric)
    sign = "" if not float(text) else "+" if found.mean > 0 else "−"
    p = "< 0.001" if found.p < 0.001 else f"{found.p:.3f}"
    return [sign + text, f"{p} ({found.n})"]


def _published(row: Row) -> str:
    found = row.published
    if found is None:
        return MISSING
    sd = "" if found.sd is None else f" ± {100 * found.sd:.1f}"
    flops = "" if found.flops is None else f" ({found.flops / 1e9:.1f} GFLOPs)"
    return f"{100 * found.mean:.1f}{sd}{flops}"


def engineering(value: float | None) -> str:
    """Three digits or more, and k, M, G or T."""
    if value is None:
        return MISSING
    power = min(4, int(math.log10(abs(value)) // 3)) if abs(value) >= 1000 else 0
    return f"{significant(value / 1000**power)}{' ' if power else ''}{' kMGT'[power].strip()}"


def significant(value: float | None) -> str:
    """Three digits; all of those before the point."""
    if value is None:
        return MISSING
    if abs(value) >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.{2 - math.floor(math.log10(abs(value)))}f}"


# ---------------------------------------------------------------- forms
def markdown(table: Table) -> str:
    """The table in Markdown, without its title."""

    def line(cells: Iterable[str]) -> str:
        # A bar would begin another cell.
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    rule = f"|{'|'.join(table.alignments('---', '---:'))}|"
    return "\n".join([line(table.headings), rule, *map(line, table.rows)])


def latex(table: Table) -> str:
    """The table in LaTeX, with its title as caption; it needs the package booktabs."""

    def line(cells: Iterable[str]) -> str:
        return "    " + " & ".join(map(escape_latex, cells)) + r" \\"

    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{escape_latex(table.title)}}}",
            rf"  \begin{{tabular}}{{{''.join(table.alignments('l', 'r'))}}}",
            r"    \toprule",
            line(table.headings),
            r"    \midrule",
            *map(line, table.rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#",
    "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$",
    "<": "$<$", ">": "$>$", "|": r"\textbar{}",
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Text in which no letter means anything to LaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


# ---------------------------------------------------------------- plain numbers
def config_records(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of `report.csv`: a row for each config, numbers as they are."""
    metrics = _all_metrics(comparisons)
    header = ["dataset", "config", "label", "baseline", "runs", "metric"]
    header += [f"{name}_{part}" for name in metrics for part in ("mean", "sd")]
    header += ["difference", "p", "pairs", *COSTS, "study_mean", "study_sd"]
    rows = []
    for comparison in comparisons:
        for row in comparison.rows:
            spreads = [row.metrics.get(name) for name in metrics]
            gap, theirs = row.difference, row.published
            cells = [comparison.dataset, row.config, row.label, row.runs[0].baseline, len(row.runs)]
            cells.append(comparison.metric)
            cells += [part for s in spreads for part in ((s.mean, s.sd) if s else (None, None))]
            cells += [gap.mean, gap.p, gap.n] if gap else [None] * 3
            cells += [row.costs[name] for name in COSTS]
            cells += [theirs.mean, theirs.sd] if theirs else [None] * 2
            rows.append(cells)
    return header, rows


def run_records(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of `runs.csv`: a row for each run, numbers as they are."""
    metrics = _all_metrics(comparisons)
    header = ["dataset", "config", "fold", "seed", *metrics, "best_step", "steps", *COSTS, "folder"]
    rows = []
    for comparison in comparisons:
        for run in comparison.runs:
            best = run.summary.get("best")
            best = best.get("step") if isinstance(best, dict) else None
            cells = [run.dataset, run.config, run.fold, run.seed, *(run.test(m) for m in metrics)]
            cells += [
                number(best),
                run.cost("steps"),
                *(run.cost(name) for name in COSTS),
                run.folder,
            ]
            rows.append(cells)
    return header, rows


def _all_metrics(comparisons: Sequence[Comparison]) -> list[str]:
    """Every test metric that some run has as a number, in the order in which they first occur."""
    tests = [run.summary["test"] for comparison in comparisons for run in comparison.runs]
    return list({name: None for test in tests for name in test if number(test[name]) is not None})
