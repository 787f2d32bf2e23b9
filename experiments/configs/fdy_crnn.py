"""Detects sounds with their times: the CRNN of frequency dynamic convolution (Nam et al., Interspeech 2022).

    python -m experiments.main --config=experiments/configs/fdy_crnn.py --config.data.source=PATH

PATH holds recordings with a table for each, of a label, a begin and an end for each sound: Raven's,
Audacity's or your own (`--config.audio.annotations=FILE.csv`). All that is not annotated counts as silence,
unless `--config.audio.exhaustive=False` says that it is unknown. `:songs` has made-up sounds, `:smoke` is a
short run on them, mostly compilation. `--config.conv.name=conv` is the static network.

Windows of ten seconds at 16 kHz, 128 mel bands, a column each 16 ms, a prediction each 64 ms, as in the
paper, whose recipe also learns from clips without times and without labels, and is not repeated here. The
network has 11.05 million parameters for ten classes; see `dyn.models.CRNN` for the ways in which it differs.

A network of 90,516 parameters on made-up songs, `:songs --config.events.features="(16, 32, 32)"
--config.events.recurrent=32 --config.audio.bands=32 --config.audio.seconds=4 --config.audio.hop=4
--config.audio.n_fft=1024 --config.batch_size=8 --config.epochs=60 --config.evaluate_every=10
--config.optimizer.learning_rate=3e-3 --config.optimizer.schedule=cosine
--config.early_stopping.patience=0`: test F1 of events 0.48, PSDS 0.04 and 0.43, after 344 s on two busy CPU
cores, 129 s of them compiling; on validation 0.55. Real recordings and the full network: not run.
"""

from ml_collections import ConfigDict

from experiments.configs import common
from experiments.core.errors import UserError

AUDIO = {
    "sample_rate": 16_000,
    "seconds": 10.0,
    "hop": 5.0,
    "n_fft": 2048,
    "step": 256,
    "bands": 128,
    "labels": "frames",
    "exhaustive": True,
}


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns the detector of sound events for the recordings that `argument` names."""
    conv = {"name": "fdy", "num_kernels": 4, "axis": "frequency", "attention_norm": "batch"}
    config = common.get_config(argument, default="audio", task="event_detection", conv=conv)
    config.name = config.baseline = "fdy_crnn"
    if config.data.name != "audio":
        raise UserError(
            f"fdy_crnn.py:{argument}: only recordings have sounds with times; write :audio for your own, or "
            ":songs for made-up ones."
        )
    config.audio.update(AUDIO)
    if config.dataset.endswith("-smoke"):
        config.events.update({"features": (8, 8, 8), "recurrent": 8})
        config.audio.update({"seconds": 2.0, "hop": 2.0, "n_fft": 512, "bands": 16})
    return config
