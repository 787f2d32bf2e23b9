"""ResNets made of flax's own modules alone, as a baseline for the benchmarks."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class FlaxResNet(nn.Module):
    """ResNet-18, or ResNet-50 with bottlenecks, of `nn.Conv` and `nn.max_pool`, without this library."""

    stage_sizes: Sequence[int] = (2, 2, 2, 2)
    bottleneck: bool = False
    num_classes: int = 1000
    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits of pictures `[B, H, W, 3]`."""
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        statistics = {"use_running_average": not train, "momentum": 0.9, "epsilon": 1e-5}
        norm = partial(nn.BatchNorm, **statistics, dtype=self.dtype)
        x = nn.relu(norm()(conv(self.width, (7, 7), 2, padding=3)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.stage_sizes):
            features = self.width * 2**stage
            wide = 4 * features if self.bottleneck else features
            for block in range(blocks):
                strides = 2 if stage and not block else 1
                y = x
                if self.bottleneck:
                    y = nn.relu(norm()(conv(features, (1, 1))(y)))
                y = nn.relu(norm()(conv(features, (3, 3), strides, padding=1)(y)))
                size = 1 if self.bottleneck else 3
                y = norm()(conv(wide, (size, size), padding=size // 2)(y))
                if x.shape != y.shape:
                    x = norm()(conv(wide, (1, 1), strides)(x))
                x = nn.relu(x + y)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x.mean(axis=(1, 2)))


def make_flax_resnet(depth: int, **fields: Any) -> nn.Module:
    """Returns the network of a depth, 18 or 50."""
    if depth == 18:
        return FlaxResNet(**fields)
    return FlaxResNet(stage_sizes=(3, 4, 6, 3), bottleneck=True, **fields)
