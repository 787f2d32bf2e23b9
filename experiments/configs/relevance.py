"""Settings that mean nothing for a run."""

from collections.abc import Mapping
from typing import Any

# Settings of `config.audio` that a kind of spectrogram is made without.
_NOT_OF_PICTURES = {
    "mel": ("drop_dc",),
    "linear": ("bands",),
    "wavelet": ("n_fft", "win", "drop_dc"),
}


def unused(known: Mapping[str, Any]) -> dict[str, str]:
    """What means nothing for a run: settings, or beginnings of their names, and why.

    Args:
        known: all settings of the run by dotted name.
    """
    network, data = known.get("model.network", "resnet"), known.get("data.name")
    conv = known.get("conv.name", "conv")
    found = {}
    if known.get("task") == "segmentation":
        of_classes = ("classifier.", "mixing.mixup", "mixing.cutmix", "model.hidden")
        found |= dict.fromkeys(of_classes, "it is for classification")
    else:
        found |= dict.fromkeys(("head.", "model.output_stride"), "it is for segmentation")
    if known.get("task") != "tagging":
        found["tagging."] = "it is for --config.task=tagging"
    if known.get("task") == "acgan":
        names = ("model.", "attention.", "classifier.", "mixing.")
        found |= dict.fromkeys(names, "a GAN takes --config.gan and --config.conv")
    else:
        found["gan."] = "it is for --config.task=acgan"
    if known.get("task") == "reconstruction":
        of_classifiers = ("attention.", "classifier.", "mixing.", "model.")
        found |= dict.fromkeys(of_classifiers, "an autoencoder takes --config.autoencoder")
        if known.get("autoencoder.pooling") != "explicit":
            found["autoencoder.window"] = "it is for --config.autoencoder.pooling=explicit"
    else:
        found["autoencoder."] = "it is for --config.task=reconstruction"
    of_resnets = (
        "attention.",
        *(f"model.{x}" for x in ("depth", "context", "representation", "shortcut")),
    )
    of_series = ("net1", "net2")
    if network not in of_series:
        found["series."] = "it is for the networks net1 and net2"
    if network in of_series:
        names = (*of_resnets, "classifier.", "model.width", "model.stem", "model.hidden")
        found |= dict.fromkeys(names, f"{network} takes --config.series")
    elif network != "resnet":
        found |= dict.fromkeys(of_resnets, f"{network} has none")
    if known.get("optimizer.name") == "sgd":
        found["optimizer.betas"] = "it is for adam and adamw"
    if known.get("optimizer.schedule") != "plateau":
        found["plateau."] = "it is for --config.optimizer.schedule=plateau"
    if "carried" not in known.get("model.context", ""):
        found["model.representation"] = "it is for --config.model.context=carried"
    if conv in ("conv", "condconv", "dcd"):
        found["temperature."] = f"--config.conv.name={conv} has no temperature"
    if conv != "gated":
        found["auxiliary."] = f"--config.conv.name={conv} has no loss of its own"
    if not known.get("init_from") and not known.get("start.config"):
        found["start.noise"] = "it is for --config.init_from"
        found["stages."] = "it is for --config.init_from; a new network learns whole from the start"
    elif not known.get("stages.head_epochs"):
        found["stages.learning_rate"] = "it is for --config.stages.head_epochs"
    if known.get("data.fold", -1) < 0:
        found["data.folds"] = "it is for --config.data.fold"
    if data == "digits":
        found |= dict.fromkeys(("data.source", "data.dir"), "digits come with scikit-learn")
    if data != "audio":
        found |= dict.fromkeys(("audio.", "spectrogram."), "it is for recordings")
    else:
        found |= dict.fromkeys(("image_size", "data.folds"), "it is not for recordings")
        picture = known.get("audio.picture")
        names = (f"audio.{name}" for name in _NOT_OF_PICTURES.get(str(picture), ()))
        found |= dict.fromkeys(names, f"a {picture} picture has none")
        if known.get("augment") != "spectrogram":
            found["spectrogram."] = "it is for --config.augment=spectrogram"
        found |= _unused_of_sound(known)
    if data not in ("ucr", "tfds", "audio"):
        found["data.variant"] = f"there is one {data}"
    if data == "ucr":
        found |= dict.fromkeys(("image_size", "normalise."), "it is for pictures")
    return found


def _unused_of_sound(known: Mapping[str, Any]) -> dict[str, str]:
    """What means nothing for a run on recordings."""
    labels, picture = known.get("audio.labels"), known.get("audio.picture")
    of_annotations = [f"audio.{x}" for x in ("label_column", "min_overlap", "min_fraction")]
    found = {}
    if known.get("data.variant") == "songs":
        found["data.source"] = (
            "songs are made up (behind the config, audio is for recordings of your own)"
        )
    if labels != "multi":
        several = ("audio.no_class", "audio.exhaustive")
        found |= dict.fromkeys(several, "it is for --config.audio.labels=multi")
    if known.get("audio.annotations"):
        found["audio.label_pattern"] = "the labels are those of --config.audio.annotations"
    elif known.get("audio.label_pattern"):
        names = (*of_annotations, "audio.exhaustive")
        found |= dict.fromkeys(names, "--config.audio.label_pattern labels whole recordings")
    if labels == "none":
        names = (*of_annotations, "audio.annotations", "audio.label_pattern", "data.classes")
        found |= dict.fromkeys(names, "there are no labels (--config.audio.labels)")
    if known.get("audio.splits"):
        names = ("audio.group_pattern", "data.validation", "data.test")
        found |= dict.fromkeys(names, "--config.audio.splits deals the recordings out")
    if picture != "linear":
        found["audio.drop_dc"] = "it is for --config.audio.picture=linear"
    else:
        found["audio.bands"] = "it is for --config.audio.picture=mel or wavelet"
    if picture == "wavelet":
        found["audio.n_fft"] = "it is for --config.audio.picture=mel or linear"
    return found
