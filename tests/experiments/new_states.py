"""States with random or with torch's weights, without a training run."""

import json
from pathlib import Path

import jax
import numpy as np
import torch_numbers
from finished_runs import random_variables

from experiments.train.initialise import initialise_from, read_trained_weights
from experiments.train.step import TrainState

INPUTS = np.zeros((8, 8, 1), np.float32)
ODCONV = {"name": "odconv", "num_kernels": 2}
TORCH = json.loads(Path(torch_numbers.__file__).with_name("torch_references.json").read_text())
LIKE_TORCH = {"model.depth": 18, "model.width": 8, "model.stem": "imagenet"}


def new_state(config, num_classes, inputs=INPUTS, seed=0, scale=1.0):
    _, variables = random_variables(config, range(num_classes), inputs.shape, seed)
    variables = jax.tree.map(lambda x: x * np.float32(scale), variables)
    nothing = dict.fromkeys(
        ("step", "attention", "opt_state", "plateau", "loss_scale", "failed", "rng")
    )
    return TrainState(
        **nothing,
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        average={},
    )


def start_from(source, config, num_classes, inputs=INPUTS, scale=1.0):
    """Returns a new state, that state with the weights of `source`, and the sentence about them."""
    config.init_from = str(source)
    new = new_state(config, num_classes, inputs, scale=scale)
    trained = read_trained_weights(config, num_classes, inputs)
    return new, *initialise_from(new, trained, config, num_classes, inputs)


def weights_of(name):
    return {key: torch_numbers.weight(key, shape) for key, shape in TORCH[name]["shapes"].items()}
