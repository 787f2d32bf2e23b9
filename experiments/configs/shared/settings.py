"""All settings with their defaults and limits, and the choice of those that an experiment has.

Limits are written as intervals: `[0, 1)` has 0 and not 1. Of a tuple, each entry lies in the interval.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

SERIES_NETWORKS = ("net1", "net2")
EFFICIENTNETS = ("efficientnet_b0", "efficientnet_b1")
MOBILE_NETWORKS = (
    *("mobilenet_v2", "mobilenet_v3", "dymn"),
    *(*EFFICIENTNETS, "efficientnet_lite0"),
)
# Layers that have neither a temperature nor a blend to anneal.
NOT_ANNEALED = ("conv", "condconv", "dcd", "ddf", "involution", "sequence_dynamic")
# Convolutions without a branch that decides what they do.
NOT_ATTENTIVE = ("conv", "deformable", "spectral_norm")
# Convolutions whose attention mixes kernels with weights that are probabilities.
MIXTURES = ("dyconv", "fdy", "odconv", "pixel")
# Convolutions whose attention stays awake in a warm start.
AWAKE = (*MIXTURES, "spectral_norm", "condconv")
# Data sets whose examples have maps of objects.
INSTANCES = ("voc2012_instances", "mask_folder_instances", "coco_folder")
# Sections that hold the name of a layer and, beside it, whatever fields of the layer are set.
LAYER_SECTIONS = ("conv", "attention", "classifier", "head")
# Settings that change where a run reads, and what and how often it writes, but not what it computes.
FREE_SETTINGS = {
    "data.source", "data.dir", "data.max_skipped", "input.threads", "input.workers", "log_every",
    "checkpoint_every", "tensorboard", "wandb",
    "shard_parameters",  # a checkpoint fits either way
}  # fmt: skip
# Those and what names a run: settings that say nothing about its training.
NOT_TRAINING = {"name", "label", "baseline", "dataset"} | FREE_SETTINGS


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting of the configs."""

    default: Any  # its type is the setting's
    allowed: str | tuple[Any, ...] | None = None  # interval of a number, or choices; None for any
    lengths: tuple[int, ...] = ()  # numbers of entries that a tuple may have; () for any
    meaning: str = ""  # for --help, where the name does not say it


# All settings that some experiment has.
SECTIONS: dict[str, Setting | dict[str, Setting]] = {
    # The settings that stand alone.
    "name": Setting(""),
    "baseline": Setting("base", meaning="the config that reports compare this one with"),
    "task": Setting(
        "classification",
        (
            *("classification", "segmentation", "instance_segmentation"),
            *("tagging", "event_detection", "reconstruction", "acgan"),
        ),
    ),
    "dataset": Setting("", meaning="the name of the data set in folders and reports"),
    "seed": Setting(0, "[0, inf)"),
    "augment": Setting("none"),
    "dtype": Setting("float32", ("float32", "bfloat16", "float16")),
    "average": Setting(
        0.0, "[0, 1)", meaning="decay of the parameters' moving average; 0 keeps none"
    ),
    "init_from": Setting(
        "", meaning="a run's workdir, or a file of torch's weights, to start from"
    ),
    "adapt_gates": Setting(False, meaning="only what decides the gates learns; needs init_from"),
    "batch_size": Setting(32, "[1, 16777216]"),
    "accumulate": Setting(
        1, "[1, inf)", meaning="microbatches of a batch; batch norm sees one at a time"
    ),
    "shard_parameters": Setting(False, meaning="parameters and optimizer state, over the devices"),
    "epochs": Setting(30, "[1, inf)"),
    "evaluate_every": Setting(1, "[1, inf)", meaning="epochs"),
    "steps": Setting(0, "[0, inf)", meaning="ends before the epochs do; 0 for no limit"),
    "log_every": Setting(10, "[1, inf)", meaning="steps"),
    "checkpoint_every": Setting(200, "[1, inf)", meaning="steps; also after each evaluation"),
    "tensorboard": Setting(False),
    "wandb": Setting("", meaning="a project of Weights & Biases; '' for none"),
    "data": {
        "name": Setting(
            "digits",
            (
                *(
                    "digits",
                    "tiny_imagenet",
                    "ucr",
                    "folder",
                    "voc2012",
                    "mask_folder",
                    "tfds",
                    "audio",
                ),
                *INSTANCES,
            ),
        ),
        "variant": Setting(
            "", meaning="which set of the UCR archive or of the TFDS catalogue; or songs"
        ),
        "source": Setting("", meaning="where the data is; '' to find or download it"),
        "dir": Setting("", meaning="where prepared data is kept; '' for ~/.cache/dyn"),
        "validation": Setting(0.1, "[0, 1)", meaning="share of train"),
        "test": Setting(0.2, "[0, 1)", meaning="share, where the set has no test split of its own"),
        "classes": Setting("", meaning="names, comma separated; '' for all"),
        "fold": Setting(
            -1, "[-1, inf)", meaning="tested on, all splits pooled; -1 for the set's own"
        ),
        "folds": Setting(10, "[2, inf)"),
        "limit": Setting(0, "[0, inf)", meaning="most examples of a split; 0 for all"),
        "extra_train": Setting(
            "", meaning="a folder of more pictures to train on, one folder a class"
        ),
        "max_skipped": Setting(
            0.1, "[0, inf)", meaning="share of unusable files that is tolerated"
        ),
    },
    # The way from recordings to pictures and their labels: see experiments/data/sounds.py.
    "audio": {
        "sample_rate": Setting(32_000, "[1000, 768000]", meaning="Hz"),
        "seconds": Setting(2.0, "(0, 3600]", meaning="of a window"),
        "hop": Setting(1.0, "(0, 86400]", meaning="seconds from one window to the next"),
        "windows": Setting("grid", ("grid", "annotations"), meaning="or around annotations"),
        "channel": Setting("mean", meaning="or a number: 0 is the left one"),
        "pad": Setting(
            "zero", ("zero", "repeat", "drop"), meaning="the last window's end; drop omits it"
        ),
        "picture": Setting("mel", ("mel", "linear", "wavelet")),
        "frontend": Setting(
            "dyn",
            ("dyn", "efficientat"),
            meaning="efficientat: as its networks for AudioSet see sound",
        ),
        "n_fft": Setting(1024, "[16, 65536]", meaning="of mel and linear pictures"),
        "win": Setting(0, "[0, 65536]", meaning="samples of the transform's window; 0 for n_fft"),
        "step": Setting(320, "[1, 16777216]", meaning="samples from one column to the next"),
        "bands": Setting(128, "[1, 4096]", meaning="mel bands, or wavelets"),
        "low": Setting(0.0, "[0, 384000]", meaning="Hz"),
        "high": Setting(0.0, "[0, 384000]", meaning="Hz; 0 for half the sample rate"),
        "decibels": Setting(
            80.0, "(0, inf)", meaning="from black to white, the loudest of a window"
        ),
        "drop_dc": Setting(False, meaning="omits the lowest row of a linear picture"),
        "height": Setting(0, "[0, 8192]", meaning="pixels; 0 keeps the spectrogram's own"),
        "width": Setting(0, "[0, 8192]"),
        "colour": Setting("grey", ("grey", "rgb", "magma"), meaning="rgb is grey three times"),
        "labels": Setting("class", ("class", "multi", "frames", "none")),
        "label_pattern": Setting(
            "", meaning="its first group is a path's label; '' where the folder is"
        ),
        "annotations": Setting(
            "", meaning="tables, or a folder of them; '' for those beside the recordings"
        ),
        "label_column": Setting("", meaning="of the tables; '' for the usual ones"),
        "no_class": Setting(("noise", "background", "silence", "other")),
        "min_overlap": Setting(
            0.25, "[0, inf)", meaning="seconds of an annotation that label a window"
        ),
        "min_fraction": Setting(0.5, "(0, 1]", meaning="or this share of the annotation"),
        "exhaustive": Setting(
            False, meaning="whether what is not annotated is absent, for labels=multi and frames"
        ),
        # Only classifiers have these.
        "precision": Setting(
            0.9, "(0, 1]", meaning="of the thresholds in thresholds.csv, on validation"
        ),
        "upsample": Setting(
            0.0, "[0, 1]", meaning="repeats rare classes up to this share of the most frequent one"
        ),
        "focal": Setting(
            0.0, "[0, 10]", meaning="exponent of the focal loss; 0 for the cross-entropy"
        ),
        # Sounds that are mixed into the samples of training windows.
        "noise_folder": Setting("", meaning="recordings of noise to mix in; '' for none"),
        "noise_share": Setting(0.5, "[0, 1]", meaning="of the windows get noise"),
        "noise_snr": Setting(
            (0.0, 20.0),
            "[-100, 100]",
            lengths=(2,),
            meaning="decibels of the window above the noise",
        ),
        "overlay": Setting(0.0, "[0, 1]", meaning="share of windows that another one is laid over"),
        "overlay_gain": Setting(
            (-10.0, 0.0), "[-100, 100]", lengths=(2,), meaning="decibels of the other one above it"
        ),
        "negatives": Setting(
            0.0, "[0, 1)", meaning="share of windows that are replaced with noise without birds"
        ),
        "group_pattern": Setting("", meaning="recordings with the same first group share a split"),
        "splits": Setting("", meaning="a CSV with the columns file and split, instead of shares"),
    },
    # The most that augment=spectrogram changes.
    "spectrogram": {
        "masks": Setting(2, "[0, 16]", meaning="of time, and as many of frequency"),
        "mask_share": Setting(0.15, "[0, 1]", meaning="of the picture's side, each"),
        "noise": Setting(
            20.0, "[0, inf)", meaning="decibels below the loudest, at most; 0 for none"
        ),
        "gain": Setting(6.0, "[0, inf)", meaning="decibels up or down"),
        "shift": Setting(0.1, "[0, 1]", meaning="share of the window, around its end"),
    },
    "image_size": Setting(0, "[0, 8192]", meaning="pixels; 0 keeps the pictures' own"),
    "normalise": {
        "mean": Setting((0.5,), "(-inf, inf)", lengths=(1, 3)),
        "std": Setting((0.25,), "(0, inf)", lengths=(1, 3)),
    },
    "conv": {"name": Setting("conv", meaning="in the blocks")},
    "attention": {"name": Setting("none", meaning="after the last norm of a block")},
    "classifier": {"name": Setting("dense")},
    "model": {
        # net1 and net2 are for series.
        "network": Setting("resnet", ("resnet", "vgg16", *MOBILE_NETWORKS, *SERIES_NETWORKS)),
        "depth": Setting(18, (6, 10, 18, 34, 50), meaning="of a ResNet"),
        "max_blocks": Setting(0, "[0, 64]", meaning="most blocks of a stage; 0 for all"),
        "width": Setting(64, "[1, 65536]", meaning="64 is each network as published"),
        "stem": Setting("imagenet", ("imagenet", "small")),
        "dropout": Setting(0.2, "[0, 1)"),
        "hidden": Setting(
            0, "[0, 1048576]", meaning="size of a layer before the classifier; 0 for none"
        ),
        # The context of the convolutions' attention; see dyn.models.ResNet.
        "context": Setting("input", ("input", "block", "carried", "carried_pixels")),
        "representation": Setting(64, "[1, 65536]", meaning="size of a carried context"),
        "remat": Setting(
            "none",
            ("none", "cheap", "blocks"),
            meaning="computed twice to save memory: all but convolutions and products, or whole blocks",
        ),
        "output_stride": Setting(16, "[1, 64]", meaning="of a segmentation network's backbone"),
        "padding": Setting(
            "torch",
            ("torch", "same"),
            meaning="same, with an epsilon of 1e-3, is TensorFlow's, as timm's tf_efficientnet_* need it",
        ),
        "shortcut": Setting(
            "static", ("static", "conv"), meaning="conv: its 1x1 convolutions are dynamic"
        ),
    },
    "series": {
        "features": Setting(64, "[1, 65536]"),
        "kernel_size": Setting(9, "[1, 65536]"),
        "pool": Setting(2, "[1, 65536]"),
        "hidden": Setting(0, "[0, 65536]"),
        "norm": Setting(False),
        "context": Setting("input", ("input", "series")),
        "bins": Setting(16, "[1, 65536]"),
    },
    # The head of a segmentation network, over the backbone.
    "head": {"name": Setting("fcn", ("fcn", "deeplabv3plus"))},
    # A detector, over the backbone; see dyn.models.MaskRCNN and CondInst.
    "detector": {
        "name": Setting("mask_rcnn", ("mask_rcnn", "faster_rcnn", "cond_inst")),
        "size": Setting(
            "published",
            ("published", "small"),
            meaning="of heads, anchors and samples: for 500 pixels and more, or for 128 to 192",
        ),
        "norm": Setting(
            "group",
            ("group", "frozen", "batch"),
            meaning="of the backbone: frozen for trained weights, batch for large batches",
        ),
        "objects": Setting(32, "[1, 254]", meaning="the most that a picture is trained on"),
        "threshold": Setting(
            0.5, "[0, 1)", meaning="score above which objects are painted for mIoU and in figures"
        ),
    },
    # Several labels for an example: the entries that the loss is divided by, and the
    # probability from which a label counts as present.
    "tagging": {
        "norm": Setting("all", ("all", "known")),
        "threshold": Setting(0.5, "[0, 1]"),
    },
    # A GAN, whose generator convolves with `conv`; see dyn.models.ACGAN.
    "gan": {
        "latent": Setting(100, "[1, 65536]", meaning="size of the noise"),
        "widths": Setting((128, 64, 32, 16), "[1, 65536]", lengths=(4,)),
        "cbam_reduction": Setting(8.0, "[1, inf)"),
        "aux_on_fake": Setting(True, meaning="the discriminator learns their class too"),
        "discriminator_dropout": Setting(0.0, "[0, 1)"),
        "discriminator_rate": Setting(
            1.0, "(0, inf)", meaning="times the learning rate of the generator"
        ),
        "diff_augment": Setting(False, meaning="rolls and cuts all that the discriminator sees"),
    },
    # See dyn.models.Autoencoder.
    "autoencoder": {
        "widths": Setting(
            (64, 128, 256, 6), "[1, 65536]"
        ),  # features of each level, last the code's
        "pooling": Setting("implicit", ("implicit", "explicit")),
        "window": Setting(4, (2, 4), meaning="of explicit pooling"),
        "code_activation": Setting("relu", ("relu", "none")),
        "norm": Setting(True),
    },
    # The network of event detection, dyn.models.CRNN, and the way from its scores to events.
    "events": {
        "features": Setting((32, 64, 128, 256, 256, 256, 256), "[1, 65536]"),
        "recurrent": Setting(256, "[1, 65536]", meaning="size of a GRU's state, each direction"),
        "time_pools": Setting(
            2, "[0, 16]", meaning="poolings that halve time: a frame is 2^n columns"
        ),
        "dropout": Setting(0.5, "[0, 1)"),
        "threshold": Setting(0.5, "[0, 1]", meaning="of an event, in the metrics of a run"),
        "median": Setting(0.45, "[0, 3600]", meaning="seconds of the median filter; 0 for none"),
    },
    # A factor of the loss for its gradients. float16 wants 65536.0, growing every 2000 steps: gradients that
    # overflow are left out, and the scale is halved.
    "loss_scale": {
        "start": Setting(1.0, "[1, inf)"),
        "grow_every": Setting(0, "[0, inf)", meaning="0 steps: it stays as it is"),
    },
    "optimizer": {
        "name": Setting("adam", ("adam", "adamw", "sgd")),
        "learning_rate": Setting(1e-3, "(0, inf)"),
        "weight_decay": Setting(0.0, "[0, inf)"),
        "schedule": Setting("plateau", ("plateau", "cosine", "decades", "constant")),
        "warmup_epochs": Setting(0.0, "[0, inf)"),
        "clip": Setting(0.0, "[0, inf)", meaning="the gradients' norm; 0 for no limit"),
        "betas": Setting((0.9, 0.999), "[0, 1)", lengths=(2,), meaning="of adam and adamw"),
        "attention_rate": Setting(
            1.0, "[0, inf)", meaning="times the learning rate, for what decides the attention"
        ),
    },
    # For optimizer.schedule=plateau.
    "plateau": {
        "factor": Setting(0.1, "(0, 1)"),
        "patience": Setting(5, "[1, inf)"),  # optax cuts the rate at every improvement if it is 0
        "min_learning_rate": Setting(1e-6, "[0, inf)"),
    },
    # A new head over a trained network (init_from) may learn alone first: its first steps would spoil the
    # layers below it. Then everything learns, at a learning rate of its own; 0 for the same.
    "stages": {
        "head_epochs": Setting(0, "[0, inf)"),
        "learning_rate": Setting(0.0, "[0, inf)"),
    },
    "mixing": {
        "label_smoothing": Setting(0.0, "[0, 1)"),
        "mixup": Setting(0.0, "[0, inf)"),
        "cutmix": Setting(0.0, "[0, inf)"),
    },
    "early_stopping": {"patience": Setting(10, "[0, inf)", meaning="0 never stops early")},
    # The start from init_from: in a study `config` names the run. See `dyn.interop.warm_start`.
    "start": {
        "config": Setting(""),
        "awake": Setting(True, meaning="equal kernels and attention as initialised"),
        "noise": Setting(
            0.1, "[0, inf)", meaning="by which candidates differ where they are not equal"
        ),
        "freeze": Setting(False),
    },
    # Falls to 1; the warehouse's blend falls from 1 to 0 over the same epochs.
    "temperature": {
        "schedule": Setting("linear", ("linear", "geometric")),
        "start": Setting(30.0, "(0, inf)"),
        "epochs": Setting(10, "[0, inf)"),
    },
    # The losses that layers sow, such as the density of gates; it grows from 0 over the epochs.
    "auxiliary": {
        "weight": Setting(1.0, "[0, inf)"),
        "epochs": Setting(10, "[0, inf)"),
    },
    # A loss for mixtures of kernels; see experiments/tasks/information.py.
    "mixture": {
        "information": Setting(
            0.0, "[0, inf)", meaning="weight of what the mixtures shall tell about the inputs"
        ),
    },
    "input": {
        "threads": Setting(2, "[0, 256]"),
        "workers": Setting(0, "[0, 256]"),
    },
}
_OF_CLASSIFIERS = (
    *("precision", "upsample", "focal", "noise_folder", "noise_share", "noise_snr"),
    *("overlay", "overlay_gain", "negatives"),
)  # of the settings of audio
# Limits of fields that a layer's section may hold. The layers have the defaults.
LAYER_FIELDS = {
    "conv.num_kernels": "[1, 1024]",
    "conv.rotations": "[1, 360]",
    "conv.groups": "[1, 65536]",
    "conv.heads": "[1, 65536]",
    "conv.frequency_axis": "[0, 2]",
    "conv.weight_dropout": "[0, 1)",
    "conv.reduction": "(0, 64]",
    "conv.min_squeeze": "[1, 65536]",
    "conv.latent": "[1, 65536]",
    "conv.pool": "[1, 64]",
    "conv.active": "[1, 1024]",
    "conv.n_steps": "[1, 1000]",
    "conv.cell_ratio": "(0, 64]",
    "conv.in_ratio": "(0, 64]",
    "conv.out_ratio": "(0, 64]",
    "conv.basis_ratio": "(0, 64]",
    "conv.density_weight": "[0, inf)",
    "attention.reduction": "(0, 64]",
    "attention.min_squeeze": "[1, 65536]",
    "attention.kernel_size": "[1, 63]",
    "classifier.latent": "[1, 65536]",
    "classifier.squeezed": "[1, 65536]",
    "classifier.num_kernels": "[1, 1024]",
    "classifier.reduction": "(0, 64]",
    "classifier.min_squeeze": "[1, 65536]",
    "classifier.cell_ratio": "(0, 64]",
    "classifier.in_ratio": "(0, 64]",
    "classifier.out_ratio": "(0, 64]",
    "classifier.basis_ratio": "(0, 64]",
    "head.features": "[1, 65536]",
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """The choices that decide which settings an experiment has."""

    task: str = "classification"
    data: str = "digits"
    network: str = "resnet"
    conv: str = "conv"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Kind":
        """Reads the choices from a config, or from the settings of an old run."""
        return cls(
            task=config.get("task", cls.task),
            data=config.get("data", {}).get("name", cls.data),
            network=config.get("model", {}).get("network", cls.network),
            conv=config.get("conv", {}).get("name", cls.conv),
        )

    @property
    def choices(self) -> dict[str, str]:
        """The choices as settings, by dotted path."""
        names = ("task", "data.name", "model.network", "conv.name")
        return dict(zip(names, dataclasses.astuple(self), strict=True))


def select_settings(kind: Kind) -> dict[str, Setting]:
    """Returns the settings that an experiment has, by dotted path."""
    exists = _list_conditions(kind)
    return {
        path: setting
        for path, setting in list_paths(SECTIONS)
        if exists.get(path, True) and exists.get(path.partition(".")[0], True)
    }


def _list_conditions(kind: Kind) -> dict[str, bool]:
    """Returns whether an experiment has a section or a setting, for those that not all have."""
    sound, series = kind.data == "audio", kind.data == "ucr"
    pixels, objects = kind.task == "segmentation", kind.task == "instance_segmentation"
    resnet, events = kind.network == "resnet", kind.task == "event_detection"
    # DyMN's blocks already have gates and a context.
    takes_attention = resnet or (kind.network in MOBILE_NETWORKS and kind.network != "dymn")
    series_network = kind.network in SERIES_NETWORKS and kind.task == "classification"
    labelled = kind.task in ("classification", "tagging", "segmentation")
    head_of_classes = labelled and not pixels and not series_network
    has_backbone = labelled or objects
    of_sounds = sound and kind.task in ("classification", "tagging")
    return {
        # the data
        "data.variant": kind.data in ("ucr", "tfds", "audio"),
        "data.source": kind.data != "digits",  # which come with scikit-learn
        "data.dir": kind.data != "digits",
        "data.fold": not sound,  # it would divide the windows of a recording
        "data.folds": not sound,
        "data.extra_train": kind.data not in ("ucr", "voc2012", "mask_folder", *INSTANCES)
        and not events,
        "audio": sound,
        **{f"audio.{name}": of_sounds for name in _OF_CLASSIFIERS},
        "spectrogram": sound,
        "image_size": not sound and not series,
        "normalise": not series,
        # Frames need no rule for what is partly in a window, and labels would have to shift, too.
        **dict.fromkeys(
            ("audio.min_overlap", "audio.min_fraction", "spectrogram.shift"), not events
        ),
        # the task
        "gan": kind.task == "acgan",
        "autoencoder": kind.task == "reconstruction",
        "tagging": kind.task == "tagging",
        "events": events,
        "head": pixels,
        "detector": objects,
        "mixing": labelled,
        "mixing.mixup": not pixels,
        "mixing.cutmix": not pixels,
        # the network
        "model": has_backbone,
        "model.depth": resnet,
        "model.max_blocks": kind.network in MOBILE_NETWORKS,
        "model.width": not series_network,
        "model.stem": not series_network,
        "model.dropout": labelled,
        "model.hidden": head_of_classes,
        "model.context": takes_attention,
        "model.representation": takes_attention,
        "model.shortcut": resnet,
        "model.remat": resnet or kind.network in MOBILE_NETWORKS,
        "model.padding": kind.network in EFFICIENTNETS,
        "model.output_stride": pixels,
        "series": series_network,
        "attention": has_backbone and takes_attention,
        "classifier": head_of_classes,
        "stages": head_of_classes,
        # the convolution
        "temperature": kind.conv not in NOT_ANNEALED,
        "auxiliary": kind.conv == "gated",
        "mixture": kind.conv in MIXTURES and labelled and not series_network,
        "optimizer.attention_rate": kind.conv not in NOT_ATTENTIVE,
    }


def list_paths(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the dotted path and the value of each setting."""
    for name, value in settings.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from ((f"{name}.{below}", setting) for below, setting in list_paths(value))
        else:
            yield name, value
