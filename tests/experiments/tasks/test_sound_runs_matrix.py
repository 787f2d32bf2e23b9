"""A classifier of recordings from training to marks: what the run leaves, and what is made of it."""

import numpy as np
import pytest
from finished_runs import read_table
from small_runs import change

from experiments.audio import noises, songs
from experiments.configs import birdsong_classifier, species_multilabel
from experiments.inference.predict import predict
from experiments.inference.segments import Options, cut_segments
from experiments.load import load
from experiments.tasks.classification import Classification
from experiments.train.loop import train

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("standard_promotion")]

AUDIO = {
    "sample_rate": 16_000, "seconds": 0.5, "hop": 0.5, "n_fft": 256, "win": 0, "step": 200, "bands": 16,
    "height": 16, "width": 16, "colour": "grey", "focal": 2.0, "upsample": 1.0, "exhaustive": True,
    "overlay": 0.3,
}  # fmt: skip


def test_from_training_to_clips(tmp_path):
    field = songs.write_mixed_songs(
        tmp_path / "field", classes=2, recordings=8, seconds=3.0, rate=16_000
    )
    settings = {f"audio.{name}": value for name, value in AUDIO.items()}
    settings |= {"data.source": str(field), "data.dir": str(tmp_path / "data"), "batch_size": 8}
    settings |= {
        "model.depth": 6,
        "model.width": 4,
        "model.hidden": 0,
        "epochs": 2,
        "data.variant": "",
    }
    run = tmp_path / "run"
    summary = train(change(species_multilabel.get_config("audio"), settings), run)
    assert 0 <= summary["test"]["auroc"] <= 1 and 0 <= summary["best"]["auroc"] <= 1
    assert (run / "figures" / "calibration.png").exists()
    classes = summary["classes"]
    for name in ("thresholds.csv", "ranking.csv"):
        assert [row["label"] for row in read_table(run / name)] == classes

    model, heard = load(run), tmp_path / "heard"
    predict(model, [str(field)], heard, threshold="precision")
    limits = {row["label"]: float(row["threshold"]) for row in read_table(run / "thresholds.csv")}
    rows = read_table(heard / "predictions.csv")
    assert all(float(row["score"]) >= limits[row["label"]] - 1e-6 for row in rows)
    predict(model, [str(field)], heard, threshold=0.0, overwrite=True, format="csv,raven")
    clips, skipped = cut_segments(heard, tmp_path / "out", options=Options(per_class=3))
    assert clips == 6 and not skipped


def test_a_network_that_has_heard_noise_says_little_about_it(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(Classification, "draw_figures", lambda *_: None)  # half of the time
    field = songs.write_songs(tmp_path, classes=2, recordings=8, seconds=1.0, rate=16_000)
    settings = {
        f"audio.{name}": AUDIO[name] for name in AUDIO if name not in ("exhaustive", "focal")
    }
    settings |= {"data.source": str(field), "data.dir": str(tmp_path / "data"), "batch_size": 8}
    settings |= {"model.depth": 6, "model.width": 8, "model.dropout": 0.0, "epochs": 25}
    settings |= {
        "early_stopping.patience": 0,
        "evaluate_every": 25,
        "optimizer.schedule": "constant",
    }
    settings |= {"audio.negatives": 0.3, "mixing.mixup": 0.0, "audio.height": 32, "audio.width": 32}
    config = change(birdsong_classifier.get_config("audio"), settings)
    summary = train(config, tmp_path / "run")
    assert summary["test"]["accuracy"] > 0.8
    run = load(tmp_path / "run")
    seconds = 20 * 16_000
    for sound in (
        np.zeros(seconds),
        noises.make_coloured_noise(seconds, 0.0, rng),
        noises.make_coloured_noise(seconds, 1.0, rng),
        noises.make_wind(seconds, 16_000, rng),
    ):
        _, scores = run.sounds(sound.astype(np.float32), 16_000)
        assert scores.max(axis=1).mean() < 0.75  # 0.5 is an even guess
