"""Writes a web page about a finished run's network, one file with all of its figures."""

import base64
import datetime
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from string import Template
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from dyn.diagnostics import Cost
from experiments.core.errors import UserError
from experiments.core.escaping import escape_html
from experiments.core.files import check_own_text, write_text
from experiments.reports import map_figures, network_figures
from experiments.reports.network import (
    KernelUse,
    LayerCost,
    list_findings,
    measure_kernel_use,
    measure_layers,
)
from experiments.reports.recipes import list_recipe
from experiments.reports.tables import MISSING, format_metric, name_metric, name_unit
from experiments.runs.artifacts import load_maps
from experiments.runs.find import finite_or_none
from experiments.runs.metrics import count_classes, select_scalars
from experiments.runs.schema import read_summary

MIXTURES_LEGEND = """<p>Entropy: 0, one kernel; 1, equal weights. Spread: standard deviation of a weight over
the examples, divided by the mean weight; 0, the same mixture for every example. Largest cosine: between two
kernels of the layer.</p>"""
# The most telling of a run's own figures, and what they show.
RUN_FIGURES = {
    "curves": "Training",
    "confusion": "Confusion",
    "predictions": "Test examples",
    "attention": "Attention by class",
    "pr_curves": "Precision and recall",
    "mistakes": "The worst mistakes",
    "reconstructions": "Test pictures and their reconstructions",
    "samples": "Samples",
    "detections": "Objects in test pictures",
    "ap": "Precision of each class",
    "iou": "IoU of each class",
}


def write_page(
    run: Path,
    model: nn.Module,
    variables: Mapping[str, Any],
    shape: Sequence[int],
    classes: Sequence[str],
    out: str | Path = "",
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the page of a finished run, and returns its path.

    Args:
        run: the workdir of the run.
        model: its network.
        variables: of the network.
        shape: of one example.
        classes: their names.
        out: the file to write; '' for `inspect.html` in the run's folder.
        settings: of the run, from its `config.json`.

    Raises:
        UserError: if `out` is a folder, or `run` is not the folder of a finished run.
    """
    out = Path(out).expanduser() if out else run / "inspect.html"
    if out.is_dir():
        raise UserError(f"--out={out} is a folder: give a file.")
    check_own_text(out, "<h2>Findings</h2>")
    summary = read_summary(run)
    if summary is None:
        raise UserError(f"{run} is not the folder of a finished run, which has a summary.json.")
    layers = measure_layers(model, variables, jax.ShapeDtypeStruct((1, *shape), np.float32))
    maps, uses = {}, []
    if (run / "maps.npz").exists():
        loaded = load_maps(run / "maps.npz")
        maps = {summary["config"]: loaded}
        uses = measure_kernel_use(loaded.mixtures, variables["params"])
    findings = list_findings(layers, uses, Cost(summary["parameters"], summary["macs"], ()))
    with tempfile.TemporaryDirectory() as folder:
        figures = _draw_figures(Path(folder), layers, uses, maps)
        figures |= {title: run / "figures" / f"{name}.png" for name, title in RUN_FIGURES.items()}
        embedded = [_embed_figure(title, path) for title, path in figures.items() if path.exists()]
    page = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8")).substitute(
        title=escape_html(f"{summary['config']} on {summary['dataset']}"),
        subtitle=escape_html(_describe_run(run, summary, settings or {})),
        facts="\n".join(_render_fact(*fact) for fact in _list_facts(summary, shape, classes)),
        settings=_render_table((), list_recipe(settings or {})),
        findings="\n".join(f"<li>{escape_html(finding)}</li>" for finding in findings),
        figures="\n".join(embedded),
        mixtures=_render_mixtures(uses),
        layers=_render_layers(layers),
    )
    write_text(out, page)
    return out


def _draw_figures(
    folder: Path, layers: Sequence[LayerCost], uses: Sequence[KernelUse], maps: Mapping[str, Any]
) -> dict[str, Path]:
    """Draws the figures that have something to show; returns the file of each title, drawn or not."""
    drawers = {
        "Cost of each layer": partial(network_figures.draw_costs, layers),
        "Mixture of kernels": partial(map_figures.draw_mixtures, maps),
        "Similarity of kernels": partial(network_figures.draw_similarities, uses),
        "Evidence for the true class": partial(map_figures.draw_attention_maps, maps),
        "Attention over positions": partial(map_figures.draw_pixel_attention, maps),
    }
    paths = {title: folder / f"{title}.png" for title in drawers}
    for title, draw in drawers.items():
        draw(paths[title])
    return paths


def _embed_figure(title: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img alt="{escape_html(title)}" src="data:image/png;base64,{data}"></figure>'


def _describe_run(run: Path, summary: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Returns the config, the seed, the folder and the time at which the run was finished."""
    finished = datetime.datetime.fromtimestamp((run / "summary.json").stat().st_mtime)
    fold = summary.get("fold")
    replicate = (
        f"seed {summary.get('seed', settings.get('seed'))}" if fold is None else f"fold {fold}"
    )
    return f"config {summary['config']}, {replicate}, finished {finished:%Y-%m-%d %H:%M}, in {run}"


def _render_fact(name: str, value: str) -> str:
    return f"<div><dt>{escape_html(name)}</dt><dd>{escape_html(value)}</dd></div>"


def _list_facts(
    summary: Mapping[str, Any], shape: Sequence[int], classes: Sequence[str]
) -> list[tuple[str, str]]:
    metric = summary.get("metric", "accuracy")
    tested = [
        (f"test {name_metric(name, metric)}{name_unit(name)}", format_metric(value, name))
        for name, value in select_scalars(summary["test"], count_classes(summary)).items()
        if finite_or_none(value) is not None
    ]
    return [
        *tested,
        ("classes", str(len(classes))),
        ("shape of an example", " x ".join(map(str, shape))),
        ("parameters", f"{summary['parameters']:,}"),
        ("multiply-adds for an example", f"{summary['macs']:,}"),
    ]


def _render_mixtures(uses: Sequence[KernelUse]) -> str:
    """Returns the section on mixtures; '' if no layer has any."""
    if not uses:
        return ""
    header = ("layer", "kernels", "entropy", "spread", "never used", "largest cosine")
    rows = [
        (
            use.name,
            f"{len(use.mean)}",
            f"{use.entropy:.2f}",
            f"{use.spread:.2f}",
            f"{int(use.dead.sum())}",
            MISSING if use.largest_cosine is None else f"{use.largest_cosine:.2f}",
        )
        for use in uses
    ]
    table = _render_table(header, rows)
    return "\n".join(["<section>", "<h2>Mixtures</h2>", table, MIXTURES_LEGEND, "</section>"])


def _render_layers(layers: Sequence[LayerCost]) -> str:
    header = ("layer", "output", "parameters", "of attention", "multiply-adds", "of attention")
    rows = [
        (
            layer.name,
            " x ".join(map(str, layer.cost.output[1:])),
            f"{layer.cost.parameters:,}",
            f"{layer.attention.parameters:,}",
            f"{layer.cost.macs:,}",
            f"{layer.attention.macs:,}",
        )
        for layer in layers
    ]
    return _render_table(header, rows)


def _render_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in HTML, with its cells escaped."""

    def render_row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape_html(cell)}</{tag}>' for cell in cells)}</tr>"

    lines = [render_row(header, "th")] if header else []
    return "\n".join(["<table>", *lines, *(render_row(row, "td") for row in rows), "</table>"])
