import csv
import json
import re

import numpy as np
import pytest

from experiments.core.errors import UserError
from experiments.reports.report import write_report
from experiments.runs import artifacts


def write_maps(folder, inputs, by_class=None):
    """Writes what a run saves about two pictures, with the mixtures of two layers if there are any."""
    arrays = {
        "inputs": inputs,
        "labels": np.array([0, 1]),
        "predictions": np.array([0, 0]),
        "probabilities": np.ones(2, np.float32),
        "classes": np.array(["zero", "one"]),
        "layer": np.array("stage2_block1"),
        "activation": np.ones((2, 4, 4), np.float32),
    }
    for layer in ("stage1", "stage2") if by_class is not None else ():
        statistics = {
            "mean": by_class.mean(axis=0), "on": np.ones(4), "dead": np.zeros(4, bool), "by_class": by_class,
            "spread": 0.1, "entropy": 0.5, "hard": False, "count": 2,
        }  # fmt: skip
        arrays |= {f"mixtures/{layer}/{name}": value for name, value in statistics.items()}
    np.savez(folder / "maps.npz", **arrays)


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def linked_figures(text):
    return re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)


def test_runs_become_tables_and_figures(tmp_path, write_run, rng):
    pictures = rng.normal(size=(2, 8, 8, 1)).astype(np.float32)
    for seed in range(3):
        # The seed decides which pictures are tested: they are the same for one seed only.
        write_maps(write_run("base", 0.90, seed), pictures + seed)
        write_maps(write_run("odconv", 0.95, seed), pictures + seed + (seed == 0))
    failed = tmp_path / "runs" / "hard-0"
    failed.mkdir()
    (failed / "config.json").write_text('{"name": "hard", "dataset": "digits"}')
    (failed / "error.txt").write_text("The network cannot be built: | is no number.")

    path = write_report([tmp_path / "runs"])
    assert path == tmp_path / "runs" / "report.md"
    text = path.read_text()
    assert "| base | 3 | 90.00 ± 0.00 | - | - |" in text
    assert "| odconv | 3 | 95.00 ± 0.00 | +5.00 | 0.250 (3) |" in text
    assert "With fewer than 6 pairs p cannot be below 0.05" in text
    assert (
        r"| hard-0 | hard | digits | failed: The network cannot be built: \| is no number. |"
        in text
    )
    assert "jax 1.2.3" in text and "Devices: cpu." in text
    assert str(tmp_path) not in text
    figures = linked_figures(text)
    names = ("accuracy_against_macs", "per_run", "curves", "attention_maps")
    assert figures == [f"figures/{name}.png" for name in names]
    # The two configs have seen other pictures with seed 0, so they cannot stand side by side.
    assert "odconv: maps.npz of seed 0 shows other examples" in text
    assert all((path.parent / figure).exists() for figure in figures)

    configs, every = read_csv(path.with_name("report.csv")), read_csv(path.with_name("runs.csv"))
    assert [row["config"] for row in configs] == ["base", "odconv"]
    assert float(configs[1]["accuracy_mean"]) == pytest.approx(0.95)
    assert len(every) == 6 and every[0]["folder"] == "base-digits-0"
    latex = path.with_name("report.tex").read_text()
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 3
    assert r"odconv & 3 & 95.00 $\pm$ 0.00" in latex


def test_names_of_runs_are_no_markup(tmp_path, write_run):
    write_run("=cmd|_a_", dataset="<b>$x$\x1b")
    path = write_report([tmp_path])
    text = path.read_text()
    assert r"## &lt;b>\$x\$\\x1b" in text and r"| =cmd\|\_a\_ |" in text
    assert not re.search("<[a-z/]|\x1b", text)
    assert "<b>$x$\x1b,'=cmd|_a_," in path.with_name("report.csv").read_text()
    assert (path.parent / linked_figures(text)[0]).exists()


def test_maps_of_the_same_pictures(tmp_path, write_run, rng):
    pictures = rng.normal(size=(2, 8, 8, 1)).astype(np.float32)
    for name in ("base", "odconv"):
        write_maps(write_run(name), pictures)
    # Only one of them has this seed: the seed that both have is shown.
    write_maps(write_run("base", seed=-1), pictures + 1)
    (write_run("hard") / "maps.npz").write_text("damaged")
    text = write_report([tmp_path]).read_text()
    assert "figures/attention_maps.png" in linked_figures(text)
    assert text.count("hard: runs/hard-digits-0/maps.npz cannot be read: it is damaged.") == 1


def test_another_baseline(tmp_path, write_run):
    for seed in range(2):
        write_run("base", 0.9, seed)
        write_run("odconv", 0.95, seed)
        write_run("hard", 0.93, seed)
    text = write_report([tmp_path], baseline="hard").read_text()
    assert "difference to hard" in text
    assert "| odconv | 2 | 95.00 ± 0.00 | +2.00 | 0.500 (2) |" in text
    with pytest.raises(
        UserError, match="--baseline=dcd: no run is of that config; there are base, hard"
    ):
        write_report([tmp_path], baseline="dcd")


def test_attention_by_depth(tmp_path, write_run, rng):
    pictures, by_class = rng.normal(size=(2, 8, 8, 1)), rng.random((5, 4))
    write_maps(write_run("base"), pictures)
    for seed in range(2):
        write_maps(write_run("dyconv", seed=seed), pictures, by_class)
    path = write_report([tmp_path])
    text = path.read_text()
    assert "figures/attention_by_depth.png" in linked_figures(text)
    assert "digits: attention over kernels" in text
    assert re.search(r"\| dyconv \| 2 \| 0.500 \| 0.\d+ \| 0.\d+ \| 0.0 \| 1.000 \|", text)
    rows = read_csv(path.with_name("attention.csv"))
    assert [(row["config"], row["layer"]) for row in rows] == [
        ("dyconv", f"stage{n}") for n in (1, 2)
    ]
    # Made again without the runs, no table of an earlier report stays.
    write_report([tmp_path / "runs" / "base-digits-0"], tmp_path)
    assert not path.with_name("attention.csv").exists()


def test_runs_with_other_classes_have_no_agreement(tmp_path, write_run, rng):
    pictures = rng.normal(size=(2, 8, 8, 1))
    for seed, classes in enumerate((10, 5)):
        write_maps(write_run("dyconv", seed=seed), pictures, rng.random((classes, 4)))
    path = write_report([tmp_path])
    assert {row["agreement"] for row in read_csv(path.with_name("attention.csv"))} == {""}


def test_folds_and_the_own_split_are_apart(tmp_path, write_run):
    for n in range(3):
        for name, on_split, on_folds in (("base", 0.5, 0.8), ("odconv", 0.5, 0.84)):
            write_run(name, on_split, seed=n, dataset="Adiac")
            write_run(name, on_folds, fold=n, dataset="Adiac")
    path = write_report([tmp_path])
    text = path.read_text()
    assert text.index("## Adiac\n") < text.index("## Adiac in folds\n")
    assert "| odconv | 3 | 50.00 ± 0.00 | 0.00 | 1.000 (3) |" in text
    assert "| odconv | 3 | 84.00 ± 0.00 | +4.00 | 0.250 (3) |" in text
    assert "**Adiac in folds: costs**" in text
    rows = read_csv(path.with_name("report.csv"))
    assert [(row["config"], row["over"]) for row in rows] == [
        (name, over) for over in ("seeds", "folds") for name in ("base", "odconv")
    ]
    figures = linked_figures(text)
    assert len(figures) == len(set(figures)) and "figures/Adiac_in_folds/per_run.png" in figures


def test_each_data_set_has_a_section(tmp_path, write_run, rng):
    for fold in range(2):
        write_run("net1", fold=fold, dataset="Adiac", baseline="net1")
    iou = {"background": 0.5, "cat": None}
    images = [rng.integers(0, 256, (20, 30, 3), np.uint8)]
    masks = [rng.integers(0, 2, (20, 30))]
    folder = write_run("base", dataset="voc2012", metric="miou", test={"miou": 0.4, "iou": iou})
    artifacts.save_samples(folder / "samples.npz", images, masks, masks, ["background", "cat"])
    out = tmp_path / "somewhere" / "else"
    path = write_report([tmp_path / "runs"], out)
    text = path.read_text()
    assert path.parent == out and text.index("## Adiac in folds") < text.index("## voc2012")
    assert "| fold 1 | 90.00 (0.500) |" in text and "| cat | - |" in text
    assert "Wang, Yan, Oates" in text
    figures = linked_figures(text)
    assert "figures/Adiac_in_folds/per_run.png" in figures
    assert "figures/voc2012/segmentation_samples.png" in figures
    assert all((out / figure).exists() for figure in figures)


def test_old_and_damaged_runs(tmp_path, write_run):
    known = {"config", "dataset", "test"}
    folder = write_run("odconv")
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({k: summary[k] for k in known}))
    (folder / "config.json").write_text("{torn")
    (folder / "metrics.jsonl").write_text('{"torn\n{"step": 1}\n')
    text = write_report([tmp_path]).read_text()
    assert "| odconv | 1 | 90.00 |" in text and "| odconv | - | - |" in text
    assert "left out of the curves: runs/odconv-digits-0/metrics.jsonl, line 1" in text
    assert "Versions: unknown." in text

    (folder / "summary.json").write_text("{torn")
    text = write_report([tmp_path]).read_text()
    assert "0 finished runs" in text and "summary.json cannot be read" in text


def test_report_stays_out_of_run_folders(tmp_path, write_run):
    folder = write_run()
    (folder / "figures").mkdir()
    (folder / "figures" / "curves.png").write_bytes(b"the run's own")
    assert write_report([folder]) == folder / "report" / "report.md"
    assert (folder / "figures" / "curves.png").read_bytes() == b"the run's own"
    with pytest.raises(UserError, match="is the folder of a run"):
        write_report([folder], folder)
    with pytest.raises(UserError, match="There are no runs in"):
        write_report([folder / "figures"])


def test_files_that_no_report_has_written_stay(tmp_path, write_run):
    run, out = write_run("base", 0.9, 0), tmp_path / "out"
    out.mkdir()
    for name in ("report.md", "runs.csv"):
        (out / name).write_text("my notes")
        with pytest.raises(UserError, match=f"{name} exists"):
            write_report([run], out)
        assert (out / name).read_text() == "my notes"
        (out / name).unlink()
    write_report([run], out)
    write_report([run], out)
