"""The comparison of augmentations, from synthetic songs to the report."""

import json

import pytest

from experiments.inference.generate import generate
from experiments.load import load
from experiments.reports.report import write_report
from experiments.train.augmentation import AUGMENTATIONS, train_augmentations
from experiments.train.grid import load_config

pytestmark = pytest.mark.long


def test_augmentation(tmp_path, standard_promotion):
    small = {
        "epochs": 1, "data.limit": 24, "data.dir": str(tmp_path / "data"), "batch_size": 8,
        "audio.height": 16, "audio.width": 16, "audio.bands": 16,
    }  # fmt: skip
    gan = load_config("dr_acgan", "smoke", overrides={**small, "evaluate_every": 1, "steps": 0})
    gan.gan.widths = (8, 4, 4, 4)
    classifier = load_config("birdsong_classifier", "smoke", overrides=small)

    def write_pictures(run, out, seed):
        generate(load(run, generator=True), out, per_class=2, seed=seed, reuse=True)

    folders = train_augmentations(classifier, gan, tmp_path, 1, write_pictures)
    text = write_report(folders, tmp_path).read_text()
    assert all(f"| {name} |" in text for name in AUGMENTATIONS) and "failed" not in text
    summaries = [json.loads((folder / "seed0/summary.json").read_text()) for folder in folders]
    assert len({summary["steps"] for summary in summaries}) == 1
    assert [summary["examples"]["train"] for summary in summaries] == [24, 24, 32, 32]
    assert len({summary["examples"]["test"] for summary in summaries}) == 1
