"""Every reader of a run's folder meets thousands of damaged files: a sentence within a second, or a run."""

import gzip
import json
import shutil

import jax
import numpy as np
import pytest
from finished_runs import config_with, write_finished

from experiments.configs.shared.settings import list_paths
from experiments.core.cli import join_lines
from experiments.core.errors import UserError
from experiments.data.extra import read_description
from experiments.figures.curves import draw_training_curves
from experiments.inference import export
from experiments.inference.generate import _count_finished
from experiments.load import load
from experiments.reports import recipes, tables
from experiments.reports.comparison import compare_runs
from experiments.runs.artifacts import load_maps, load_samples, save_samples
from experiments.runs.checkpoints import read_best_step, restore_best_variables
from experiments.runs.find import find_runs
from experiments.runs.folder import check_or_write_config
from experiments.runs.integrity import (
    find_damaged_file,
    set_aside_without_metrics,
    write_checksums,
)
from experiments.runs.log import MetricLog, read_rows
from experiments.runs.schema import find_settings, read_config, read_progress, read_summary
from experiments.train.banner import describe_result
from tests.fuzz import mutate, run_fuzz

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("standard_promotion")]

SEED = 18
ODD = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**19, 0.5, 1e-300, 1e300, float("nan"), float("inf"), "",
    "x", "4", "..", "/etc", "\ud800", "a\0b", "é", "x" * 10_000, [], [1], ["a"], {}, {"name": "x"}, [[[]]],
    [0] * 1000, {"step": 4}, "resnet", "odconv", "audio", "ucr", "segmentation", "acgan",
)  # fmt: skip


def mutate_json(data, rng):
    """Returns a damaged JSON text: of wrong bytes, or valid and with values that are wrong."""
    if rng.random() < 0.3:
        return mutate(data, rng)
    lines = data.decode().splitlines() if data.count(b"}\n{") else [data.decode()]
    place = int(rng.integers(len(lines)))
    value = json.loads(lines[place])
    for _ in range(rng.integers(1, 4)):
        value = replace_part(value, rng)
    lines[place] = json.dumps(value)
    return ("\n".join(lines) + "\n").encode("utf-8", errors="surrogatepass")


def replace_part(value, rng):
    """Returns a value in which one part, at any depth, is an odd one, is gone, or has another name."""
    odd = ODD[rng.integers(len(ODD))]
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return odd
    if isinstance(value, list):
        index = int(rng.integers(len(value)))
        return [*value[:index], replace_part(value[index], rng), *value[index + 1 :]]
    name = list(value)[rng.integers(len(value))]
    changed = {key: item for key, item in value.items() if key != name}
    match rng.integers(8):
        case 0:
            return changed
        case 1:
            return changed | {str(odd): value[name]}
        case 2:
            return value | {str(odd): odd}
        case _:
            return value | {name: replace_part(value[name], rng)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run with everything that is read again."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = config_with(conv={"name": "odconv", "num_kernels": 2})
    with jax.numpy_dtype_promotion("standard"):
        write_finished(folder, config, "abc", (8, 8, 1))
        export.export(load(folder), "safetensors", folder / "model.safetensors")
    metrics = {"loss": 0.5, "accuracy": 0.9, "iou": {"a": 0.5, "b": None}}
    summary = json.loads((folder / "summary.json").read_text()) | {
        "config": "base", "dataset": "digits", "seed": 0, "fold": None, "baseline": "base", "label": "base",
        "metric": "accuracy", "test": metrics, "best": {"step": 4, **metrics}, "steps": 6, "parameters": 1234,
        "macs": 2000, "batch_size": 4, "compile_seconds": 1.5, "step_seconds": 0.02, "seconds": 60.0,
        "examples": {"train": 100, "test": 20}, "devices": ["cpu"], "versions": {"jax": "1"},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    rows = [
        {"step": step, "split": split, **metrics, "learning_rate": 0.1, "temperature": 3.0}
        for step in (2, 4, 6)
        for split in ("train", "validation")
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    progress = {"seconds": 1.0, "best": {"step": 4, **metrics}, "config": config.to_dict()}
    progress["early_stopping"] = {"patience": 3, "best_metric": 0.5, "should_stop": False}
    for step in ("4", "6"):
        (folder / "checkpoints" / step / "progress" / "metadata").write_text(json.dumps(progress))
        write_checksums(folder / "checkpoints" / step)
    picture, mask = np.zeros((9, 7, 3), np.uint8), np.ones((9, 7), np.uint8)
    save_samples(folder / "samples.npz", [picture], [mask], [mask], "ab")
    about = {"run": "runs/x", "counts": {"a": 2, "b": 2}, "per_class": 2, "seed": 0, "asked": 2}
    about |= {"classes": ["a", "b"], "shape": [8, 8, 1], "data": {"name": "digits"}, "audio": {}}
    (folder / "generated.json").write_text(json.dumps(about))
    return folder


def attempt(*readers):
    """Returns a reader that calls all of these, and fails with a UserError if one of them does."""

    def read():
        failures = []
        for reader in readers:
            try:
                reader()
            except UserError as error:
                failures.append(error)
        if failures:
            assert all(0 < len(join_lines(str(error))) < 4000 for error in failures)
            raise failures[0]

    return read


def report(run):
    """Makes all tables of a report of one run."""
    comparisons = compare_runs(find_runs([run])[0])
    for comparison in comparisons:
        for make in (
            tables.make_results_table, tables.make_cost_table, tables.make_iou_table, tables.make_runs_table,
            recipes.make_changes_table,
        ):  # fmt: skip
            if table := make(comparison):
                tables.render_markdown(table)
        recipes.describe_recipe(comparison.results[0])
        recipes.list_inconsistent(comparison.results[0])
    tables.list_run_records(comparisons, run)


def test_settings(run):
    config = load(run).config
    readers = (
        lambda: read_config(run),
        lambda: check_or_write_config(run, config),
        lambda: report(run),
    )
    print(
        run_fuzz(run / "config.json", attempt(*readers), UserError, 5000, SEED, mutate=mutate_json)
    )
    # Compiles nothing, but traces the network.
    print(
        run_fuzz(run / "config.json", lambda: load(run), UserError, 500, SEED + 1, 5, mutate_json)
    )


def test_summary(run):
    def show():
        if summary := read_summary(run, needed=("test", "best")):
            describe_result(summary, run)

    readers = (show, lambda: report(run), lambda: read_best_step(run))
    print(
        run_fuzz(run / "summary.json", attempt(*readers), UserError, 5000, SEED, mutate=mutate_json)
    )
    print(
        run_fuzz(run / "summary.json", lambda: load(run), UserError, 500, SEED + 1, 5, mutate_json)
    )


def test_log(run, tmp_path):
    file = run / "metrics.jsonl"
    readers = (
        lambda: read_rows(file),
        lambda: MetricLog(run, 4).close(),
    )
    print(run_fuzz(file, attempt(*readers), UserError, 5000, SEED, mutate=mutate_json))

    def draw():
        draw_training_curves(read_rows(file), tmp_path / "curves.png")

    print(run_fuzz(file, draw, UserError, 150, SEED + 1, 10, mutate_json))


def test_numbers_of_a_checkpoint(run, tmp_path):
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    folder = tmp_path / "checkpoints" / "6"
    readers = (
        lambda: read_progress(folder),
        lambda: read_best_step(tmp_path),
        lambda: find_settings(tmp_path),
        lambda: read_config(tmp_path),
    )
    file = folder / "progress" / "metadata"
    print(run_fuzz(file, attempt(*readers), UserError, 3000, SEED, mutate=mutate_json))
    file = folder / "checksums.json"
    print(run_fuzz(file, lambda: find_damaged_file(folder), (), 3000, SEED, mutate=mutate_json))
    # Damaged metrics are set aside with their checkpoint.
    good = tmp_path / "good"
    shutil.copytree(tmp_path / "checkpoints" / "4", good)
    file = good / "metrics" / "metrics"

    def set_aside():
        shutil.rmtree(tmp_path / "checkpoints" / "4", ignore_errors=True)
        shutil.copytree(good, tmp_path / "checkpoints" / "4")
        set_aside_without_metrics(tmp_path / "checkpoints", "accuracy")
        shutil.rmtree(tmp_path / "damaged", ignore_errors=True)

    print(run_fuzz(file, set_aside, (), 300, SEED, 2, mutate_json))


def test_arrays_of_a_checkpoint(run):
    folder = run / "checkpoints" / "4"
    files = sorted(path for path in (folder / "state").rglob("*") if path.is_file())
    for file in files:  # each differs from its checksum
        print(
            file.name, run_fuzz(file, lambda: restore_best_variables(run), UserError, 100, SEED, 5)
        )


@pytest.mark.parametrize("name", ["maps.npz", "samples.npz"])
def test_arrays_for_reports(run, name):
    reader = load_maps if name == "maps.npz" else load_samples
    file = run / name
    if not file.exists():
        arrays = {"inputs": np.zeros((2, 8, 8, 1)), "classes": np.array(list("abc"))}
        arrays |= {one: np.zeros(2) for one in ("labels", "predictions", "probabilities")}
        np.savez(file, layer=np.array(""), activation=np.zeros(()), **arrays)
    print(run_fuzz(file, lambda: reader(file), UserError, 3000, SEED))
    file.unlink()


def test_generated_pictures(run):
    folder = run / "generated"
    folder.mkdir()
    (run / "generated.json").rename(folder / "generated.json")
    fields = ("counts", "per_class", "data", "audio", "shape", "run")
    readers = (
        lambda: read_description(folder, *fields),
        lambda: _count_finished(folder, {"seed": 0}, overwrite=False, reuse=True),
    )
    file = folder / "generated.json"
    print(run_fuzz(file, attempt(*readers), UserError, 3000, SEED, mutate=mutate_json))


def test_record_of_the_data(run):
    from experiments.runs.data_record import LIST_FILE, read_known_entries, read_record

    about = {"digest": "a" * 64, "classes": ["a", "b"], "examples": {"train": 2}, "digests": {}}
    (run / "data.json").write_text(json.dumps(about | {"changes": []}))
    rows = [["split", "file", "label", "bytes", "sha256"], ["train", "a.png", "a", "9", "c" * 64]]
    (run / LIST_FILE).write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    readers = (lambda: read_record(run), lambda: read_known_entries(run))
    file = run / "data.json"
    print(run_fuzz(file, attempt(*readers), UserError, 3000, SEED, mutate=mutate_json))
    print(run_fuzz(run / LIST_FILE, attempt(*readers), UserError, 3000, SEED))


def test_exported_parameters(run):
    file = run / "model.safetensors"
    print(run_fuzz(file, lambda: load(file), UserError, 1500, SEED, 5))


def test_the_settings_of_every_experiment_may_be_read_as_those_of_another(run):
    """A kind that its other settings do not fit is a run or a sentence."""
    saved = json.loads((run / "config.json").read_text())
    paths = [path for path, _ in list_paths(saved)]
    assert len(paths) > 50
    for task in ("classification", "segmentation", "tagging", "reconstruction", "acgan"):
        for data in ("digits", "ucr", "audio", "folder", "voc2012"):
            for network in ("resnet", "vgg16", "mobilenet_v2", "net1"):
                changed = saved | {"task": task, "data": {"name": data}}
                changed["model"] = saved["model"] | {"network": network}
                (run / "config.json").write_text(json.dumps(changed))
                attempt_load(run)
    (run / "config.json").write_text(json.dumps(saved))


def attempt_load(run):
    try:
        load(run)
    except UserError as error:
        assert len(join_lines(str(error))) < 4000
