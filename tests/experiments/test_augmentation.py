import json

import pytest

from experiments import augmentation
from experiments.configs import birdsong_classifier, dr_acgan

SMALL = {
    "epochs": 1,
    "data.limit": 24,
    "batch_size": 8,
    "audio.height": 16,
    "audio.width": 16,
    "audio.bands": 16,
}


@pytest.fixture
def configs(tmp_path):
    classifier, gan = (module.get_config("smoke") for module in (birdsong_classifier, dr_acgan))
    for config in (classifier, gan):
        config.update_from_flattened_dict({**SMALL, "data.dir": str(tmp_path / "data")})
    gan.update_from_flattened_dict({"gan.widths": (8, 4, 4, 4), "steps": 0, "evaluate_every": 1})
    return classifier, gan


def test_all_ways_have_the_splits_the_pictures_and_the_steps_of_one_seed(
    configs, tmp_path, monkeypatch
):
    made, tried = [], {}

    def attempt(planned, programs):
        tried[planned.workdir.relative_to(tmp_path).as_posix()] = planned.config
        planned.workdir.mkdir(parents=True, exist_ok=True)
        (planned.workdir / "summary.json").write_text(json.dumps({"steps": 7}))
        return True

    monkeypatch.setattr(augmentation, "train", lambda config, folder: made.append((config, folder)))
    monkeypatch.setattr(augmentation, "generate", lambda *words, **named: None)
    monkeypatch.setattr(augmentation, "attempt", attempt)
    monkeypatch.setattr(augmentation.report, "write_report", lambda *words: None)
    augmentation.compare_ways(*configs, tmp_path, seeds=2, per_class=5)

    assert [config.seed for config, _ in made] == [0, 1]
    assert set(tried) == {f"{way}/seed{seed}" for way in augmentation.WAYS for seed in (0, 1)}
    for place, config in tried.items():
        way, seed = place.split("/seed")
        assert config.seed == int(seed) and config.name == way and config.baseline == "none"
        # The split was made before the GAN saw anything, and is the same for all.
        assert config.audio.splits == str(tmp_path / "generator" / f"seed{seed}" / "splits.csv")
        pictures = str(tmp_path / "generated" / f"seed{seed}")
        assert config.data.extra_train == (pictures if way in ("gan", "both") else "")
        assert (config.augment == "spectrogram") == (way in ("ordinary", "both"))
        assert bool(config.mixing.mixup) == (way in ("ordinary", "both"))
        assert config.steps == (0 if way == "none" else 7)
        assert config.audio.picture == "wavelet" and config.audio.colour == "grey"


@pytest.mark.slow
def test_the_comparison_from_songs_to_the_report(configs, tmp_path, standard_promotion):
    augmentation.compare_ways(*configs, tmp_path / "all", seeds=1, per_class=2)
    text = (tmp_path / "all" / "report.md").read_text()
    assert all(f"`{way}`" in text for way in augmentation.WAYS) and "failed" not in text
    summaries = [
        json.loads((tmp_path / "all" / way / "seed0" / "summary.json").read_text())
        for way in augmentation.WAYS
    ]
    assert len({summary["steps"] for summary in summaries}) == 1
    assert [summary["examples"]["train"] for summary in summaries] == [24, 24, 32, 32]
    assert len({summary["examples"]["test"] for summary in summaries}) == 1
