"""The comparison of augmentations up to where it would train."""

import json

import pytest

from experiments.core.errors import UserError
from experiments.train import augmentation
from experiments.train.augmentation import AUGMENTATIONS, reject_fixed_settings, train_augmentations
from experiments.train.grid import load_config


@pytest.fixture
def planned(monkeypatch):
    """The runs that would have been trained; `failing` holds the names of those that fail."""
    seen = {"gan": [], "runs": [], "failing": set()}

    def attempt_run(run, programs):
        assert programs == {}
        seen["runs"].append(run)
        run.workdir.mkdir(parents=True, exist_ok=True)
        if run.config.name in seen["failing"]:
            (run.workdir / "error.txt").write_text("out of luck")
            return False
        steps = run.config.steps or 120
        (run.workdir / "summary.json").write_text(json.dumps({"steps": steps}))
        return True

    monkeypatch.setattr(
        augmentation, "train", lambda config, run: seen["gan"].append((config, run))
    )
    monkeypatch.setattr(augmentation, "attempt_run", attempt_run)
    return seen


def make_configs(**changes):
    gan = load_config("dr_acgan", "songs", overrides={"audio.height": 32, **changes})
    return load_config("birdsong_classifier", "songs"), gan


def test_all_runs_share_splits_spectrograms_and_steps(planned, tmp_path):
    classifier, gan = make_configs(**{"data.limit": 40})
    generated = []
    folders = train_augmentations(
        classifier, gan, tmp_path, 2, lambda *arguments: generated.append(arguments)
    )
    assert folders == [tmp_path / name for name in AUGMENTATIONS]
    assert [config.seed for config, _ in planned["gan"]] == [0, 1]
    for seed in range(2):
        run = tmp_path / "generator" / f"seed{seed}"
        pictures = tmp_path / "generated" / f"seed{seed}"
        assert planned["gan"][seed][1] == run
        assert generated[seed] == (run, pictures, seed)
        runs = planned["runs"][4 * seed : 4 * seed + 4]
        assert [one.workdir for one in runs] == [folder / f"seed{seed}" for folder in folders]
        for config in (one.config for one in runs):
            assert config.seed == seed and config.audio.splits == str(run / "splits.csv")
            shared = {**gan.audio.to_dict(), "colour": "grey", "splits": config.audio.splits}
            expected = {**classifier.audio.to_dict(), **shared}
            assert config.audio.to_dict() == expected
            extra = str(pictures) if config.name in ("gan", "both") else ""
            assert config.data.to_dict() == {**gan.data.to_dict(), "extra_train": extra}
            augmented = config.name in ("ordinary", "both")
            assert (config.augment == "spectrogram") == (config.mixing.mixup > 0) == augmented
            assert config.steps == (0 if config.name == "none" else 120)
            assert config.baseline == "none"


def test_failed_runs(planned, tmp_path):
    planned["failing"].add("none")
    with pytest.raises(UserError, match="All runs failed: out of luck"):
        train_augmentations(*make_configs(), tmp_path, 2, lambda *_: None)
    # Without the first run the number of steps of the others is unknown.
    assert [run.config.name for run in planned["runs"]] == ["none", "none"]
    planned["failing"] = {"gan"}
    train_augmentations(*make_configs(), tmp_path, 1, lambda *_: None)
    assert [run.config.name for run in planned["runs"][2:]] == list(AUGMENTATIONS)


def test_configs_of_other_tasks_are_refused_before_anything_is_trained(planned, tmp_path):
    classifier, gan = make_configs()
    with pytest.raises(UserError, match="acgan, and classification is needed"):
        train_augmentations(gan, gan, tmp_path, 1, lambda *_: None)
    with pytest.raises(UserError, match="classification, and acgan is needed"):
        train_augmentations(classifier, classifier, tmp_path, 1, lambda *_: None)
    assert not planned["gan"] and not planned["runs"]


@pytest.mark.parametrize("path", ["audio.height", "data.limit", "augment", "optimizer.schedule"])
def test_settings_that_the_comparison_decides_are_refused(path):
    with pytest.raises(UserError, match=path):
        reject_fixed_settings([path])
    reject_fixed_settings(["epochs", "audio.colour", "mixing.label_smoothing", "steps"])
