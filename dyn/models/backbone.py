"""Parts that the networks share: the type of `conv=`, the norm, and the check of the input."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from dyn.layers.norms import BatchNorm

ConvFactory = Callable[..., nn.Module]
"""`conv(features, kernel_size, strides, padding=..., use_bias=..., dtype=..., name=...)`, as `nn.Conv`."""


def make_batch_norm(train: bool, dtype: Any) -> Callable[..., BatchNorm]:
    """Returns a factory of batch norms with torch's momentum and epsilon.

    Args:
        train: whether norms use (and update) the statistics of the batch.
        dtype: dtype of the computation; None for the inputs'.
    """
    return partial(BatchNorm, use_running_average=not train, dtype=dtype)


def check_input(x: jax.Array, spatial_axes: int, stem: str) -> None:
    """Checks the axes of a backbone's input and the name of its stem.

    Raises:
        ValueError: if x is not `[B, *spatial, C]`, or the stem is unknown.
    """
    if x.ndim != spatial_axes + 2:
        raise ValueError(
            f"the network takes [B, *spatial, C] with spatial_axes={spatial_axes}; got shape {x.shape}."
        )
    if stem not in ("imagenet", "small"):
        raise ValueError(f"stem={stem!r} is unknown: write 'imagenet' or 'small'.")
