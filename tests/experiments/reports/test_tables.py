import json
from pathlib import Path

import pytest

from experiments.reports import tables
from experiments.reports.comparison import MeanDeviation, PairedDifference


@pytest.fixture
def two_configs(compare, write_run):
    """Three runs of one config, and two of another, without the fields that earlier versions lacked."""
    base = [write_run("base", 0.9 + seed / 100, seed, test={"top5": 1.0}) for seed in range(3)]
    unknown = "macs", "step_seconds", "examples_per_second", "batch_size", "xla_flops_per_step"
    label = {"label": "A & B_1|50%"}
    return compare(
        *base, *(write_run("odconv", 0.95, seed, without=unknown, **label) for seed in (1, 2))
    )


def test_results_table(two_configs):
    table = tables.make_results_table(two_configs)
    assert table.headings == [
        "config", "runs", "accuracy, %", "top-5 accuracy, %", "difference to base", "p (pairs)",
    ]  # fmt: skip
    assert table.rows == [
        ["base", "3", "91.00 ± 1.00", "100.00 ± 0.00", "-", "-"],
        ["A & B_1|50%", "2", "95.00 ± 0.00", "-", "+3.50", "0.500 (2)"],
    ]


@pytest.mark.parametrize(("data", "shown"), [("digits", False), ("audio", True)])
def test_f1_is_shown_for_recordings(compare, write_run, data, shown):
    folder = write_run(test={"top5": 1.0, "precision": 0.5, "f1": 0.75})
    settings = json.loads((folder / "config.json").read_text())
    settings["data"]["name"] = data
    (folder / "config.json").write_text(json.dumps(settings))
    table = tables.make_results_table(compare(folder))
    more = ["macro F1, %"] if shown else []
    assert table.headings == ["config", "runs", "accuracy, %", "top-5 accuracy, %", *more]
    assert table.rows == [["base", "1", "90.00", "100.00", "75.00"][: 4 + shown]]


def test_unknown_costs_are_dashes(two_configs):
    rows = tables.make_cost_table(two_configs).rows
    assert rows[0][1:] == ["1.23 M", "2.00 M", "3.00 G", "32", "20.0", "1,600", "60.0", "1.50"]
    # The batch is in the config.
    assert rows[1][1:] == ["1.23 M", "-", "-", "32", "-", "-", "60.0", "1.50"]


def test_published_column(compare, write_run):
    names = ("base", "odconv", "cbam")
    found = compare(*(write_run(name, dataset="tiny_imagenet") for name in names))
    table = tables.make_results_table(found)
    assert table.headings[-1] == "the study's own"
    assert [row[-1] for row in table.rows] == ["65.2 (1.5 GFLOPs)", "73.4 (2.3 GFLOPs)", "-"]


def test_several_baselines_are_named(compare, write_run):
    baselines = {"base": "base", "net1": "net1", "hard": "base", "net1_dynamic": "net1"}
    found = compare(
        *(
            write_run(name, 0.5 + i / 10, baseline=b)
            for i, (name, b) in enumerate(baselines.items())
        )
    )
    table = tables.make_results_table(found)
    assert table.headings[-3:] == ["difference to baseline", "p (pairs)", "q"]
    assert {row[0]: row[-3] for row in table.rows} == {
        "base": "-", "net1": "-", "hard": "+20.00 to base", "net1_dynamic": "+20.00 to net1",
    }  # fmt: skip


def test_segmentation_names_and_iou_table(compare, write_run):
    test = {"accuracy": 0.8, "miou": 0.4, "iou": {"cat": 0.25, "train": None}}
    found = compare(*(write_run(name, metric="miou", test=test) for name in ("base", "hard")))
    assert tables.make_results_table(found).headings[2:4] == ["mIoU, %", "pixel accuracy, %"]
    table = tables.make_iou_table(found)
    assert table.headings == ["class", "base", "hard"]
    assert table.rows == [["cat", "25.0", "25.0"], ["train", "-", "-"], ["mIoU", "40.00", "40.00"]]


def test_runs_table(compare, two_configs, write_run):
    table = tables.make_runs_table(two_configs)
    assert [row[0] for row in table.rows] == ["seed 0", "seed 1", "seed 2"]
    assert table.rows[0][1:] == ["90.00 (0.500)", "-"]
    assert tables.make_iou_table(two_configs) is None
    folds = compare(write_run(fold=0), write_run(fold=10), write_run(fold=9))
    assert [row[0] for row in tables.make_runs_table(folds).rows] == ["fold 0", "fold 9", "fold 10"]


def test_markdown_and_latex_escape_cells(two_configs):
    table = tables.make_results_table(two_configs)
    lines = tables.render_markdown(table).splitlines()
    assert lines[1] == "|---|---:|---:|---:|---:|---:|"
    assert lines[3].startswith(r"| A & B_1\|50% | 2 | 95.00 ± 0.00 |")
    text = tables.render_latex(table)
    assert r"A \& B\_1\textbar{}50\% & 2 & 95.00 $\pm$ 0.00 & - & +3.50 & 0.500 (2) \\" in text
    assert r"\begin{tabular}{lrrrrr}" in text and r"\toprule" in text and r"\bottomrule" in text
    special = "\\ { } & % $ # _ ~ ^ ± − < > |"
    escaped = tables.escape_latex(special)
    assert escaped.count("\\&") == 1 and "±" not in escaped and "−" not in escaped
    assert tables.escape_latex("plain 1.5 (3)") == "plain 1.5 (3)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0, "0"), (999, "999"), (1_000, "1.00 k"), (11_689_512, "11.7 M"),
        (1_814_073_344, "1.81 G"), (2.5e15, "2,500 T"), (0.0123, "0.0123"), (0.5, "0.500"),
    ],
)  # fmt: skip
def test_format_si(value, text):
    assert tables.format_si(value) == text


def test_format_difference_and_mean():
    def cells(mean, p=0.25):
        return tables.format_difference(PairedDifference("base", mean, p, 3, q=p), "accuracy")

    assert cells(0.0123) == ("+1.23", "0.250 (3)")
    assert cells(-0.0123) == ("−1.23", "0.250 (3)")
    assert cells(-0.00001, 0.0001) == ("0.00", "< 0.001 (3)")
    assert tables.format_difference(None, "accuracy") == ("-", "-")
    assert tables.format_mean(MeanDeviation(0.5, None, 1), "accuracy") == "50.00"
    assert tables.format_mean(MeanDeviation(0.5, 0.25, 2), "loss") == "0.5000 ± 0.2500"


def test_csv_records(two_configs):
    header, rows = tables.list_config_records([two_configs])
    records = [dict(zip(header, row, strict=True)) for row in rows]
    assert [record["runs"] for record in records] == [3, 2]
    assert records[1]["accuracy_mean"] == pytest.approx(0.95) and records[1]["pairs"] == 2
    assert records[1]["macs"] is None and records[0]["p"] is None
    header, rows = tables.list_run_records([two_configs], Path.cwd())
    records = [dict(zip(header, row, strict=True)) for row in rows]
    assert [(r["config"], r["seed"], r["accuracy"]) for r in records][-2:] == [
        ("odconv", 1, 0.95),
        ("odconv", 2, 0.95),
    ]
    assert records[0]["best_step"] == 20 and records[-1]["top5"] is None
