"""Trains DR-ACGAN (Fu et al. 2023), which makes labelled spectrograms of birds to train a classifier with.

    python -m experiments.main --config=experiments/configs/dr_acgan.py --config.data.source=RECORDINGS
    python -m experiments.generate runs/dr_acgan-audio --per_class=1000 --out=gen/

Wavelet spectrograms of 2 s, 256 x 256 in the colours of magma, from -1 to 1; Adam at 2e-4 with betas
(0.5, 0.999), batch 16, 200 epochs, for which an accelerator is needed. `:smoke` is 200 steps at 32 x 32 on
made-up songs; `:DATASET` takes the pictures of any other data set. The size may be any multiple of 8: for
recordings it is --config.audio.height and .width (and as many .bands), for pictures --config.image_size.

Not in the paper, and off: --config.average=0.999 (samples of averaged parameters), and in --config.gan
diff_augment, discriminator_rate (two rates), discriminator_dropout, aux_on_fake=False.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns the GAN for the data set that `argument` names, or for recordings."""
    config = common.get_config(argument, default="audio", task="acgan")
    smoke = config.dataset.endswith("-smoke")
    size = 32 if smoke else 256
    config.name = config.baseline = "dr_acgan"
    if config.data.name == "audio":
        shape = {"bands": size, "height": size, "width": size}
        config.audio.update({"picture": "wavelet", "colour": "magma", **shape})
    else:
        config.image_size = size
    config.normalise = {"mean": (0.5,), "std": (0.5,)}
    config.augment = "none"
    config.optimizer.update(
        {"name": "adam", "learning_rate": 2e-4, "betas": (0.5, 0.999), "schedule": "constant"}
    )
    config.early_stopping.patience = 0
    config.batch_size = 16
    config.epochs = 200
    config.evaluate_every = 10
    if smoke:
        config.gan.widths = (32, 16, 8, 4)
        config.epochs = 50
        config.steps = 200
        config.evaluate_every = 25
        config.log_every = 10
    return config
