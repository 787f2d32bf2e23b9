"""Sounds that are mixed in training: ratios, labels, noise of the user's own, and windows without birds."""

import pickle

import numpy as np
import pytest

from experiments.audio import noises, songs, spectrograms
from experiments.audio.mixing import measure_power, mix_at_ratio
from experiments.audio.samples import prepare_samples
from experiments.configs import common
from experiments.core.errors import UserError
from experiments.data import load, pipeline, sound_mixing
from experiments.data.spectrogram_transforms import make_transform
from experiments.data.transforms import AugmentFirst

RATE = 16_000
AUDIO = {"sample_rate": RATE, "seconds": 0.5, "hop": 0.5, "n_fft": 256, "step": 200, "bands": 16}


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("birds")
    return songs.write_songs(folder, classes=2, recordings=6, seconds=1.2, rate=RATE)


@pytest.fixture(scope="module")
def noise_folder(tmp_path_factory):
    soundfile = pytest.importorskip("soundfile")
    folder, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    soundfile.write(folder / "rain.wav", 0.1 * rng.normal(size=2 * RATE), RATE)
    soundfile.write(folder / "short.WAV", 0.3 + 0.1 * rng.normal(size=500), RATE // 2)
    soundfile.write(folder / "still.wav", np.zeros(RATE), RATE)
    (folder / "broken.wav").write_text("no sound")
    return folder


@pytest.fixture
def opened(tmp_path, birds):
    def read(source=birds, task="classification", **audio):
        config = common.get_config("audio", task=task)
        config.data.update({"source": str(source), "dir": str(tmp_path)})
        config.audio.update({**AUDIO, **audio})
        config.augment = "none"
        return load(config.data, 0, config.audio), config

    return read


def draw(dataset, examples=60):
    """Returns training examples after the mixer, with those that it was given."""
    train = dataset.splits["train"]
    given = [train[number % len(train)] for number in range(examples)]
    return given, [
        dataset.augment(one, np.random.default_rng(number)) for number, one in enumerate(given)
    ]


@pytest.mark.parametrize("decibels", [-20.0, 0.0, 13.7])
def test_ratio_is_the_drawn_one(rng, decibels):
    sound, noise = 1e-3 * rng.normal(size=4000) + 5, 1e4 * rng.uniform(size=4000)
    added = mix_at_ratio(sound, noise, decibels) - sound
    measured = 10 * np.log10(measure_power(sound) / measure_power(added))
    assert measured == pytest.approx(decibels, abs=1e-6)
    for silent in (np.zeros(4000), np.full(4000, 3.0)):
        np.testing.assert_array_equal(mix_at_ratio(sound, silent, decibels), sound)
        np.testing.assert_array_equal(mix_at_ratio(silent, noise, decibels), silent)


def test_samples_are_those_of_the_spectrograms(opened):
    for pad in ("zero", "repeat"):
        dataset, config = opened(overlay=1.0, pad=pad)
        for example in dataset.splits["train"]:
            sound = dataset.augment.read(int(example["window"]))
            levels = spectrograms.compute_spectrogram(sound, config.audio)
            np.testing.assert_array_equal(levels, example["inputs"][..., 0])


def test_noise_is_mixed_in_at_the_drawn_ratio(opened, noise_folder, monkeypatch):
    dataset, _ = opened(noise_folder=str(noise_folder), noise_snr=(-3.0, 7.0), noise_share=0.5)
    ratios = []

    def mix(sound, noise, decibels):
        mixed = mix_at_ratio(sound, noise, decibels)
        added = mixed - np.asarray(sound, np.float64)
        ratios.append(10 * np.log10(measure_power(sound) / measure_power(added)) - decibels)
        assert -3 <= decibels <= 7
        return mixed

    monkeypatch.setattr(sound_mixing, "mix_at_ratio", mix)
    given, changed = draw(dataset)
    noisy = [
        (one["inputs"] != other["inputs"]).any() for one, other in zip(given, changed, strict=True)
    ]
    assert 15 < sum(noisy) == len(ratios) < 45 and np.abs(ratios).max() < 1e-6
    assert [one["label"] for one in given] == [other["label"] for other in changed]


def test_bad_noise_is_listed(opened, noise_folder, tmp_path):
    dataset, _ = opened(noise_folder=str(noise_folder))
    assert [name for name, _ in dataset.skipped] == ["noise/broken.wav", "noise/still.wav"]
    assert any("2 recordings" in note and "2 cannot be used" in note for note in dataset.notes)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "broken.wav").write_text("no sound")
    for folder, words in (("bad", "none of its 1 recordings"), ("absent", "is not a folder")):
        with pytest.raises(UserError, match=words):
            opened(noise_folder=str(tmp_path / folder))
    with pytest.raises(UserError, match="lower end first"):
        opened(noise_folder=str(noise_folder), noise_snr=(5.0, 0.0))


def test_batches_depend_on_the_seed_alone(opened, noise_folder):
    dataset, config = opened(noise_folder=str(noise_folder), overlay=0.5, negatives=0.2)
    transform = AugmentFirst(dataset.augment, make_transform(config, train=True))

    def third(transform, **options):
        options = {"batch_size": 8, "seed": 3, "num_threads": 0, **options}
        batches = pipeline.train_batches(dataset.splits["train"], transform, **options)
        for _ in range(3 - options.get("start_step", 0)):
            batch = next(batches)
        return batch

    expected = third(transform)
    assert expected["label"].shape == (8, 2) and set(expected) == {"inputs", "label"}
    for other in (
        third(pickle.loads(pickle.dumps(transform)), start_step=2),
        third(transform, num_threads=2),
    ):
        for name, values in expected.items():
            np.testing.assert_array_equal(other[name], values)


def test_overlay_mixes_classes(opened):
    dataset, _ = opened(overlay=1.0, overlay_gain=(-6.0, -6.0))
    _, changed = draw(dataset)
    labels = np.stack([one["label"] for one in changed])
    weight = 1 / (1 + 10 ** (-6 / 20))
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
    first = [given["label"] for given in draw(dataset)[0]]
    of_own = labels[np.arange(len(labels)), first]
    assert np.isclose(of_own, weight, atol=1e-6).any() and np.isclose(of_own, 1).any()
    assert dataset.splits["train"][0]["label"].ndim == 0  # validation and test have numbers


def test_overlay_unites_labels():
    nan = np.nan
    one, other = np.array([1, 1, 1, 0, 0, nan]), np.array([1, 0, nan, 0, nan, nan])
    for a, b in ((one, other), (other, one)):
        joined = sound_mixing.join_labels(a, b, -3.0, several=True)
        np.testing.assert_array_equal(joined, [1, 1, 1, 0, nan, nan])


def test_negatives_have_no_class(opened, noise_folder, tmp_path):
    dataset, _ = opened(negatives=0.5)
    given, changed = draw(dataset)
    labels = np.stack([one["label"] for one in changed])
    even = (labels == 0.5).all(axis=1)
    assert 15 < even.sum() < 45 and (labels[~even].max(axis=1) == 1).all()
    kept = [(a["inputs"] == b["inputs"]).all() for a, b in zip(given, changed, strict=True)]
    np.testing.assert_array_equal(kept, ~even)
    dataset, _ = opened(task="tagging", labels="multi", negatives=0.5)
    labels = np.stack([one["label"] for one in draw(dataset)[1]])
    assert 15 < (labels == 0).all(axis=1).sum() < 45
    audio = opened()[1].audio
    assert sound_mixing.make_nothing(["owl", "Noise", "wren"], audio).tolist() == [0, 1, 0]
    audio.no_class = ("NOISE",)
    assert sound_mixing.make_nothing(["owl", "Noise", "wren"], audio).tolist() == [0, 1, 0]


def test_where_levels_are_absolute_mixtures_are_as_loud_as_recordings(opened, noise_folder):
    pytest.importorskip("librosa")
    levels = {"frontend": "efficientat", "decibels": 110.0, "win": 200}
    barely = {"noise_folder": str(noise_folder), "noise_snr": (100.0, 100.0), "noise_share": 1.0}
    given, changed = draw(opened(**levels, **barely)[0], examples=12)
    for one, other in zip(given, changed, strict=True):
        assert np.abs(one["inputs"].astype(int) - other["inputs"]).max() <= 1
    given, changed = draw(opened(**levels, negatives=1.0)[0])
    loudest = max(one["inputs"].max() for one in given)
    assert max(one["inputs"].max() for one in changed) < loudest + 20  # 9 dB


def test_noise_has_the_spectrum_of_its_name(rng):
    def slope(sound):
        power = np.abs(np.fft.rfft(sound)) ** 2
        octaves = [power[2**k : 2 ** (k + 1)].mean() for k in range(4, 14)]
        return np.polyfit(np.arange(10), np.log2(octaves), 1)[0]

    for exponent in (0.0, 1.0, 2.0):
        noise = noises.make_coloured_noise(2**15, exponent, rng)
        assert slope(noise) == pytest.approx(-exponent, abs=0.2)
        assert abs(noise.mean()) < 1e-9
    for _ in range(10):
        power = np.abs(np.fft.rfft(noises.make_wind(2 * RATE, RATE, rng))) ** 2
        assert power[: 2 * 1000].sum() > 0.75 * power.sum()
    drops = [noises.make_drops(2 * RATE, RATE, rng) for _ in range(10)]
    assert np.isfinite(drops).all() and np.mean([np.mean(x**4) / np.var(x) ** 2 for x in drops]) > 6


def test_background_leaves_out_what_is_heard_at_times(rng):
    length, time = 4 * RATE, np.arange(4 * RATE) / RATE
    hum = np.sin(2 * np.pi * 1000 * time)
    song = np.sin(2 * np.pi * 4000 * time) * (time % 1 < 0.5)
    background = noises.imitate_background(hum + song + 1e-3 * rng.normal(size=length), rng)
    power = np.abs(np.fft.rfft(background)) ** 2
    assert power[4 * 900 : 4 * 1100].sum() > 100 * power[4 * 3900 : 4 * 4100].sum()
    assert not noises.imitate_background(np.zeros(length), rng).any()


def test_samples_are_decoded_once(birds, opened, tmp_path):
    _, config = opened()
    path = birds / "riser" / "riser-001.wav"
    ((samples,), _) = prepare_samples([path], ["a"], config.audio, tmp_path / "samples")
    before = samples.file.stat().st_mtime_ns
    ((again,), _) = prepare_samples([path], ["a"], config.audio, tmp_path / "samples")
    assert again.file.stat().st_mtime_ns == before
    samples.file.write_bytes(bytes(samples.file.stat().st_size))  # damaged
    ((again,), _) = prepare_samples([path], ["a"], config.audio, tmp_path / "samples")
    assert again.read(0, 100).any() and again.count == round(1.2 * RATE)
    samples.file.write_bytes(b"")
    with pytest.raises(UserError, match="samples of a cannot be read"):
        samples.read(0, 10)
