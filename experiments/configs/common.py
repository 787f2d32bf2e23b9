"""The start of every config: the settings of its data set, and the reading of its argument.

`--config=experiments/configs/odconv.py:DATASET[,smoke]` names a data set (default `digits`); `smoke`, alone
or after a data set, asks for a run of seconds. Beside them, `name=` says which set of the UCR archive or of
the TFDS catalogue is meant, and `recipe=strong` asks for the recipe of the best accuracy.
"""

import dataclasses
import difflib
from typing import Any

from ml_collections import ConfigDict

from experiments.configs.shared.assemble import make_config
from experiments.configs.shared.recipes import ALIASES, DATASETS, SMOKE, SMOKE_OBJECTS, STRONG
from experiments.configs.shared.settings import Kind
from experiments.core.errors import UserError

RECIPES = ("study", "strong")


def get_config(
    argument: str | None = "",
    *,
    name: str = "",
    default: str = "digits",
    task: str = "",
    network: str = "resnet",
    conv: dict[str, Any] | None = None,
) -> ConfigDict:
    """Returns Bhati and Sherawat's recipe for a data set, with a static ResNet-18 unless told otherwise.

    The config is locked, and has the settings of this task, data set, network and convolution alone. The
    recipe: Adam at 1e-3, batch 32, 30 epochs, dropout 0.2. The learning rate falls to a tenth after 5
    evaluations (one per epoch) without a lower validation loss, not below 1e-6, and the run stops after 10.
    Temperature falls from 30 to 1 over the first 10 epochs, as in the papers of the dynamic layers.

    Args:
        argument: the config's argument, `DATASET[,name=NAME][,recipe=strong][,smoke]`.
        name: the config's.
        default: the data set where the argument names none; for `audio`, a smoke run takes `songs`.
        task: '' for the data set's own.
        network: see `model.network`; net1 and net2 have settings of their own.
        conv: the convolution, its name and any fields of the layer; None for a static one.
    """
    words = _read_argument(argument or "")
    dataset = words.dataset or default
    if words.smoke and not words.dataset and default == "audio":
        dataset = "songs"  # not everyone has recordings
    if words.variant and dataset not in ("ucr", "tfds"):
        raise UserError(
            f"name={words.variant}: only ucr and tfds have sets with names of their own."
        )
    family, changes = ALIASES.get(dataset, (dataset, {}))
    conv = conv or {"name": "conv"}
    task = task or DATASETS[family].get("task", "classification")
    if family == "ucr" and task not in ("classification", "tagging"):
        raise UserError(f"The task {task} is for pictures, and {dataset} has series.")
    kind = Kind(task, family, network, conv["name"])
    recipes = [DATASETS[family], changes]
    if words.variant:
        recipes.append({"data": {"variant": words.variant}})
    if words.recipe == "strong":
        recipes.append(STRONG)
    if words.smoke:
        recipes.append(SMOKE)
        if task == "instance_segmentation":
            recipes.append(SMOKE_OBJECTS)
    config = make_config(kind, *recipes)
    config.name, config.conv = name, conv
    config.dataset = words.variant or dataset
    if words.smoke:
        config.dataset += "-smoke"
    return config


@dataclasses.dataclass
class _Words:
    """The words of a config's argument."""

    dataset: str = ""
    variant: str = ""
    recipe: str = "study"
    smoke: bool = False


def _read_argument(argument: str) -> _Words:
    """Reads `DATASET[,name=NAME][,recipe=strong][,smoke]`."""
    words = _Words()
    for word in filter(None, argument.split(",")):
        key, equals, value = word.partition("=")
        if word == "smoke":
            words.smoke = True
        elif equals and key == "name":
            words.variant = value
        elif equals and key == "recipe" and value in RECIPES:
            words.recipe = value
        elif not equals and not words.dataset and word in (*DATASETS, *ALIASES):
            words.dataset = word
        else:
            known = [*DATASETS, *ALIASES]
            near = difflib.get_close_matches(key, [*known, "smoke", "name=", "recipe="], n=1)
            raise UserError(
                f"The config's argument ':{argument}' has '{word}', which is unknown"
                + (f"; did you mean '{near[0]}'?" if near else ".")
                + f" It is DATASET[,smoke], with one of the data sets {', '.join(known)}; name=NAME and "
                "recipe=strong may follow. Other settings are flags, such as --config.epochs=5."
            )
    return words
