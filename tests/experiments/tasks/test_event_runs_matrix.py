"""A detector of events from training to tables, on made-up songs."""

import json

import numpy as np
import pytest
from finished_runs import read_table
from small_runs import change

from experiments.audio import songs
from experiments.configs import fdy_crnn
from experiments.core.errors import UserError
from experiments.inference.embed import embed
from experiments.inference.predict import predict
from experiments.load import load
from experiments.train.loop import train

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("standard_promotion")]

AUDIO = {
    "sample_rate": 16_000, "seconds": 2.0, "hop": 1.0, "n_fft": 512, "step": 320, "bands": 16,
}  # fmt: skip
SETTINGS = {
    **{f"audio.{name}": value for name, value in AUDIO.items()},
    "events.features": (8, 8), "events.recurrent": 8, "events.time_pools": 1, "events.dropout": 0.0,
    "events.median": 0.2, "batch_size": 8, "epochs": 6, "log_every": 1, "evaluate_every": 3,
    "augment": "none", "optimizer.learning_rate": 0.02, "optimizer.schedule": "constant",
    "temperature.epochs": 1, "data.variant": "",
}  # fmt: skip


def test_a_run_hears_songs_from_begin_to_end(tmp_path, capsys):
    pytest.importorskip("librosa")
    field = songs.write_mixed_songs(
        tmp_path / "field", classes=2, recordings=8, seconds=4.0, rate=16_000
    )
    places = {"data.source": str(field), "data.dir": str(tmp_path / "data")}
    config = change(fdy_crnn.get_config("audio"), SETTINGS | places)
    run = tmp_path / "run"
    summary = train(config, run)
    assert {"event_f1", "psds1", "psds2"} <= {*summary["test"]} and summary["metric"] == "event_f1"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert losses[-1] < 0.9 * losses[0] and np.isfinite(summary["test"]["loss"])
    assert [row["label"] for row in read_table(run / "events.csv")] == ["faller", "riser"]

    model, heard = load(run), tmp_path / "heard"
    sound = sorted(field.glob("*.wav"))[0]
    soundfile = pytest.importorskip("soundfile")
    frames, scores = model.sounds(*soundfile.read(sound, dtype="float32"))
    threshold = round(float(np.quantile(scores, 0.7)), 4)
    predict(model, [str(sound)], heard, threshold=threshold, format="csv,raven,audacity")
    rows = read_table(heard / "predictions.csv")
    assert frames.shape == (100, 2) and scores.shape == (100, 2)
    above = sum(float(row["end_s"]) - float(row["start_s"]) for row in rows)
    assert above == pytest.approx(0.04 * (scores >= threshold).sum(), abs=0.05) and rows
    assert len(rows) < 0.5 * (scores >= threshold).sum()  # events, not frames
    table = read_table(heard / f"{sound.stem}.dyn.selections.txt", delimiter="\t")
    intervals = [(float(row["Begin Time (s)"]), float(row["End Time (s)"])) for row in table]
    expected = [(float(row["start_s"]), float(row["end_s"])) for row in rows]
    np.testing.assert_allclose(intervals, expected, atol=1e-3)
    embed(model, [str(sound)], tmp_path / "codes")
    codes = np.load(tmp_path / "codes" / "embeddings.npz")
    assert codes["codes"].shape == (3, 16) and codes["start_s"].tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="merge"):
        predict(model, [str(sound)], tmp_path / "more", merge=3)
