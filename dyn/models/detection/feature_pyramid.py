"""Feature pyramid: the features of a backbone's stages, each with what the coarser ones know."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn.layers.fields import CheckedModule
from dyn.ops.sharding import automate_sharding, mesh_axes

Array = jax.Array


class FeaturePyramid(CheckedModule):
    """Levels of equal features, from fine to coarse.

        m_n = lateral_n(C_n) + upsample(m_{n+1}),    P_n = output_n(m_n)

    with a 1x1 convolution `lateral`, a 3x3 convolution `output`, and the nearest feature of the coarser
    level. Coarser levels than the backbone's follow: `extra='pool'` adds one that has every second feature
    of the last, `extra='conv'` two that strided 3x3 convolutions make.

    Lin, Dollár, Girshick, He, Hariharan, Belongie: Feature Pyramid Networks for Object Detection. CVPR 2017.
    https://arxiv.org/abs/1612.03144

    Parameters: `lateral<n>/{kernel,bias}` and `output<n>/{kernel,bias}` from fine to coarse, from 1, and
    `extra1`, `extra2` for 'conv'.

    Attributes:
        features: features of each level.
        extra: 'pool', 'conv' or 'none'.
        dtype: dtype of the convolutions; None for the inputs'.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.models import FeaturePyramid
        >>> stages = [jnp.ones((1, 32 // s, 48 // s, 8 * s)) for s in (1, 2, 4, 8)]
        >>> levels, _ = FeaturePyramid(16).init_with_output(jax.random.key(0), stages)
        >>> [level.shape for level in levels]
        [(1, 32, 48, 16), (1, 16, 24, 16), (1, 8, 12, 16), (1, 4, 6, 16), (1, 2, 3, 16)]
    """

    features: int = 256
    extra: str = "pool"
    dtype: Any = None

    @nn.compact
    def __call__(self, stages: Sequence[Array]) -> tuple[Array, ...]:
        """Returns the levels, `[B, h, w, features]` each.

        Args:
            stages: features `[B, h, w, C]`, from fine to coarse.

        Raises:
            ValueError: for an unknown `extra`.
        """
        if self.extra not in ("pool", "conv", "none"):
            raise ValueError(f"extra={self.extra!r} is unknown: write 'pool', 'conv' or 'none'.")
        init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        fields: dict[str, Any] = {"dtype": self.dtype, "kernel_init": init}
        levels: list[Array] = []
        coarser = None
        for n, stage in reversed(list(enumerate(stages, 1))):
            y = nn.Conv(self.features, (1, 1), **fields, name=f"lateral{n}")(stage)
            coarser = y if coarser is None else y + resize_to_nearest(coarser, y.shape[1:3])
            output = nn.Conv(self.features, (3, 3), padding=1, **fields, name=f"output{n}")
            levels.insert(0, output(coarser))
        if self.extra == "pool":
            levels.append(levels[-1][:, ::2, ::2])
        elif self.extra == "conv":
            for n in (1, 2):
                x = levels[-1] if n == 1 else nn.relu(levels[-1])
                conv = nn.Conv(self.features, (3, 3), 2, padding=1, **fields, name=f"extra{n}")
                levels.append(conv(x))
        return tuple(levels)


def select_stages(stages: Sequence[Array], number: int) -> tuple[Array, ...]:
    """Returns the last features of each size, for the `number` coarsest sizes.

    Args:
        stages: features `[B, h, w, C]` after each stage of a backbone.
        number: number of sizes.

    Raises:
        ValueError: if there are fewer sizes.
    """
    last = {stage.shape[1:3]: stage for stage in stages}
    if len(last) < number:
        raise ValueError(
            f"the pyramid needs features of {number} sizes, and the backbone has "
            f"{', '.join(str(s.shape[1:3]) for s in stages)}: leave output_stride=None, and use pictures of "
            "64 or more pixels."
        )
    return tuple(last.values())[-number:]


def resize_to_nearest(x: Array, size: Sequence[int]) -> Array:
    """Resizes `[B, h, w, C]` to `[B, *size, C]`: row i of n comes from row floor(i h / n)."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(size, x.shape[1:3], strict=True))

    def resize(x: Array) -> Array:
        if tuple(size) == (2 * x.shape[1], 2 * x.shape[2]):  # no gather
            return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return x[:, rows][:, :, columns]

    return automate_sharding(resize, x, axes=mesh_axes(x))
