"""The autoencoder of Rowe et al. (2021): codes of seconds of sound, learned without labels.

    python -m experiments.main --config=experiments/configs/soundscape_autoencoder.py:smoke

and on recordings of your own with `--config.data.source=FOLDER` instead of `:smoke`.

Behind the config: `pooling=explicit` for max pooling and unpooling; `recipe=paper` for the three epochs of
the paper; `songs` for made-up sounds, or any data set of pictures.
"""

from ml_collections import ConfigDict

from experiments.configs import common
from experiments.core.errors import UserError

# What a picture of a second is: 128 frequencies without the lowest, 128 moments, [0, 1].
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
    "mixing": {"label_smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0},
    "early_stopping": {"patience": 0},
    "epochs": 30,
    "optimizer": {"learning_rate": 1e-3, "schedule": "cosine"},
}
# The schedule of a run of three epochs: 1e-3, 1e-4, 1e-5 where pooling is implicit.
PAPER = {"implicit": "decades", "explicit": "plateau"}


def get_config(argument: str | None = None) -> ConfigDict:
    """The autoencoder on the recordings, or pictures, that `argument` names."""
    argument, pooling = common.take(argument, "pooling")
    argument, recipe = common.take(argument, "recipe")
    if pooling not in (None, *PAPER):
        raise UserError(f"pooling={pooling}: write implicit or explicit.")
    if recipe not in (None, "paper"):
        raise UserError(f"recipe={recipe}: write paper, or leave it out.")
    config = common.get_config(argument, default=common.sound(argument))
    config.name = config.baseline = "soundscape_autoencoder"
    config.task = "reconstruction"
    config.update(RECIPE)
    if config.data.name == "audio":
        config.audio.update(AUDIO)
    else:
        config.image_size = config.image_size or 32
    if pooling == "explicit":
        config.name += "_explicit"
        config.autoencoder.pooling = pooling
    if recipe == "paper":
        config.epochs = 3
        config.optimizer.schedule = PAPER[config.autoencoder.pooling]
    if config.dataset.endswith("-smoke"):
        config.autoencoder.widths = (16, 32, 64, 6)
        config.epochs = 1
    return config
