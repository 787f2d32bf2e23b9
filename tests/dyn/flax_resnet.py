"""The ResNet of flax's ImageNet example, which knows nothing of dynamic convolutions, and its training."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from layer_cases import filled, random_input


class ResNetBlock(nn.Module):
    filters: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x):
        residual = x
        y = self.conv(self.filters, (3, 3), self.strides)(x)
        y = nn.relu(self.norm()(y))
        y = self.conv(self.filters, (3, 3))(y)
        y = self.norm(scale_init=nn.initializers.zeros_init())(y)
        if residual.shape != y.shape:
            residual = self.conv(self.filters, (1, 1), self.strides, name="conv_proj")(residual)
            residual = self.norm(name="norm_proj")(residual)
        return nn.relu(residual + y)


class ResNet(nn.Module):
    """Stem, one block and classifier, in the pattern of flax's ImageNet example."""

    conv: Callable[..., nn.Module] = nn.Conv
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = True):
        conv = partial(self.conv, use_bias=False, dtype=self.dtype)
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        x = conv(8, (3, 3), (2, 2), padding=[(1, 1), (1, 1)], name="conv_init")(x)
        x = nn.relu(norm(name="bn_init")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        x = ResNetBlock(16, strides=(2, 2), conv=conv, norm=norm)(x)
        x = nn.Dense(5, dtype=self.dtype)(jnp.mean(x, axis=(1, 2)))
        return jnp.asarray(x, self.dtype)


def assert_trains_inside_flax_resnet(case):
    """Asserts that a train step in bfloat16 has finite gradients and updates the statistics."""
    x = random_input(4, 16, 16, 3).astype(jnp.bfloat16)
    net = ResNet(conv=case.make, dtype=jnp.bfloat16)
    variables = filled(net, x)
    kind = type(case.layer()).__name__
    convolutions = {"conv_init", f"{kind}_0", f"{kind}_1", "conv_proj"}
    params = variables["params"]
    assert convolutions < set(params) | set(params["ResNetBlock_0"])

    @jax.jit
    def train_step(variables):
        def loss(params):
            logits, state = net.apply(
                {**variables, "params": params}, x, mutable=["batch_stats", "intermediates"]
            )
            return jnp.mean(nn.log_softmax(logits.astype(jnp.float32))[:, 0]), state

        return jax.grad(loss, has_aux=True)(variables["params"])

    # flax's BatchNorm does not run in bfloat16 under strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        gradients, state = train_step(variables)
        logits = jax.eval_shape(partial(net.apply, train=False), variables, x)
    assert logits.dtype == jnp.bfloat16
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    # Each layer sowed its decision; a pointwise kernel may have none.
    sown = state["intermediates"]
    assert convolutions <= set(sown) | set(sown["ResNetBlock_0"]) | {"conv_proj"}
    # Only the mutable collection tells layers that this is training.
    if case.statistics:
        after, before = (v["batch_stats"]["conv_init"] for v in (state, variables))
        for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
            assert not np.array_equal(new, old)
