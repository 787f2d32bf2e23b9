"""Changes of the settings' defaults: by each data set, by the strong recipe and by a smoke run."""

from typing import Any

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

PICTURES = {"image_size": 64, "augment": "crop_flip"}
MASKS = {"task": "segmentation", "augment": "affine_crop", "normalise": IMAGENET, "batch_size": 8}

# From scratch with group norms. Gradients of a detector's first steps are large.
OBJECTS = {
    **MASKS,
    "task": "instance_segmentation",
    "augment": "scale_jitter",
    "optimizer": {
        "name": "adamw",
        "weight_decay": 1e-4,
        "schedule": "cosine",
        "warmup_epochs": 1.0,
        "clip": 5.0,
    },
    "early_stopping": {"patience": 0},
}

# Only the changes of settings that an experiment has are made.
DATASETS: dict[str, dict[str, Any]] = {
    # 1,797 pictures of 8x8: a network a quarter as wide, pictures that are turned and shifted slightly, and
    # an end within two minutes on two cores.
    "digits": {
        "data": {"name": "digits"},
        "model": {"width": 16, "stem": "small"},
        "augment": "affine",
        "epochs": 20,
        "optimizer": {"learning_rate": 3e-3, "schedule": "cosine"},
        "early_stopping": {"patience": 0},
        # In so few steps a linear schedule sharpens attention only at its end, and accuracy drops.
        "temperature": {"schedule": "geometric"},
    },
    "tiny_imagenet": {"data": {"name": "tiny_imagenet"}, **PICTURES, "normalise": IMAGENET},
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
    "folder": {"data": {"name": "folder"}, **PICTURES, "normalise": IMAGENET},
    "tfds": {"data": {"name": "tfds"}, **PICTURES},
    "voc2012": {"data": {"name": "voc2012"}, "image_size": 512, **MASKS},
    "mask_folder": {"data": {"name": "mask_folder"}, "image_size": 256, **MASKS},
    "voc2012_instances": {"data": {"name": "voc2012_instances"}, "image_size": 512, **OBJECTS},
    "mask_folder_instances": {
        "data": {"name": "mask_folder_instances"},
        "image_size": 256,
        "detector": {"size": "small"},
        **OBJECTS,
    },
    "coco_folder": {"data": {"name": "coco_folder"}, "image_size": 512, **OBJECTS},
    # Windows of recordings, as spectrograms. Recordings are few, so validation and test take their share of
    # each class, and many in a collection may be damaged.
    "audio": {
        "data": {"name": "audio", "validation": 0.2, "test": 0.2, "max_skipped": 0.5},
        "augment": "spectrogram",
        "mixing": {"mixup": 0.2},
        "epochs": 40,
    },
}
# Names for one set of a family: the family, and further changes. Adiac's series are outlines. Songs are made
# up, so that there is sound on any machine, and the tables beside them are complete.
ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "adiac": ("ucr", {"data": {"variant": "Adiac"}, "augment": "cyclic"}),
    "songs": ("audio", {"data": {"variant": "songs"}, "audio": {"exhaustive": True}}),
}
# The recipe for the best accuracy.
STRONG: dict[str, Any] = {
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
# A run of seconds, most of them compilation.
SMOKE: dict[str, Any] = {
    "data": {"limit": 64},
    "model": {"depth": 6, "max_blocks": 1, "width": 8},
    "batch_size": 16,
    "epochs": 2,
    "log_every": 1,
}
# A detector needs four stages, and compiles for longer than it runs.
SMOKE_OBJECTS: dict[str, Any] = {
    "data": {"limit": 8},
    "model": {"depth": 10},
    "detector": {"size": "small", "objects": 8},
    "image_size": 64,
    "batch_size": 4,
}
