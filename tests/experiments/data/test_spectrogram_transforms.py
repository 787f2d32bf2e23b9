import numpy as np
import pytest

from experiments.data import spectrogram_transforms as st


@pytest.fixture
def picture(rng):
    return rng.integers(1, 256, (24, 40, 1), np.uint8)


def test_masks_blacken_stripes(picture, rng):
    masked = st.random_masks(picture, rng, number=2, share=0.5)
    black = masked[..., 0] == 0
    rows, columns = black.all(axis=1), black.all(axis=0)
    # Black points form whole stripes, and nothing else has changed.
    np.testing.assert_array_equal(black, rows[:, None] | columns[None])
    np.testing.assert_array_equal(masked[~black], picture[~black])
    assert rows.sum() <= 24 and columns.sum() <= 40 and black.any()


def test_time_wrap_loses_nothing(picture):
    moved = [st.random_time_wrap(picture, np.random.default_rng(i), 0.1) for i in range(20)]
    offsets = {
        next(o for o in range(-4, 5) if np.array_equal(np.roll(picture, o, 1), m)) for m in moved
    }
    assert len(offsets) > 4


def test_noise_adds_its_power(rng):
    silence = np.full((100, 100), -np.inf)
    for loudest in (0.0, -30.0):
        noise = st.add_noise(silence, rng, 20.0, 20.0, loudest)  # at 20 dB below the loudest
        assert 10 * np.log10(np.mean(10 ** (noise / 10))) == pytest.approx(loudest - 20, abs=0.2)
    loud = np.zeros((100, 100))
    assert st.add_noise(loud, rng, 60.0, 60.0) == pytest.approx(0, abs=0.01)


def test_noise_never_buries_a_quiet_sound(rng):
    picture = np.zeros((64, 64, 1), np.uint8)
    picture[20] = 150  # the loudest line, 45 dB below white
    distort = st.Distort(110.0, 0, 0.0, noise=20.0, gain=0.0, absolute=True)
    for _ in range(20):
        noisy = distort(picture, rng)
        assert np.median(noisy[:20]) < 150 - 255 * 20 / 110 + 5 and noisy[20].min() >= 150


def test_zero_limits_change_nothing(picture, rng):
    still = st.Distort(80.0, masks=0, mask_share=0.0, noise=0.0, gain=0.0, shift=0.0)
    np.testing.assert_array_equal(still(picture, rng), picture)


def test_gain(picture):
    louder = st.Distort(80.0, masks=0, mask_share=0.0, noise=0.0, gain=6.0, shift=0.0)
    found = set()
    for seed in range(8):
        out = louder(picture, np.random.default_rng(seed)).astype(int)
        steps = np.unique((out - picture)[(out > 0) & (out < 255)])
        assert len(steps) == 1 and abs(steps[0]) <= 6 / 80 * 255 + 1
        found.add(int(steps[0]))
    assert len(found) > 4 and min(found) < 0 < max(found)


def test_generator_decides_the_distortion(picture):
    distort = st.Distort(80.0, 2, 0.2, 20.0, 6.0, 0.1)
    one, again = (distort(picture, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert one.dtype == np.uint8 and one.shape == picture.shape
