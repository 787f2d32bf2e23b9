"""Makes a page of what is inside a finished run's network.

    python -m experiments.inspect RUN [--out=RUN/inspect.html]

    RUN             the --workdir of a finished run
    --out=FILE      the page, one file with all of its pictures

It has what to notice first, what each layer costs, how kernels are mixed and how alike they are, what the
network looks at in test pictures, and the figures of the run. It reads what the run has left, needs no data,
and may be repeated at any time.
"""

import base64
import html
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from absl import flags

from dyn.diagnostics import Cost
from experiments.core import cli
from experiments.core.console import print_result
from experiments.core.errors import UserError
from experiments.core.files import replace_file
from experiments.load import Trained, load
from experiments.reports import inspection_figures, map_figures
from experiments.reports.inspection import Layer, Mixture, findings, layers_of, mixtures_of
from experiments.reports.tables import metric_name, scaled
from experiments.runs.artifacts import Maps, load_maps
from experiments.runs.folder import read_summary
from experiments.train.banner import scalar_metrics

# Of a run's own figures, those that say most, and what they show.
FIGURES = {
    "curves": "Training",
    "confusion": "Confusion",
    "predictions": "Test examples",
    "attention": "Attention by class",
    "pr_curves": "Precision and recall",
    "mistakes": "The worst mistakes",
    "reconstructions": "Test pictures and what came back",
    "segmentation": "Test pictures",
    "iou": "IoU of each class",
}


def inspect(run: str | Path, out: str | Path | None = None) -> Path:
    """Writes the page of a run, and returns where.

    Args:
        run: the run's workdir.
        out: the file; None for `inspect.html` in the run's folder.

    Raises:
        UserError: if there is no finished run, or the page cannot be written.
    """
    folder = Path(run).expanduser()
    out = Path(out).expanduser() if out else folder / "inspect.html"
    trained = load(folder)
    if out.is_dir():
        raise UserError(f"--out={out} is a folder: give a file.")
    example = jax.ShapeDtypeStruct((1, *trained.shape), np.float32)
    layers = layers_of(trained.model, trained.variables, example)
    seen = load_maps(folder / "maps.npz") if (folder / "maps.npz").exists() else None
    mixtures = mixtures_of(seen.mixtures if seen else {}, trained.variables["params"])
    with tempfile.TemporaryDirectory() as made:
        pictures = _draw(Path(made), layers, mixtures, {trained.config.name: seen} if seen else {})
        pictures += [
            (title, found)
            for name, title in FIGURES.items()
            for found in [folder / "figures" / f"{name}.png"]
            if found.exists()
        ]
        text = "\n".join(_page(folder, trained, layers, mixtures, pictures))
    with replace_file(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return out


def _draw(
    place: Path, layers: Sequence[Layer], mixtures: Sequence[Mixture], seen: Mapping[str, Maps]
) -> list[tuple[str, Path]]:
    """The figures that there is something for, as (title, file)."""
    inspection_figures.costs(layers, place / "costs.png")
    wanted = [
        ("How kernels are mixed", "mixtures", partial(map_figures.mixtures, seen)),
        (
            "How alike the kernels are",
            "similarity",
            partial(inspection_figures.similarities, mixtures),
        ),
        ("What the network looks at", "activation", partial(map_figures.attention_maps, seen)),
        ("Attention from place to place", "pixels", partial(map_figures.pixel_attention, seen)),
    ]
    drawn = [
        (title, place / f"{name}.png")
        for title, name, draw in wanted
        if draw(place / f"{name}.png")
    ]
    return [("What each layer costs", place / "costs.png"), *drawn]


def _page(
    folder: Path,
    trained: Trained,
    layers: Sequence[Layer],
    mixtures: Sequence[Mixture],
    pictures: Sequence[tuple[str, Path]],
) -> Iterator[str]:
    """The lines of the page."""
    summary = read_summary(folder)
    assert summary is not None  # `load` has looked
    metric = summary.get("metric", "accuracy")
    whole = Cost(summary["parameters"], summary["macs"], ())
    title = html.escape(f"{summary['config']} on {summary['dataset']}")
    yield _HEAD.format(title=title)
    yield f"<h1>{title}</h1>"
    yield _table(
        ["", ""],
        [
            ["run", str(folder)],
            *(
                [f"test {metric_name(name, metric)}", scaled(value, name)]
                for name, value in scalar_metrics(summary["test"]).items()
            ),
            ["classes", f"{len(trained.classes)}"],
            ["an example", " x ".join(map(str, trained.shape))],
            ["parameters", f"{summary['parameters']:,}"],
            ["multiply-adds for an example", f"{summary['macs']:,}"],
        ],
    )
    yield "<h2>What to notice</h2><ul>"
    for sentence in findings(layers, mixtures, whole):
        yield f"<li>{html.escape(sentence)}</li>"
    yield "</ul>"
    for shows, path in pictures:
        data = base64.b64encode(path.read_bytes()).decode()
        yield f'<p><img alt="{html.escape(shows)}" src="data:image/png;base64,{data}"></p>'
    if mixtures:
        yield "<h2>Mixtures, in figures</h2>"
        yield _table(
            ["layer", "kernels", "entropy", "spread", "never used", "most alike"],
            [
                [
                    one.name,
                    f"{len(one.mean)}",
                    f"{one.entropy:.2f}",
                    f"{one.spread:.2f}",
                    f"{int(one.dead.sum())}",
                    "" if one.most_alike is None else f"{one.most_alike:.2f}",
                ]
                for one in mixtures
            ],
        )
        yield (
            "<p>Entropy: 0, one kernel; 1, all alike. Spread: standard deviation of a weight over the "
            "examples, over the mean weight; 0, the same mixture for all. Most alike: the largest cosine "
            "between two kernels.</p>"
        )
    yield "<h2>Layers, in figures</h2>"
    yield _table(
        ["layer", "output", "parameters", "of attention", "multiply-adds", "of attention"],
        [
            [
                layer.name,
                " x ".join(map(str, layer.cost.output[1:])),
                f"{layer.cost.parameters:,}",
                f"{layer.attention.parameters:,}",
                f"{layer.cost.macs:,}",
                f"{layer.attention.macs:,}",
            ]
            for layer in layers
        ],
    )
    yield "</body></html>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    head = line(header, "th") if any(header) else ""
    return f"<table>{head}{''.join(line(row, 'td') for row in rows)}</table>"


_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76em; margin: 2em auto }}
h1, h2 {{ font-weight: 600; margin: 1.6em 0 .5em }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }}
td, th {{ padding: .2em .9em; border-bottom: 1px solid #e8e8e8; text-align: right }}
td:first-child, th:first-child {{ text-align: left; padding-left: 0 }}
img {{ max-width: 100%; height: auto }}
</style></head><body>"""


if __name__ == "__main__":
    place = flags.DEFINE_string("out", "", "The page.")

    def main() -> None:
        """Makes the page of the run that the command names."""
        if len(given) != 1:
            raise UserError("Which run? Give one: python -m experiments.inspect runs/odconv-digits")
        try:
            print_result("finished", [("page", str(inspect(given[0], place.value or None)))])
        except OSError as error:
            raise UserError(f"The page cannot be written: {error}.") from error

    command, given = cli.without_words(sys.argv)
    cli.leave(cli.run(main, command, str(__doc__)))
