"""Settings of sound as the configuration has them, and sound files."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.configs import common


@pytest.fixture
def audio():
    """Returns a function that gives the usual settings of sound, but for those named."""
    usual = common.get_config("audio").audio.to_dict()
    return lambda **changed: ConfigDict({**usual, **changed})


@pytest.fixture
def small(audio):
    """Settings of small pictures of short windows, quick to draw."""
    return audio(
        sample_rate=8000, seconds=0.5, hop=0.25, n_fft=256, step=125, bands=16, height=8, width=8
    )


@pytest.fixture
def save(tmp_path):
    """Returns a function that writes a sound file below `tmp_path / "sounds"`."""
    soundfile = pytest.importorskip("soundfile")

    def write(name, samples, rate=8000, **options):
        path = tmp_path / "sounds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = np.asarray(samples)
        channels = 1 if samples.ndim == 1 else samples.shape[1]
        # In pieces: libsndfile's Vorbis encoder overflows the stack with long ones.
        with soundfile.SoundFile(path, "w", rate, channels, **options) as file:
            for begin in range(0, len(samples), 10000):
                file.write(samples[begin : begin + 10000])
        return path

    return write
