"""What all experiments share: the study's recipe, the data sets, and how a config's argument is read.

`--config=experiments/configs/odconv.py:DATASET[,key=value...]` names a data set (default `digits`);
`smoke`, alone or after a data set, asks for a run of seconds. `name=` says which set of the UCR archive
or of the TFDS catalogue is meant, `recipe=strong` asks for what the best accuracy is reached with.
"""

import difflib

from ml_collections import ConfigDict

from experiments.core.errors import UserError

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

# What `recipe=strong` changes of the study's recipe below.
STRONG = {
    "optimizer": {
        "name": "adamw",
        "learning_rate": 1e-3,
        "weight_decay": 0.05,
        "schedule": "cosine",
        "warmup_epochs": 2.0,
        "clip": 1.0,
    },
    "early_stopping": {"patience": 0},
    "mixing": {"label_smoothing": 0.1, "mixup": 0.2, "cutmix": 1.0},
    "average": 0.999,
    "dtype": "bfloat16",
}
# What each data set changes of the recipe below.
DATASETS = {
    # 1,797 pictures of 8x8: a network a quarter as wide, pictures turned and moved a little, and an
    # end within two minutes on two cores.
    "digits": {
        "data": {"name": "digits"},
        "model": {"width": 16, "stem": "small"},
        "augment": "affine",
        "epochs": 20,
        "optimizer": {"learning_rate": 3e-3, "schedule": "cosine"},
        "early_stopping": {"patience": 0},
        # In so few steps a linear schedule sharpens attention all at once at its end, and accuracy drops.
        "temperature": {"schedule": "geometric"},
    },
    "tiny_imagenet": {
        "data": {"name": "tiny_imagenet"},
        "image_size": 64,
        "augment": "crop_flip",
        "normalise": IMAGENET,
    },
    # A few hundred series: more epochs, and all of them used for training.
    "ucr": {
        "data": {"name": "ucr", "validation": 0.0},
        "model": {"width": 16, "stem": "small"},
        "augment": "series",
        "batch_size": 16,
        "epochs": 120,
        "optimizer": {"learning_rate": 2e-3, "schedule": "cosine"},
        "early_stopping": {"patience": 0},
        "temperature": {"schedule": "geometric", "epochs": 40},
    },
    "folder": {
        "data": {"name": "folder"},
        "image_size": 64,
        "augment": "crop_flip",
        "normalise": IMAGENET,
    },
    "voc2012": {
        "task": "segmentation",
        "data": {"name": "voc2012"},
        "image_size": 512,
        "augment": "affine_crop",
        "normalise": IMAGENET,
        "batch_size": 8,
    },
    "mask_folder": {
        "task": "segmentation",
        "data": {"name": "mask_folder"},
        "image_size": 256,
        "augment": "affine_crop",
        "normalise": IMAGENET,
        "batch_size": 8,
    },
    "tfds": {"data": {"name": "tfds"}, "image_size": 64, "augment": "crop_flip"},
    # Windows of recordings, as spectrograms. Recordings are few, so validation and test take their share of
    # each class, and many in a collection may be damaged.
    "audio": {
        "data": {"name": "audio", "validation": 0.2, "test": 0.2, "max_skipped": 0.5},
        "augment": "spectrogram",
        "mixing": {"mixup": 0.2},
        "epochs": 40,
    },
}
# Names of their own for sets within another: what they change of it. Adiac's series are outlines.
# Songs are made up, and all of them are in the tables beside them: sound on any machine at once.
ALIASES = {
    "adiac": ("ucr", {"data": {"variant": "Adiac"}, "augment": "cyclic"}),
    "songs": ("audio", {"data": {"variant": "songs"}, "audio": {"exhaustive": True}}),
}


def get_config(argument: str | None = "", default: str = "digits") -> ConfigDict:
    """The study's recipe on the data set that `argument` names (or `default`), with a static ResNet-18.

    Recipe: Adam at 1e-3, batch 32, 30 epochs, dropout 0.2, the learning rate cut to a tenth after 5
    epochs without a lower validation loss (not below 1e-6), stop after 10. Temperature falls from 30
    to 1 over the first 10 epochs, as in the papers of the dynamic layers.
    """
    config = ConfigDict(
        {
            "name": "",
            "baseline": "base",  # the config that reports compare this one with
            "task": "classification",
            "seed": 0,
            "data": {
                "name": "",
                "variant": "",  # which set of the UCR archive or of the TFDS catalogue
                "source": "",  # where the data lies; '' where it is found or downloaded
                "dir": "",  # where prepared data is kept; '' for ~/.cache/dyn
                "validation": 0.1,  # share of train
                "test": 0.2,  # share, where the set has no test split of its own
                "classes": "",  # names, comma separated; '' for all
                "fold": -1,  # the fold to test on, all splits pooled; -1 for the set's own splits
                "folds": 10,
                "limit": 0,  # at most so many examples a split; 0 for all
                "extra_train": "",  # a folder of more pictures to train on, one folder a class
                "max_skipped": 0.1,  # share of the files; if more cannot be used, the run stops
            },
            # How recordings become pictures, and pictures get their labels: see experiments/data/sounds.py.
            "audio": {
                "sample_rate": 32_000,  # Hz
                "seconds": 2.0,  # of a window
                "hop": 1.0,  # seconds from one window to the next
                "windows": "grid",  # or annotations: one around the middle of each
                "channel": "mean",  # or a number: 0 is the left one
                "pad": "zero",  # what fills a window at the end: or repeat; drop leaves it out
                "picture": "mel",  # or linear, wavelet
                "n_fft": 1024,
                "win": 0,  # samples of a window of the transform; 0 for n_fft
                "step": 320,  # samples from one column to the next
                "bands": 128,  # mel bands, or wavelets
                "low": 0.0,  # Hz
                "high": 0.0,  # Hz; 0 for half the sample rate
                "decibels": 80.0,  # from black to white, which is the loudest of a window
                "drop_dc": False,  # leaves out the lowest row of a linear picture
                "height": 0,  # pixels; 0 as many as come
                "width": 0,
                "colour": "grey",  # or rgb, which is grey three times, or magma
                "labels": "class",  # or multi, none
                "label_pattern": "",  # its first group is a path's label; '' where the folder is
                "annotations": "",  # a CSV; '' for Raven's tables, where there are any
                "label_column": "",  # of Raven's tables and the CSV; '' for the usual ones
                "no_class": ("noise", "background", "silence", "other"),
                "min_overlap": 0.25,  # seconds of an annotation in a window that has its label
                "min_fraction": 0.5,  # or this share of it
                "exhaustive": False,  # whether what is not annotated is not there
                "group_pattern": "",  # recordings with one first group are not divided: '' for each its own
                "splits": "",  # a CSV with the columns file and split, instead of shares
            },
            # What augment=spectrogram does, each as far as a draw up to this.
            "spectrogram": {
                "masks": 2,  # of time, and as many of frequency
                "mask_share": 0.15,  # of the picture's side, each
                "noise": 20.0,  # decibels below the loudest, at most; 0 for none
                "gain": 6.0,  # decibels up or down
                "shift": 0.1,  # share of the window, around its end
            },
            "image_size": 0,  # pixels; 0 leaves pictures as they are
            "augment": "none",
            "normalise": {"mean": (0.5,), "std": (0.25,)},
            # Each of the three takes the fields of its layer beside the name.
            "conv": {"name": "conv"},  # in the blocks
            "attention": {"name": "none"},  # behind the last norm of a block
            "classifier": {"name": "dense"},
            # Of labels that an example may have several of: what the loss is divided by, all entries or those
            # that are known; and how probable a label is that is said to be there.
            "tagging": {"norm": "all", "threshold": 0.5},
            "head": {"name": "fcn"},  # of a segmentation network; or deeplabv3plus
            "model": {
                "network": "resnet",  # or vgg16, mobilenet_v2; or net1, net2 for series, with `series`
                "depth": 18,
                "width": 64,  # at which each network is as published
                "stem": "imagenet",
                "dropout": 0.2,
                "hidden": 0,  # size of a hidden layer in front of the classifier; 0 for the network's own end
                "context": "input",  # what attention looks at; see dyn.models.ResNet
                "representation": 64,  # size of a carried context
                "output_stride": 16,  # of a segmentation network's backbone
                "shortcut": "static",  # or conv: the shortcuts' 1x1 convolutions are dynamic too
            },
            "series": {
                "features": 64,
                "kernel_size": 9,
                "pool": 2,
                "hidden": 0,
                "norm": False,
                "context": "input",  # or series
                "bins": 16,
            },
            # Of a GAN, whose generator convolves with `conv`; see dyn.models.ACGAN.
            "gan": {
                "latent": 100,  # size of the noise
                "widths": (128, 64, 32, 16),
                "cbam_reduction": 8.0,
                "aux_on_fake": True,  # whether the discriminator learns the class of what is generated
                "discriminator_dropout": 0.0,
                "discriminator_rate": 1.0,  # its learning rate, as a multiple of the generator's
                "diff_augment": False,  # rolls and cuts all that the discriminator sees
            },
            # Of task=reconstruction; see dyn.models.Autoencoder.
            "autoencoder": {
                "widths": (64, 128, 256, 6),  # features of each level; the last is the code's
                "pooling": "implicit",  # or explicit
                "window": 4,  # of explicit pooling, or 2
                "code_activation": "relu",  # or none
                "norm": True,
            },
            "dtype": "float32",
            # What the loss is multiplied by for its gradients. float16 wants 65536.0, growing every 2000
            # steps: gradients that overflow are left out, and it is halved.
            "loss_scale": {"start": 1.0, "grow_every": 0},  # 0 steps: it stays what it is
            "optimizer": {
                "name": "adam",
                "learning_rate": 1e-3,
                "weight_decay": 0.0,
                "schedule": "plateau",  # or cosine, decades, constant
                "warmup_epochs": 0.0,
                "clip": 0.0,  # the gradients' norm; 0 for no limit
                "betas": (0.9, 0.999),  # of Adam
            },
            # A head over a trained network (`init_from`) may learn alone first: its first steps would spoil
            # what is below it. Then all learns, at a rate of its own; 0 for the same.
            "stages": {"head_epochs": 0, "learning_rate": 0.0},
            "plateau": {"factor": 0.1, "patience": 5, "min_learning_rate": 1e-6},
            "mixing": {"label_smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0},
            "average": 0.0,  # decay of the moving average of parameters; 0 keeps none
            "early_stopping": {"patience": 10},  # 0 never stops early
            "init_from": "",  # the workdir of another run, or a file of torch's weights, to begin with
            # How: `config` is (in a study) whose run that is, `noise` what candidates differ by.
            "start": {"config": "", "noise": 0.1, "freeze": False},
            "adapt_gates": False,  # only what decides the gates learns; needs a start
            # Falls to 1; the warehouse's blend falls from 1 to 0 over the same epochs.
            "temperature": {"schedule": "linear", "start": 30.0, "epochs": 10},
            # Of the losses that layers sow, such as the density of gates; it grows from 0 over the epochs.
            "auxiliary": {"weight": 1.0, "epochs": 10},
            "batch_size": 32,
            "accumulate": 1,  # microbatches that a batch is cut into, to fit; batch norm sees one at a time
            "shard_parameters": False,  # deals parameters and the optimiser's state out to the devices
            "epochs": 30,
            "evaluate_every": 1,  # epochs
            "steps": 0,  # ends earlier than the epochs would; 0 for no limit
            "log_every": 10,  # steps
            "checkpoint_every": 200,  # steps; also after each evaluation
            "input": {"threads": 2, "workers": 0},
            "tensorboard": False,
            "wandb": "",  # a project of Weights & Biases; '' for none
        }
    )
    argument, recipe = take(argument, "recipe")
    if recipe not in (None, "study", "strong"):
        raise UserError(f"recipe={recipe}: write study or strong.")
    dataset, keys, smoke = _parse(argument)
    dataset = dataset or default
    config.dataset = dataset if dataset not in ("ucr", "tfds") else keys.get("variant", dataset)
    base, alias = ALIASES.get(dataset, (dataset, {}))
    config.update(DATASETS[base])
    config.update(alias)
    config.data.update(keys)
    if recipe == "strong":
        config.update(STRONG)
        if config.task == "segmentation":  # which mixes no examples
            config.mixing.update({"mixup": 0.0, "cutmix": 0.0})
    if smoke:
        config.dataset += "-smoke"
        config.data.limit = 64
        config.model.depth = 6  # most of a short run is compilation
        config.model.width = 8
        config.batch_size = 16
        config.epochs = 2
        config.log_every = 1
    return config


def sound(argument: str | None) -> str:
    """The data set of a config for sound: a person's own, but a smoke run makes do with made-up songs."""
    return "songs" if "smoke" in (argument or "").split(",") else "audio"


def take(argument: str | None, key: str) -> tuple[str, str | None]:
    """The argument without `key=value`, and the value; None where it is not there."""
    words = (argument or "").split(",")
    rest = [word for word in words if not word.startswith(f"{key}=")]
    values = [word.partition("=")[2] for word in words if word.startswith(f"{key}=")]
    return ",".join(rest), values[-1] if values else None


def _parse(argument: str) -> tuple[str | None, dict[str, str], bool]:
    """Reads `DATASET[,name=...][,smoke]`: (data set, changes of `config.data`, whether it is smoke)."""
    dataset, keys, smoke = None, {}, False
    for word in filter(None, argument.split(",")):
        key, equals, value = word.partition("=")
        if word == "smoke":
            smoke = True
        elif equals and key == "name":
            keys["variant"] = value
        elif not equals and dataset is None and word in (*DATASETS, *ALIASES):
            dataset = word
        else:
            choices = [*DATASETS, *ALIASES, "smoke", "name="]
            near = difflib.get_close_matches(key, choices, n=1)
            raise UserError(
                f"'{word}' in the config's argument ':{argument}' is not understood"
                + (f"; did you mean '{near[0]}'?" if near else ".")
                + f" It is DATASET[,name=NAME][,smoke], the data set one of {', '.join(choices[:-2])}."
                + " Other settings are flags of their own, such as --config.epochs=5."
            )
    return dataset, keys, smoke
