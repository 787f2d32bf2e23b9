"""The comparison of augmentations: what each run is told, and one from songs to the report."""

import json
from types import SimpleNamespace

import pytest

from experiments import augmentation
from experiments.augmentation import WAYS, compare_ways, refuse_decided
from experiments.core.errors import UserError
from experiments.reports.recipes import list_inconsistent as unlike
from experiments.train.grid import load_config


@pytest.fixture
def told(monkeypatch):
    """Every run that would have been trained, and which of them fail."""
    seen = {"gan": [], "pictures": [], "runs": [], "failing": set(), "programs": []}

    def attempt(run, programs):
        seen["runs"].append(run)
        seen["programs"].append(programs)
        run.workdir.mkdir(parents=True, exist_ok=True)
        if run.config.name in seen["failing"]:
            (run.workdir / "error.txt").write_text("out of luck")
            return False
        steps = run.config.steps or 120
        (run.workdir / "summary.json").write_text(json.dumps({"steps": steps}))
        return True

    def generate(run, out, **fields):
        seen["pictures"].append((run, out, fields))

    monkeypatch.setattr(
        augmentation, "train", lambda config, run: seen["gan"].append((config, run))
    )
    monkeypatch.setattr(augmentation, "generate", generate)
    monkeypatch.setattr(augmentation, "attempt", attempt)
    monkeypatch.setattr(augmentation.report, "write_report", lambda *_: None)
    return seen


def configs(**of_gan):
    gan = load_config("dr_acgan", "songs", overrides={"audio.height": 32, **of_gan})
    return load_config("birdsong_classifier", "songs"), gan


def test_all_ways_share_the_split_of_the_gan_its_spectrograms_and_the_steps(told, tmp_path):
    classifier, gan = configs(**{"data.limit": 40})
    compare_ways(classifier, gan, tmp_path, 2, 7)
    assert [config.seed for config, _ in told["gan"]] == [0, 1]
    for seed in range(2):
        run = tmp_path / "generator" / f"seed{seed}"
        pictures = tmp_path / "generated" / f"seed{seed}"
        assert told["gan"][seed][1] == run
        expected = {"per_class": 7, "seed": seed, "again": True}
        assert told["pictures"][seed] == (run, pictures, expected)
        mine = told["runs"][4 * seed : 4 * seed + 4]
        assert [one.workdir for one in mine] == [tmp_path / way / f"seed{seed}" for way in WAYS]
        for one in mine:
            config = one.config
            assert config.seed == seed and config.audio.splits == str(run / "splits.csv")
            theirs = {**gan.audio.to_dict(), "colour": "grey", "splits": config.audio.splits}
            assert config.audio.to_dict() == theirs
            more = config.name in ("gan", "both")
            assert config.data.to_dict() == {
                **gan.data.to_dict(),
                "extra_train": str(pictures) if more else "",
            }
            distorted = config.name in ("ordinary", "both")
            assert (config.augment == "spectrogram") == (config.mixing.mixup > 0) == distorted
            assert config.steps == (0 if config.name == "none" else 120)
            assert config.baseline == "none"
    assert all(programs == {} for programs in told["programs"])


def test_without_the_run_that_says_how_many_steps_the_others_wait(told, tmp_path, capsys):
    told["failing"].add("none")
    with pytest.raises(UserError, match="All runs failed: out of luck"):
        compare_ways(*configs(), tmp_path, 2, 1)
    assert [run.config.name for run in told["runs"]] == ["none", "none"]
    assert "wait for it" in capsys.readouterr().out
    told["failing"] = {"gan"}
    compare_ways(*configs(), tmp_path, 1, 1)
    assert [run.config.name for run in told["runs"][2:]] == list(WAYS)


def test_runs_whose_seeds_have_files_of_their_own_are_alike():
    def row(*changes):
        runs = [
            SimpleNamespace(settings={"audio": {"splits": splits}, "data": {"extra_train": more}})
            for splits, more in changes
        ]
        return SimpleNamespace(runs=runs)

    assert unlike(row(("gan/seed0/s.csv", "gen/seed0"), ("gan/seed1/s.csv", "gen/seed1"))) == []
    assert unlike(row(("a.csv", "gen/seed0"), ("b.csv", ""))) == ["data.extra_train"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("audio.height", "the GAN's is taken; give it as --gan_override"),
        ("data.limit", "the GAN's is taken"),
        ("augment", "the ways differ in it"),
        ("optimizer.schedule", "all ways learn equally long"),
        ("plateau.patience", "--config.plateau.patience would do nothing"),
    ],
)
def test_settings_that_the_comparison_would_ignore_are_refused(path, says):
    with pytest.raises(UserError, match=says):
        refuse_decided(*configs(), [path])
    refuse_decided(*configs(), ["epochs", "audio.colour", "mixing.label_smoothing", "steps"])


@pytest.mark.long
def test_the_comparison_from_songs_to_the_report(tmp_path, standard_promotion):
    small = {
        "epochs": 1,
        "data.limit": 24,
        "data.dir": str(tmp_path / "data"),
        "batch_size": 8,
        "audio.height": 16,
        "audio.width": 16,
        "audio.bands": 16,
    }
    gan = load_config("dr_acgan", "smoke", overrides={**small, "evaluate_every": 1, "steps": 0})
    gan.gan.widths = (8, 4, 4, 4)
    compare_ways(load_config("birdsong_classifier", "smoke", overrides=small), gan, tmp_path, 1, 2)
    text = (tmp_path / "report.md").read_text()
    assert all(f"| {way} |" in text for way in WAYS) and "failed" not in text
    summaries = [
        json.loads((tmp_path / way / "seed0" / "summary.json").read_text()) for way in WAYS
    ]
    assert len({summary["steps"] for summary in summaries}) == 1
    assert [summary["examples"]["train"] for summary in summaries] == [24, 24, 32, 32]
    assert len({summary["examples"]["test"] for summary in summaries}) == 1
