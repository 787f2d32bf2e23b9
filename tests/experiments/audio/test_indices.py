"""Acoustic indices and cepstra: their sizes, and that they hear what they are for."""

import numpy as np
import pytest

pytest.importorskip("maad")
pytest.importorskip("librosa")

from experiments.audio import indices

RATE = 22_050


@pytest.fixture
def tone(rng):
    """A second of 3 kHz that is switched on and off, over faint noise."""
    time = np.arange(RATE) / RATE
    on = (np.floor(8 * time) % 2).astype(np.float32)
    return (on * np.sin(2 * np.pi * 3000 * time) + rng.normal(0, 1e-3, RATE)).astype(np.float32)


def test_spectral_indices(tone):
    found = indices.compute_spectral_indices(tone, RATE)
    assert found.shape == (2048,) and found.dtype == np.float32 and np.isfinite(found).all()
    named = dict(zip(indices.PER_BIN, found.reshape(8, 256), strict=True))
    bin_of_tone = round(3000 / (RATE / 512))
    assert named["ENRf"].argmax() == bin_of_tone
    # Intermittent sounds are complex, and steady ones are not.
    steady = np.sin(2 * np.pi * 3000 * np.arange(RATE) / RATE).astype(np.float32)
    complexity = indices.compute_spectral_indices(steady, RATE).reshape(8, 256)[
        list(indices.PER_BIN).index("ACI")
    ]
    assert named["ACI"][bin_of_tone] > 5 * complexity[bin_of_tone]
    np.testing.assert_allclose(named["SNRf"], named["ENRf"] - named["BGNf"], atol=1e-3)
    assert 0 <= named["Ht"].min() and named["Ht"].max() <= 1


def test_alpha_indices(tone):
    found = indices.compute_alpha_indices(tone, RATE)
    assert len(found) == 60 and {"ACI", "Ht", "Hf", "NDSI", "BI", "ADI"} <= set(found)
    assert all(isinstance(value, float) for value in found.values())
    rows = indices.define_indices(list(found), RATE)
    assert len(rows) == 60 + 8 and all("scikit-maad" in whose for _, whose, _ in rows)


def test_cepstra(tone):
    found = indices.compute_cepstra(tone, RATE)
    assert found.shape == (1287,) == (13 * 99,) and np.isfinite(found).all()
    # The first is loudness: it tells the frames that sound from those that do not.
    loudness = found.reshape(13, 99)[0]
    middles = 0.0125 + 0.01 * np.arange(99)
    sounds = (np.floor(8 * middles) % 2) == 1
    assert loudness[sounds].mean() > loudness[~sounds].mean() + 10
