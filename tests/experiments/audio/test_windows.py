import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.audio import windows
from experiments.core.errors import UserError


def in_blocks(samples, size):
    return (samples[i : i + size] for i in range(0, len(samples), size))


@settings(max_examples=200, deadline=None)
@given(
    total=st.integers(0, 60),
    size=st.integers(1, 70),
    length=st.integers(1, 30),
    hop=st.integers(1, 40),
    pad=st.sampled_from(windows.PADS),
)
def test_grid_matches_slicing(total, size, length, hop, pad):
    rate = 7
    samples = np.random.default_rng(total).standard_normal(total).astype(np.float32)
    found = list(windows.cut_grid(in_blocks(samples, size), rate, length / rate, hop / rate, pad))
    starts = [k * hop for k in range(total) if k * hop + length <= total]
    last = len(starts) * hop
    seen = starts[-1] + length if starts else 0
    if pad != "drop" and seen < total and last < total:
        starts.append(last)
    assert [w.start for w in found] == [s / rate for s in starts]
    assert [w.end for w in found] == [min(s + length, total) / rate for s in starts]
    for start, window in zip(starts, found, strict=True):
        part = samples[start : start + length]
        filled = np.resize(part, length) if pad == "repeat" else np.zeros(length, np.float32)
        filled[: len(part)] = part
        np.testing.assert_array_equal(window.samples, filled)
        assert window.samples.dtype == np.float32


@settings(max_examples=100, deadline=None)
@given(
    total=st.integers(0, 60),
    size=st.integers(1, 70),
    starts=st.lists(st.integers(-10, 80), max_size=12),
    pad=st.sampled_from(windows.PADS),
)
def test_windows_at_starts_match_slicing(total, size, starts, pad):
    rate, length = 5, 9
    samples = np.arange(total, dtype=np.float32)
    found = list(
        windows.cut_at(in_blocks(samples, size), rate, 9 / 5, [s / 5 for s in starts], pad)
    )
    expected = sorted(max(s, 0) for s in starts)
    expected = [s for s in expected if s + length <= total or (s < total and pad != "drop")]
    assert [w.start for w in found] == [s / rate for s in expected]
    for start, window in zip(expected, found, strict=True):
        part = samples[start : start + length]
        np.testing.assert_array_equal(window.samples[: len(part)], part)
        assert window.end == (start + len(part)) / rate and len(window.samples) == length


def test_constant_windows_are_silent():
    sound = np.concatenate([np.zeros(4), [0.1, 0.2, 0.3, 0.4], np.full(6, 0.7)]).astype(np.float32)
    found = list(windows.cut_grid([sound], rate=2, seconds=2.0, hop=2.0))
    assert [w.silent for w in found] == [True, False, True, True]
    assert found[-1].end == 7.0 and list(found[-1].samples) == pytest.approx([0.7, 0.7, 0, 0])


def test_starts_do_not_drift_over_a_day():
    minute = np.zeros(60 * 10, np.float32)
    last = None
    for window in windows.cut_grid((minute for _ in range(1440)), 10, 0.5, 0.7):
        last = window
    assert last.start == 7 * 123428 / 10 and last.end == 86400.0 - 0.0


def test_memory_is_bounded():
    second = np.ones(8000, np.float32)

    def most(seconds):
        tracemalloc.start()
        for _ in windows.cut_grid((second + 0 for _ in range(seconds)), 8000, 2.0, 1.0):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert most(400) < most(20) + 20_000


def test_windows_own_their_samples():
    block = np.ones(8, np.float32)
    (window,) = windows.cut_grid([block], 2, 4.0, 4.0)
    block[:] = 5
    assert (window.samples == 1).all()


@pytest.mark.parametrize(
    "options, setting",
    [
        ({"seconds": 0.0}, "seconds"),
        ({"hop": 0.0}, "hop"),
        ({"hop": -1.0}, "hop"),
        ({"pad": "x"}, "pad"),
    ],
)
def test_invalid_settings_are_named(options, setting):
    with pytest.raises(UserError, match=rf"--config\.audio\.{setting}="):
        list(windows.cut_grid([np.ones(5)], **{"rate": 2, "seconds": 1.0, "hop": 1.0, **options}))
