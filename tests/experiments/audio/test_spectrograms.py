import numpy as np
import pytest
from scipy.signal import fftconvolve

from experiments.audio import spectrograms, wavelets
from experiments.core.errors import UserError

librosa = pytest.importorskip("librosa")


def tone(hertz, seconds=2.0, rate=32000, loudness=0.5):
    return (loudness * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(
        np.float32
    )


def noise(n=64000):
    return np.random.default_rng(0).standard_normal(n).astype(np.float32)


@pytest.mark.parametrize(
    "changed, shape",
    [
        ({}, (128, 201)),
        ({"picture": "linear"}, (513, 201)),
        ({"picture": "linear", "drop_dc": True}, (512, 201)),
        ({"picture": "linear", "low": 1000.0, "high": 2000.0}, (33, 201)),
        ({"picture": "wavelet"}, (128, 201)),
        ({"picture": "wavelet", "bands": 20, "height": 16, "width": 24}, (16, 24)),
        ({"height": 224, "width": 224}, (224, 224)),
        ({"height": 64}, (64, 201)),
        ({"sample_rate": 48000, "n_fft": 2048, "win": 1024, "step": 512}, (128, 188)),
    ],
)
def test_shapes(audio, changed, shape):
    settings = audio(**changed)
    assert spectrograms.compute_shape(settings) == shape
    levels = spectrograms.compute_spectrogram(noise(2 * settings.sample_rate), settings)
    assert levels.shape == shape and levels.dtype == np.uint8
    rows = spectrograms.compute_frequencies(settings)
    assert rows.shape == shape[:1] and (np.diff(rows) < 0).all()


def test_mel_matches_librosa(audio):
    samples = noise() + tone(3000)
    power = librosa.feature.melspectrogram(
        y=samples,
        sr=32000,
        n_fft=1024,
        win_length=800,
        hop_length=320,
        n_mels=64,
        fmin=50,
        fmax=9000,
    )
    decibels = librosa.power_to_db(power, ref=np.max, top_db=80)[::-1]
    settings = audio(bands=64, win=800, low=50.0, high=9000.0)
    levels = spectrograms.compute_spectrogram(samples, settings).astype(float)
    np.testing.assert_allclose(levels, 255 * (1 + decibels / 80), atol=0.51)


@pytest.mark.parametrize("picture", spectrograms.PICTURES)
@pytest.mark.parametrize("changed", [{}, {"height": 200, "width": 100}])
def test_tone_is_a_line_at_its_frequency(audio, picture, changed):
    settings = audio(picture=picture, **changed)
    levels = spectrograms.compute_spectrogram(tone(3000), settings)
    rows = spectrograms.compute_frequencies(settings)
    loudest = levels[:, 5:-5].mean(axis=1).argmax()
    apart = abs(rows[loudest + 1] - rows[loudest - 1])
    assert abs(rows[loudest] - 3000) < apart
    assert levels.max() == 255 or changed


@pytest.mark.parametrize("picture", spectrograms.PICTURES)
def test_time_runs_to_the_right(audio, picture):
    samples = np.concatenate([1e-3 * noise(32000), tone(4000, 1.0)])
    settings = audio(picture=picture)
    levels = spectrograms.compute_spectrogram(samples, settings)
    row = abs(spectrograms.compute_frequencies(settings) - 4000).argmin()
    assert levels[row, :90].max() < 200 < levels[row, 110:-5].min()
    for factor in (1e-30, 1e30):
        other = spectrograms.compute_spectrogram(samples * np.float32(factor), settings)
        assert np.abs(other.astype(int) - levels).max() <= 1


@pytest.mark.parametrize("picture", spectrograms.PICTURES)
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_silence_is_black(audio, picture, value):
    settings = audio(picture=picture, height=20, width=30)
    levels = spectrograms.compute_spectrogram(np.full(64000, value, np.float32), settings)
    assert levels.shape == (20, 30) and not levels.any()


def test_decibels_set_the_floor(audio):
    samples = tone(2000) + tone(8000, loudness=0.5e-2)  # 40 dB below
    for decibels, expected in ((80.0, 127.5), (50.0, 51.0), (30.0, 0.0)):
        settings = audio(picture="linear", decibels=decibels)
        row = abs(spectrograms.compute_frequencies(settings) - 8000).argmin()
        assert spectrograms.compute_spectrogram(samples, settings)[row, 100] == pytest.approx(
            expected, abs=1.5
        )


def test_wavelet_energies_match_the_convolution():
    samples = noise(16000)
    samples[6000:] *= 0.01
    rate, rows = 16000, (6000.0, 2500.0, 900.0, 200.0)
    found = wavelets.compute_energies(samples, rate, rows, 40)
    for row, frequency in zip(found, rows, strict=True):
        scale = rate / frequency
        time = np.arange(-int(6 * scale), int(6 * scale) + 1) / scale
        wavelet = np.exp(2j * np.pi * time - time**2 / 1.5) / np.sqrt(1.5 * np.pi * scale)
        energy = np.abs(fftconvolve(samples.astype(float), wavelet, mode="same")) ** 2
        expected = energy.reshape(40, -1).mean(axis=1)
        # PyWavelets takes the difference of an integral: the highest frequencies come out lower.
        expected *= np.sinc(frequency / rate) ** 2
        quiet = 1e-3 * expected.max()
        decibels = 10 * np.log10((row + quiet) / (expected + quiet))
        assert np.abs(decibels).max() < 0.5


@pytest.mark.parametrize("colour, channels", [("grey", 1), ("rgb", 3), ("magma", 3)])
def test_colours_round_trip(rng, colour, channels):
    levels = rng.integers(0, 256, (2, 30, 40), dtype=np.uint8)
    levels[0, :7].flat[:256] = np.arange(256)
    picture = spectrograms.apply_colours(levels, colour)
    assert picture.shape == (2, 30, 40, channels) and picture.dtype == np.uint8
    np.testing.assert_array_equal(spectrograms.remove_colours(picture, colour), levels)


def test_other_colours_become_the_nearest_level(rng):
    levels = rng.integers(5, 250, (40, 40), dtype=np.uint8)
    picture = spectrograms.apply_colours(levels, "magma").astype(int)
    drawn = np.clip(picture + rng.integers(-2, 3, picture.shape), 0, 255).astype(np.uint8)
    found = spectrograms.remove_colours(drawn, "magma").astype(int)
    assert np.abs(found - levels).max() <= 6


@pytest.mark.parametrize(
    "changed, setting",
    [
        ({"picture": "mfcc"}, "picture"),
        ({"low": 5000.0, "high": 4000.0}, "low"),
        ({"low": 4000.0, "high": 4000.0}, "low"),
        ({"low": -1.0}, "low"),
        ({"low": 16000.0}, "low"),
        ({"high": 16001.0}, "high"),
        ({"high": float("nan")}, "high"),
        ({"n_fft": 512, "win": 1024}, "win"),
        ({"n_fft": 0}, "n_fft"),
        ({"step": 0}, "step"),
        ({"bands": 0}, "bands"),
        ({"bands": 400}, "bands"),
        ({"decibels": 0.0}, "decibels"),
        ({"height": -1}, "height"),
        ({"seconds": 0.0}, "seconds"),
        ({"sample_rate": 0}, "sample_rate"),
        ({"picture": "linear", "low": 1010.0, "high": 1020.0}, "low"),
    ],
)
def test_invalid_settings_are_named(audio, changed, setting):
    with pytest.raises(UserError, match=rf"--config\.audio\.{setting}="):
        spectrograms.check_settings(audio(**changed))


@pytest.mark.parametrize("function", [spectrograms.apply_colours, spectrograms.remove_colours])
def test_unknown_colour_is_refused(function):
    with pytest.raises(UserError, match=r"--config\.audio\.colour=viridis"):
        function(np.zeros((2, 2, 3), np.uint8), "viridis")
