"""A linear classifier on the features of a network that stays as it is."""

import dataclasses

import jax
import numpy as np
import pytest
from finished_runs import read_table
from scipy.optimize import minimize
from scipy.special import log_softmax
from small_runs import change

from experiments import data
from experiments.audio import songs
from experiments.configs import birdsong_classifier
from experiments.core.errors import UserError
from experiments.data.fingerprint import compute_fingerprint
from experiments.inference import probe
from experiments.inference.predict import predict
from experiments.inference.probe import Examples, fit_linear
from experiments.inference.trained import Trained
from experiments.load import load
from experiments.runs.data_record import DataRecord, write_record
from experiments.train.validate import resolve_config

AUDIO = {
    "sample_rate": 16_000, "seconds": 0.5, "hop": 0.5, "n_fft": 256, "step": 200, "bands": 16,
    "height": 16, "width": 16,
}  # fmt: skip


def test_the_layer_minimises_the_penalised_loss(rng):
    features = rng.normal(2, (1.0, 30.0, 0.1), (60, 3))
    labels = (features @ (1.0, 0.05, 8.0) + rng.normal(size=60)).round().astype(int) % 3
    layer = fit_linear(Examples(features, labels), 3, strength=0.5)
    standard = (features - features.mean(axis=0)) / features.std(axis=0)

    def loss(flat):
        kernel, bias = flat[:9].reshape(3, 3), flat[9:]
        logs = log_softmax(standard @ kernel + bias, axis=1)
        return -logs[np.arange(60), labels].sum() + (kernel**2).sum() / 2 / 0.5

    expected = minimize(loss, np.zeros(12), tol=1e-10).x
    logits = standard @ expected[:9].reshape(3, 3) + expected[9:]
    found = layer(features)
    np.testing.assert_allclose(
        log_softmax(found, axis=1), log_softmax(logits, axis=1), rtol=0, atol=2e-3
    )


def test_unknown_labels_and_absent_classes(rng):
    features = rng.normal(size=(40, 2))
    features[:, 1] = 7.0  # never changes
    labels = np.stack([features[:, 0] > 0, np.ones(40), np.zeros(40)], axis=1).astype(float)
    labels[:10, 0] = np.nan
    layer = fit_linear(Examples(features, labels), 3, strength=1.0)
    known = fit_linear(Examples(features[10:], labels[10:]), 3, strength=1.0)
    scores = 1 / (1 + np.exp(-layer(features)))
    assert ((scores[:, 0] > 0.5) == (features[:, 0] > 0)).mean() > 0.9
    np.testing.assert_allclose(scores[0, 1:], [41 / 42, 1 / 42])
    assert not layer.kernel[1].any() and np.isfinite(known.kernel).all()
    one = fit_linear(Examples(features, (features[:, 0] > 0) + 1), 4, strength=1.0)(features)
    assert set(one.argmax(axis=1)) == {1, 2}


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("birds")
    return songs.write_songs(folder, classes=2, recordings=6, seconds=1.0, rate=16_000)


@pytest.fixture(scope="module")
def backbone():
    """A network with random weights, as if trained on four other classes."""
    config = birdsong_classifier.get_config("audio")
    settings = {"model.depth": 6, "model.width": 4, "model.dropout": 0.0, "batch_size": 8}
    settings |= {f"audio.{name}": value for name, value in AUDIO.items()}
    config = resolve_config(change(config, settings))
    trained = Trained(config, list("abcd"), (16, 16, 1), {})
    shapes = trained.shape_variables()
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype) ** 2, dict(shapes)
    )
    return Trained(config, list("abcd"), (16, 16, 1), variables)


@pytest.mark.parametrize("labels", ["class", "multi"])
def test_a_probe_is_used_like_a_run(labels, backbone, birds, tmp_path):
    out, changes = tmp_path / "probe", {"data.dir": str(tmp_path / "data")}
    if labels == "multi":
        changes["audio.exhaustive"] = "True"
    summary = probe.train_probe(backbone, str(birds), out, labels=labels, changes=changes)
    tried = [
        (float(r["strength"]), float(r["validation_loss"])) for r in read_table(out / "probe.csv")
    ]
    assert min(tried, key=lambda row: row[1])[0] == pytest.approx(summary["strength"])
    assert 0 <= summary["test"]["map"] <= 1 and summary["features"] == 8
    model = load(out)
    assert model.classes == ["faller", "riser"] and (out / "figures" / "mistakes.png").exists()
    for name, leaf in model.variables["params"].items():
        if name != "head":
            jax.tree.map(np.testing.assert_array_equal, leaf, backbone.variables["params"][name])
    predict(model, [str(birds)], tmp_path / "heard", threshold="precision")
    assert (tmp_path / "heard" / "predictions.csv").exists()
    with pytest.raises(UserError, match="--overwrite"):
        probe.train_probe(backbone, str(birds), out)


def test_recordings_that_the_network_has_learned_are_noted(backbone, birds, tmp_path, capsys):
    config = probe.make_probe_config(backbone.config, str(birds), "", {}, seed=0)
    config.data.dir = str(tmp_path / "data")
    learned = data.load(config.data, seed=1, audio=config.audio)
    write_record(tmp_path, DataRecord(compute_fingerprint(learned)), learned)
    trained = dataclasses.replace(backbone, source=tmp_path)
    changes = {"data.dir": str(tmp_path / "data")}
    now = dict(data.load(config.data, seed=0, audio=config.audio).assignment)
    then = dict(learned.assignment)
    both = sum(now[one] == "test" and then[one] == "train" for one in now)
    summary = probe.train_probe(trained, str(birds), tmp_path / "probe", changes=changes)
    said = [note for note in summary["notes"] if "trained on" in note and "of test" in note]
    assert said and f"was trained on {both} of the" in said[0] and both
    assert "scores on test are too good" in " ".join(capsys.readouterr().out.split())
    changes["audio.splits"] = str(tmp_path / "splits.csv")
    summary = probe.train_probe(trained, str(birds), tmp_path / "same", changes=changes)
    assert not any("trained on" in note for note in summary["notes"])


def test_mistakes_are_explained(backbone, birds, tmp_path):
    for changes, words in (
        ({"audio.n_fft": "512"}, "learned from spectrograms"),
        ({"model.width": "8"}, "only settings of data and audio"),
        ({"audio.label_patern": "x"}, "label_pattern"),
    ):
        with pytest.raises(UserError, match=words):
            probe.train_probe(backbone, str(birds), tmp_path / "out", changes=changes)
    with pytest.raises(UserError, match="class or multi"):
        probe.train_probe(backbone, str(birds), tmp_path / "out", labels="several")
