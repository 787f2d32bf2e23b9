import json
from types import SimpleNamespace

from experiments.reports import recipes


def change_settings(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def test_recipe_and_changes(compare, write_run):
    comparison = compare(*(write_run(name) for name in ("base", "odconv")))
    # Runs of before there was a choice had a batch norm.
    changes = "conv.attention_norm=batch, conv.name=odconv"
    assert recipes.make_changes_table(comparison).rows == [["odconv", "base", changes]]
    assert recipes.describe_recipe(comparison.results[0]) == "batch_size=32, conv.name=base"


def test_runs_with_other_settings_are_inconsistent(compare, write_run):
    comparison = compare(write_run("odconv"), write_run("odconv", seed=1))
    assert recipes.list_inconsistent(comparison.results[0]) == []
    comparison = compare(
        write_run("odconv"), change_settings(write_run("odconv", seed=1), batch_size=8)
    )
    assert recipes.list_inconsistent(comparison.results[0]) == ["batch_size"]


def test_files_of_each_seed_are_consistent():
    def results(*files):
        runs = [
            SimpleNamespace(settings={"audio": {"splits": splits}, "data": {"extra_train": extra}})
            for splits, extra in files
        ]
        return SimpleNamespace(runs=runs)

    same = results(("gan/seed0/s.csv", "gen/seed0"), ("gan/seed1/s.csv", "gen/seed1"))
    assert recipes.list_inconsistent(same) == []
    other = results(("a.csv", "gen/seed0"), ("b.csv", ""))
    assert recipes.list_inconsistent(other) == ["data.extra_train"]


def test_unknown_settings(compare, write_run):
    folder = write_run("odconv")
    (folder / "config.json").write_text("{")
    comparison = compare(folder)
    assert recipes.describe_recipe(comparison.results[0]) == ""
    assert recipes.make_changes_table(comparison) is None
