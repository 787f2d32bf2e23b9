"""Trains the autoencoder of Rowe et al. (2021): codes of seconds of sound, learned without labels.

    python -m experiments.main --config=experiments/configs/soundscape_autoencoder.py:smoke

and on your own recordings with `--config.data.source=FOLDER` instead of `:smoke`. `:songs` has made-up
sounds; any data set of pictures may be named, too.

`--config.autoencoder.pooling=explicit` takes max pooling and unpooling. The paper trains for three epochs:
`--config.epochs=3`, with `--config.optimizer.schedule=decades` (1e-3, 1e-4, 1e-5) for implicit pooling and
`--config.optimizer.schedule=plateau` for explicit pooling.
"""

from ml_collections import ConfigDict

from experiments.configs import common

# The picture of a second: 128 frequencies without the lowest, 128 moments, values in [0, 1].
AUDIO = {
    "sample_rate": 22_050,
    "seconds": 1.0,
    "hop": 1.0,
    "picture": "linear",
    "n_fft": 256,
    "step": 173,
    "drop_dc": True,
    "height": 128,
    "width": 128,
    "colour": "rgb",
    "labels": "none",
}
RECIPE = {
    "augment": "none",
    "normalise": {"mean": (0.0,), "std": (1.0,)},
    "early_stopping": {"patience": 0},
    "epochs": 30,
    "optimizer": {"learning_rate": 1e-3, "schedule": "cosine"},
}


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns the autoencoder for the recordings, or pictures, that `argument` names."""
    config = common.get_config(argument, default="audio", task="reconstruction")
    config.name = config.baseline = "soundscape_autoencoder"
    config.update(RECIPE)
    if config.data.name == "audio":
        config.audio.update(AUDIO)
    else:
        config.image_size = config.image_size or 32
    if config.dataset.endswith("-smoke"):
        config.autoencoder.widths = (16, 32, 64, 6)
        config.epochs = 1
    return config
