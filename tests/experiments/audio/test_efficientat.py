"""EfficientAT's spectrograms against the numbers that its own code, in torch, gives."""

import numpy as np
import pytest

from experiments.audio import efficientat, spectrograms
from experiments.configs import common, dymn
from experiments.core.errors import UserError


def make_sound(samples=32_000):
    n = np.arange(samples)
    return (0.5 * np.sin(0.23 * n + 0.05) + 0.3 * np.sin(0.031 * n + 0.1)).astype(np.float32)


def test_filters_are_kaldi_s():
    filters = efficientat._make_filters(32_000, 1024, 128, 0.0, 15_000.0).toarray()
    assert filters.sum(dtype=np.float64) == pytest.approx(473.490551, abs=1e-4)
    rows = [0.188593, 0.811407, 2.671341, 11.832677]
    np.testing.assert_allclose(filters.sum(axis=1)[[0, 1, 64, 127]], rows, atol=1e-5)
    assert np.count_nonzero(filters) == 947 and filters.shape == (128, 513)
    centres = efficientat.list_centres(128, 0.0, 15_000.0)
    peaks = filters.argmax(axis=1) * 31.25
    np.testing.assert_allclose(centres[40:], peaks[40:], atol=16)


def test_features_are_those_of_the_authors():
    features = efficientat.compute_features(make_sound()).astype(np.float64)
    assert features.shape == (128, 100)
    assert features.sum() == pytest.approx(-12618.2681128951, abs=0.02)
    assert np.abs(features).sum() == pytest.approx(15666.9917790540, abs=0.02)
    first = [0.29358048, -0.88846681, -1.19616569, -1.0534694]
    np.testing.assert_allclose(features[0, :4], first, atol=1e-5)
    assert features[-1, -1] == pytest.approx(-1.20463042, abs=1e-5)


def test_levels_are_features_on_the_scale_of_the_config():
    config = dymn.get_config("audio")
    config.audio.seconds = 1.0
    levels = spectrograms.compute_spectrogram(make_sound(), config.audio)
    assert levels.shape == spectrograms.compute_shape(config.audio) == (128, 100)
    (mean,), (std,) = config.normalise.mean, config.normalise.std
    assert (mean, std) == pytest.approx(efficientat.find_normalisation(config.audio.decibels))
    seen = (levels / 255 - mean) / std
    step = 1 / 255 / std
    features = efficientat.compute_features(make_sound())
    np.testing.assert_allclose(seen, features, atol=step / 2 + 1e-5)
    # The lowest frequency comes first, and loudness counts.
    rows = spectrograms.compute_frequencies(config.audio)
    assert (np.diff(rows) > 0).all() and len(rows) == 128
    quiet = spectrograms.compute_spectrogram(0.1 * make_sound(), config.audio)
    loud = features > 0
    np.testing.assert_allclose((levels - quiet.astype(float))[loud], 20 * 255 / 110, atol=1.5)
    assert not spectrograms.compute_spectrogram(np.zeros(32_000, np.float32), config.audio).any()
    # The loudest sound there is, a square wave, is within the scale.
    square = np.sign(np.sin(2 * np.pi * 3000 / 32_000 * np.arange(32_000))).astype(np.float32)
    assert spectrograms.compute_spectrogram(square, config.audio).max() < 255


def test_settings_that_do_not_fit_are_named():
    for changes, says in (
        ({"picture": "linear"}, "draws mel"),
        ({"seconds": 0.01}, "n_fft"),
        ({"frontend": "htk"}, "choose one of dyn, efficientat"),
    ):
        audio = common.get_config("audio").audio
        audio.update({"frontend": "efficientat", **changes})
        with pytest.raises(UserError, match=says):
            spectrograms.check_settings(audio)
