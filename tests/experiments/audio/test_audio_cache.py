import json
import os

import numpy as np
import pytest

from experiments.audio import cache, recordings, spectrograms, windows
from experiments.core.errors import UserError

pytest.importorskip("soundfile")
pytest.importorskip("soxr")
pytest.importorskip("librosa")


@pytest.fixture
def prepare(tmp_path, small):
    """Returns a function that prepares all sounds written with `save`, and the file named besides."""

    def run(audio=small, more=(), **options):
        paths = [*recordings.list_recordings(tmp_path / "sounds"), *more]
        names = [os.path.relpath(path, tmp_path / "sounds") for path in paths]
        return cache.prepare_spectrograms(
            paths, names, audio, tmp_path / "cache", quiet=True, **options
        )

    return run


@pytest.fixture
def drawn(monkeypatch):
    """The recordings that were read."""
    seen = []
    stream = recordings.stream_samples

    def noticed(recording, *more):
        seen.append(recording.path.name)
        return stream(recording, *more)

    monkeypatch.setattr(recordings, "stream_samples", noticed)
    return seen


def noise(rng, seconds=1.0, rate=8000):
    return 0.1 * rng.standard_normal(round(seconds * rate))


def test_spectrograms_are_those_of_the_windows(save, rng, prepare, small):
    path = save("a/x.flac", noise(rng, 1.3, 11025), rate=11025)
    save("b.wav", noise(rng, 0.4))
    found = prepare()
    assert [one.name for one in found.usable] == ["b.wav", "a/x.flac"] and not found.skipped
    one = found.usable[1]
    expected = list(
        windows.cut_grid(
            recordings.stream_samples(recordings.probe_recording(path), 8000), 8000, 0.5, 0.25
        )
    )
    assert list(one.starts) == [window.start for window in expected] == [0, 0.25, 0.5, 0.75, 1.0]
    assert list(one.ends) == [window.end for window in expected] and one.ends[-1] == 1.3
    assert isinstance(one.levels, np.memmap) and one.levels.shape == (5, 8, 8) and len(one) == 5
    for picture, window in zip(one.levels, expected, strict=True):
        np.testing.assert_array_equal(
            picture, spectrograms.compute_spectrogram(window.samples, small)
        )
    assert (one.rate, one.channels, one.seconds, one.note) == (11025, 1, 1.3, "")
    (note,) = found.notes
    assert "less than 0.5 s" in note and "zeros" in note


def test_cache_is_reused(save, rng, prepare, drawn):
    save("x.wav", noise(rng))
    save("silent.wav", np.zeros(8000))
    save("bad.wav", np.full(8000, np.nan), subtype="FLOAT")
    first = prepare()
    assert sorted(drawn) == ["bad.wav", "silent.wav", "x.wav"]
    second = prepare()
    assert len(drawn) == 3 and first.skipped == second.skipped == [("bad.wav", "nonfinite")]
    for one, other in zip(first.usable, second.usable, strict=True):
        np.testing.assert_array_equal(one.levels, other.levels)
        assert (one.starts == other.starts).all() and (one.silent == other.silent).all()
    assert [bool(one.silent.all()) for one in second.usable] == [True, False]


def test_changed_files_and_settings_are_computed_again(save, rng, prepare, drawn, small):
    save("x.wav", noise(rng))
    before = prepare().usable[0].levels[:]
    save("x.wav", noise(rng, 1.5))
    assert len(prepare().usable[0]) == 5 and len(before) == 3 and len(drawn) == 2
    louder = small.copy_and_resolve_references()
    louder.decibels = 30.0
    assert prepare(louder).usable[0].levels.mean() < before.mean() and len(drawn) == 3
    prepare(starts=[[0.1, 0.4]])
    prepare(starts=[[0.4, 0.1]])
    prepare()
    assert len(drawn) == 4


def test_cache_ignores_colours_and_labels(save, rng, prepare, drawn, small):
    save("x.wav", noise(rng))
    prepare()
    small.colour, small.min_overlap, small.exhaustive = "magma", 0.1, True
    prepare(small)
    assert len(drawn) == 1


def test_windows_at_chosen_starts(save, rng, prepare):
    save("x.wav", noise(rng, 2.0))
    (one,) = prepare(starts=[[1.7, -0.1, 0.3, 9.0]]).usable
    assert list(one.starts) == [0.0, 0.3, 1.7] and list(one.ends) == [0.5, 0.8, 2.0]
    assert one.seconds == 2.0


def test_incomplete_caches_are_computed_again(save, rng, prepare, drawn, tmp_path):
    save("x.wav", noise(rng))
    (one,) = prepare().usable
    facts = one.file.with_suffix(".json")
    assert json.loads(facts.read_text())["path"].endswith("x.wav")
    texts = (lambda: facts.write_text('{"reas'), lambda: facts.write_text("[]"))
    for damage in (*texts, facts.unlink, one.file.unlink):
        damage()
        (again,) = prepare().usable
        assert again.levels.shape == (3, 8, 8)
    assert len(drawn) == 5
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.name.endswith("tmp")]


def test_bad_recordings_have_a_reason(save, rng, prepare, small, tmp_path):
    for number in range(8):
        save(f"good/{number}.wav", noise(rng))
    (tmp_path / "sounds/empty.wav").touch()
    (tmp_path / "sounds/text.mp3").write_text("no sound")
    save("none.wav", np.zeros(0))
    broken = save("broken.flac", noise(rng, 8.0))
    broken.write_bytes(broken.read_bytes()[:40_000])
    stereo = save("two.wav", np.stack([noise(rng), noise(rng)], axis=1), rate=4000)
    stereo.write_bytes(stereo.read_bytes()[:20_000])
    found = prepare(more=[tmp_path / "sounds/missing.wav"])
    reasons = dict(found.skipped)
    assert set(reasons) == {"empty.wav", "text.mp3", "none.wav", "missing.wav"}
    assert reasons["empty.wav"] == "the file is empty" and reasons["none.wav"] == "no frames"
    assert reasons["missing.wav"].startswith("cannot be opened: No such file")
    assert "not a sound file" in reasons["text.mp3"]
    used = {one.name: one for one in found.usable}
    assert len(used) == 10 and used["broken.flac"].note.endswith("of 64,000 frames")
    assert used["broken.flac"].ends[-1] == used["broken.flac"].seconds < 4
    low_rate, channels, truncated = found.notes
    assert "fewer than 8,000 samples" in low_rate and "mean is used" in channels
    assert truncated.startswith("2 recordings") and "broken.flac (truncated: " in truncated


def test_temporary_reasons_are_not_cached(save, rng, prepare):
    save("x.wav", noise(rng))
    path = save("y.wav", noise(rng))
    path.rename(path.with_suffix(".moved"))
    assert prepare(more=[path]).skipped
    path.with_suffix(".moved").rename(path)
    assert not prepare().skipped


def test_short_recordings_may_be_dropped(save, rng, prepare, small):
    save("x.wav", noise(rng))
    save("y.wav", noise(rng, 0.3))
    small.pad = "drop"
    assert prepare(small).skipped == [("y.wav", "no window of 0.5 s in its 0.3 s")]


def test_too_many_unusable_recordings_are_refused(save, rng, prepare):
    with pytest.raises(UserError, match="no recordings"):
        prepare()
    for number in range(7):
        save(f"{number}.wav", np.zeros(0))
    for number in range(6):
        save(f"good/{number}.wav", noise(rng))
    with pytest.raises(UserError) as caught:
        prepare()
    message = str(caught.value)
    assert message.startswith("7 of 13 recordings cannot be used, such as 0.wav (no frames); 1.wav")
    assert "4.wav" in message and "5.wav" not in message
    assert message.endswith("or allow more with --config.data.max_skipped=SHARE.")
    assert len(prepare(max_skipped=0.6).usable) == 6
    save("good/6.wav", noise(rng))
    assert len(prepare().usable) == 7
    with pytest.raises(UserError, match="7 of 14 recordings cannot be used"):
        prepare(max_skipped=0.1)


def test_repeated_recordings_are_computed_once(save, rng, prepare, drawn):
    path = save("x.wav", noise(rng))
    found = prepare(more=[path, path])
    assert len(found.usable) == 3 and len(drawn) == 1


def test_invalid_setting_is_refused_first(save, rng, prepare, small, drawn):
    save("x.wav", noise(rng))
    small.step = 0
    with pytest.raises(UserError, match=r"--config\.audio\.step=0"):
        prepare(small)
    assert not drawn


def test_missing_spectrograms_are_named(save, rng, prepare):
    save("a.wav", noise(rng))
    one = prepare().usable[0]
    one.file.write_bytes(one.file.read_bytes()[:10])
    with pytest.raises(UserError, match="cannot be read any more"):
        _ = one.levels


def replace_keeping_time(path, content):
    """Gives a file other content of the same size and time."""
    status = path.stat()
    assert len(content) == status.st_size
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_damaged_entries_are_computed_again_and_said(save, rng, prepare, drawn):
    save("x.wav", noise(rng))
    (one,) = prepare().usable
    expected, facts = one.levels.copy(), one.file.with_suffix(".json")
    del one
    whole, text = facts.with_suffix(".npy").read_bytes(), facts.read_text()
    npy = facts.with_suffix(".npy")
    damages = (
        lambda: npy.write_bytes(whole[:-100]),
        lambda: npy.write_bytes(bytes(len(whole))),
        lambda: npy.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1])),
        npy.unlink,
        lambda: facts.write_text('{"reason": ""}'),
        lambda: facts.write_text('{"reason": "bad"}'),
        lambda: facts.write_text(text.replace('"rate": 8000', '"rate": 8001')),
        lambda: facts.write_bytes(bytes(50)),
        lambda: facts.write_text("[" * 100_000),
    )
    for number, damage in enumerate(damages, 2):
        damage()
        found = prepare()
        (again,) = found.usable
        np.testing.assert_array_equal(again.levels, expected)
        assert len(drawn) == number
        assert [note for note in found.notes if "1 entry" in note and "computed again" in note]
    assert not prepare().notes and len(drawn) == number


def test_a_replaced_recording_of_the_same_size_and_time_is_read_again(save, rng, prepare, drawn):
    path = save("x.wav", noise(rng))
    before = prepare().usable[0].levels.copy()
    content = path.read_bytes()
    replace_keeping_time(path, content[:9000] + rng.bytes(1000) + content[10000:])
    found = prepare()
    assert (found.usable[0].levels != before).any() and len(drawn) == 2 and not found.notes
    changed = path.read_bytes()
    replace_keeping_time(path, changed)  # The same content, such as that of a restored copy.
    prepare()
    prepare()
    assert len(drawn) == 2


def test_spectrograms_that_are_cut_during_a_run_are_not_used(save, rng, prepare):
    save("x.wav", noise(rng))
    (one,) = prepare().usable
    one.file.write_bytes(one.file.read_bytes()[:-64])
    with pytest.raises(UserError, match="size of their file has changed"):
        _ = one.levels
