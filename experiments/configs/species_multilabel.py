"""Tags the species heard in windows of two seconds: the recipe of LeBien et al. (2020), a ResNet-50.

    python -m experiments.main --config=experiments/configs/species_multilabel.py --config.data.source=PATH \
        --config.init_from=resnet50.safetensors

PATH holds recordings with Raven's tables, with a CSV (`--config.audio.annotations=FILE.csv`), or in folders
named after their species. A species that is not annotated counts as unknown and is not learned from, unless
`--config.audio.exhaustive=True` says that it is absent. `:smoke` is a run of a minute on made-up songs.

`init_from` names weights that were trained on ImageNet, a file of torchvision's or timm's ResNet-50, or a
run. The new head (a hidden layer of 512, dropout, a logit for each species) learns alone for 5 epochs at
1e-4, over a network that runs as in inference; then everything learns for 5 epochs at 1e-6. Without
`init_from` everything learns from the start, at 1e-4.

Here windows slide over the recordings. The paper has one window around each annotation:
`--config.audio.windows=annotations`. Its recipe also decays the first learning rate by 1e-7 a step, which
takes away less than a thousandth of it and is left out here.
"""

from ml_collections import ConfigDict

from experiments.configs import common

AUDIO = {
    "sample_rate": 48_000,
    "n_fft": 2048,
    "win": 1024,
    "step": 512,
    "bands": 128,
    "height": 224,
    "width": 224,
    "colour": "magma",
    "labels": "multi",
}
RECIPE = {
    "augment": "none",
    "mixing": {"label_smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0},
    "batch_size": 32,
    "epochs": 10,
    "stages": {"head_epochs": 5, "learning_rate": 1e-6},
    "optimizer": {"name": "adam", "learning_rate": 1e-4, "schedule": "constant"},
    "early_stopping": {"patience": 0},
}


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns the tagger for the recordings that `argument` names; pictures have one label each."""
    config = common.get_config(argument, default="audio", task="tagging")
    config.name = config.baseline = "species_multilabel"
    config.model.hidden, config.model.dropout = 512, 0.5
    if config.data.name == "audio":
        config.audio.update(AUDIO)
        config.normalise = {"mean": (0.0,), "std": (1.0,)}
    if not config.dataset.endswith("-smoke"):
        config.model.depth = 50
        config.update(RECIPE)
        return config
    config.model.hidden = 32
    config.augment = "none"
    config.mixing.mixup = 0.0
    config.stages = {"head_epochs": 1, "learning_rate": 0.0}
    if config.data.name == "audio":
        config.audio.update({"height": 64, "width": 64})
    return config
