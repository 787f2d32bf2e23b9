"""From a config to a network: which convolution, which depth."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from dyn import layers, models
from experiments.errors import UserError, nearest

CONVS = {"conv": nn.Conv, "odconv": layers.ODConv}
RESNETS = {
    10: partial(models.ResNet, stage_sizes=(1, 1, 1, 1), block=models.BasicBlock),
    18: models.ResNet18,
    34: models.ResNet34,
    50: models.ResNet50,
}


def make_resnet(config: ConfigDict, num_classes: int, spatial_axes: int) -> nn.Module:
    """The residual network that `config.model` and `config.conv` describe.

    Raises:
        UserError: for a convolution, a field of it, a depth or a stem that does not exist.
    """
    if config.model.depth not in RESNETS:
        raise UserError(
            f"--config.model.depth={config.model.depth}: choose one of {', '.join(map(str, RESNETS))}."
        )
    if config.model.stem not in ("imagenet", "small"):
        raise UserError(f"--config.model.stem={config.model.stem}: choose imagenet or small.")
    return RESNETS[config.model.depth](
        num_classes=num_classes,
        conv=make_conv(config.conv),
        width=config.model.width,
        stem=config.model.stem,
        spatial_axes=spatial_axes,
        dropout=config.model.dropout,
        dtype=jnp.dtype(config.dtype),
    )


def make_conv(config: ConfigDict) -> partial:
    """The convolution that `config.conv` names, with its fields."""
    fields = dict(config)
    name = fields.pop("name")
    if name not in CONVS:
        raise UserError(f"--config.conv.name={name} does not exist{nearest(name, CONVS)}")
    known = [field.name for field in dataclasses.fields(CONVS[name])]
    for field in fields:
        if field not in known:
            raise UserError(
                f"--config.conv.{field}: {name} has no such field{nearest(field, known)}"
            )
    return partial(CONVS[name], **fields)
