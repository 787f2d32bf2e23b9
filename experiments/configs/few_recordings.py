"""Classifies recordings of which there are few, such as ten of each species: a small network and more steps.

    python -m experiments.main --config=experiments/configs/few_recordings.py --config.data.source=PATH

PATH holds a folder of recordings for each class. `:songs` is a set of made-up sounds, `:smoke` a run of half
a minute on it. It is `birdsong_classifier.py` with a ResNet-10 of a quarter of the width, spectrograms of
64 x 64 points, batches of 8 in 60 epochs or 300 steps, whichever is less, and rare classes repeated. A fifth
of the windows have another one over them, and a fifth are replaced with noise, so that the network says
little about wind and rain. A guide for people who do not program: docs/for_ecologists.md.
"""

from ml_collections import ConfigDict

from experiments.configs import common

AUDIO = {"height": 64, "width": 64, "upsample": 1.0, "overlay": 0.2, "negatives": 0.2}
RECIPE = {
    "model": {"depth": 10, "width": 16},
    "batch_size": 8,
    "epochs": 60,
    "steps": 300,
    "evaluate_every": 5,
    "optimizer": {"schedule": "cosine"},
    "early_stopping": {"patience": 0},
}


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns a classifier of the recordings that `argument` names."""
    config = common.get_config(argument, default="audio")
    config.name = config.baseline = "few_recordings"
    if config.data.name == "audio":
        config.audio.update(AUDIO)
    if not config.dataset.endswith("-smoke"):
        config.update(RECIPE)
    return config
