"""Makes the equal-parameter control of a study: a static network as large as its largest dynamic one."""

from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from dyn.diagnostics import count_parameters
from experiments.core.errors import UserError
from experiments.tasks import make_task

# A control is worth its time if the largest network has this many times the parameters of the static one.
MIN_RATIO = 1.2


def make_control(configs: Sequence[ConfigDict]) -> ConfigDict | None:
    """Returns the first static config, widened to as many parameters as the largest config.

    Returns None if no config is static, or if the static one is nearly as large as the largest.
    """
    static = next(filter(_is_static, configs), None)
    if static is None:
        return None
    target = max(map(count_config_parameters, configs))
    if target < MIN_RATIO * count_config_parameters(static):
        return None
    # Bisection for the narrowest network with at least as many parameters.
    low, high = static.model.width, 16 * static.model.width
    while low < high:
        middle = (low + high) // 2
        if count_config_parameters(widen(static, middle)) >= target:
            high = middle
        else:
            low = middle + 1
    return widen(static, low)


def _is_static(config: ConfigDict) -> bool:
    # Configs without `attention` are of networks whose width is not `config.model.width`.
    return config.conv.name == "conv" and "attention" in config and config.attention.name == "none"


def widen(config: ConfigDict, width: int) -> ConfigDict:
    """Returns a copy with another width, which its name tells."""
    wide = config.copy_and_resolve_references()
    with wide.unlocked():
        wide.model.width, wide.name = width, f"{config.name}_w{width}"
    return wide


def count_config_parameters(config: ConfigDict) -> int:
    """Returns the number of parameters of a config's network for ten classes, computed from shapes."""
    is_series = config.data.name == "ucr"
    model = make_task(config).make_model(num_classes=10, spatial_axes=1 if is_series else 2)
    # The number of parameters does not depend on the size of the example.
    shape = (2, 64, 1) if is_series else (2, 64, 64, 3)
    example = jax.ShapeDtypeStruct(shape, np.float32)
    try:
        shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), example)
    except ValueError as error:
        raise UserError(f"The network of {config.name} cannot be built: {error}") from error
    return count_parameters(shapes["params"])
