"""The catalogue of layers, with variables and inputs for their tests."""

import ast
import dataclasses
import functools
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn import layers
from dyn.layers.dcd_conv import bin_averages


def init_shapes(layer, *args):
    """Returns the shapes of a layer's variables."""
    # flax's norms cannot compute statistics in float64 or bfloat16 under strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        return jax.eval_shape(layer.init, jax.random.key(0), *args)


def filled(layer, *args, scale=0.3, seed=0, dtype=np.float32):
    """Returns random variables of a layer, of which none is zero or one by initialisation.

    They are made from shapes, so that no initialiser has to be compiled. Only the blend of a
    `WarehouseConv` is zero, as in trained layers.
    """
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        values = scale * rng.standard_normal(leaf.shape)
        match path[-1].key:
            case "var" | "scale" | "temperature":
                values = 1 + np.abs(values)
            case "blend":
                values = np.zeros(leaf.shape)
        return np.asarray(values, dtype)

    return jax.tree_util.tree_map_with_path(fill, init_shapes(layer, *args))


def random_input(*shape, seed=1, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def shapes_of(tree):
    """Returns `{"attention/squeeze/kernel": (4, 16), ...}`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(k.key for k in path): leaf.shape for path, leaf in leaves}


def sines(shape, phase, amplitude=0.5, frequency=0.37):
    return amplitude * np.sin(frequency * np.arange(math.prod(shape)) + phase).reshape(shape)


# The catalogue.


def mean_over_space(x):
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer as the tests of the protocol make it, and what the protocol leaves to the method.

    Attributes:
        make: makes the layer.
        args: positional arguments in the usual case.
        shape: shape of the usual input.
        looks_at: computes the default context from the input; None if the layer takes no context.
        temperature: whether it has a temperature.
        statistics: whether it has batch statistics.
    """

    make: Callable[..., nn.Module]
    args: tuple[Any, ...] = (6, (3, 3))
    shape: tuple[int, ...] = (4, 6, 5, 4)
    looks_at: Callable[[jax.Array], jax.Array] | None = mean_over_space
    temperature: bool = False
    statistics: bool = False

    def layer(self, *args, **fields):
        return self.make(*(args or self.args), **fields)


def read_document_layer(name):
    """Returns the class of a layer as the guide to adding a layer shows it."""
    text = (Path(__file__).parents[2] / "docs" / "adding_a_layer.md").read_text(encoding="utf-8")
    example = ast.parse(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1])
    # Its last lines apply the layer, which the tests do.
    kinds = (ast.Import, ast.ImportFrom, ast.ClassDef)
    example.body = [node for node in example.body if isinstance(node, kinds)]
    names = {}
    exec(compile(example, "docs/adding_a_layer.md", "exec"), names)
    return names[name]


BATCH = {"attention_norm": "batch"}  # has statistics, which the default has not
EVERYWHERE = {"min_features": 0, "kernel_sizes": None}  # not a plain convolution for small layers
SMALL_BANDS = {"band_divisors": (2, 4)}  # small pictures have nothing in a third band
CONVOLUTIONS = {
    "ODConv": Case(
        partial(layers.ODConv, num_kernels=2, **BATCH), temperature=True, statistics=True
    ),
    "DynamicConv": Case(partial(layers.DynamicConv, num_kernels=2), temperature=True),
    "CondConv": Case(partial(layers.CondConv, num_kernels=2)),
    "DCDConv": Case(
        layers.DCDConv,
        looks_at=lambda x: bin_averages(x, 2, jnp.dtype(jnp.float32)),
        statistics=True,
    ),
    "WarehouseConv": Case(partial(layers.WarehouseConv, in_ratio=0.5, **BATCH), statistics=True),
    "WarehouseConv, whole cells": Case(
        partial(
            layers.WarehouseConv, in_ratio=0.5, out_ratio=0.5, spatial_partition=False, **BATCH
        ),
        statistics=True,
    ),
    "FDConv": Case(
        partial(layers.FDConv, num_kernels=3, local=False, **EVERYWHERE, **SMALL_BANDS, **BATCH),
        temperature=True,
        statistics=True,
    ),
    "FDConv, local": Case(
        partial(layers.FDConv, num_kernels=3, **EVERYWHERE, **SMALL_BANDS, **BATCH),
        temperature=True,
        statistics=True,
    ),
    "PixelDynamicConv": Case(
        partial(layers.PixelDynamicConv, num_kernels=2), looks_at=lambda x: x, temperature=True
    ),
    "GatedConv, kernels": Case(layers.GatedConv, temperature=True),
    "GatedConv, filters": Case(partial(layers.GatedConv, granularity="filter"), temperature=True),
    "GatedConv, slices": Case(partial(layers.GatedConv, granularity="slice"), temperature=True),
    "RotatedConv, mixture": Case(
        partial(layers.RotatedConv, rotations=3, **BATCH), temperature=True, statistics=True
    ),
    # With one kernel, the context would be ignored.
    "RotatedConv, max": Case(
        partial(layers.RotatedConv, rotations=3, pooling="max", num_kernels=2, **BATCH),
        temperature=True,
        statistics=True,
    ),
    # Their attention looks at each position, like that of `PixelDynamicConv`: see LOCAL.
    "Involution": Case(partial(layers.Involution, groups=2), looks_at=lambda x: x),
    "DecoupledDynamicFilter": Case(
        partial(layers.DecoupledDynamicFilter, heads=2), looks_at=lambda x: x
    ),
    "SequenceDynamicConv": Case(partial(layers.SequenceDynamicConv, heads=2), looks_at=lambda x: x),
    "FrequencyDynamicConv": Case(
        partial(layers.FrequencyDynamicConv, num_kernels=2, **BATCH),
        looks_at=lambda x: x,
        temperature=True,
        statistics=True,
    ),
    "DeformableConv": Case(layers.DeformableConv, looks_at=lambda x: x),
    "SelectiveKernel": Case(
        partial(layers.SelectiveKernel, **BATCH), looks_at=None, statistics=True
    ),
    # The guide promises that its example is a layer like the others.
    "MeanMaxConv": Case(
        read_document_layer("MeanMaxConv"),
        looks_at=lambda x: jnp.concatenate([mean_over_space(x), x.max((1, 2))], axis=-1),
    ),
    "SpectralNormConv": Case(
        partial(layers.SpectralNormConv, num_kernels=2), temperature=True, statistics=True
    ),
}

# Layers whose context may differ between positions.
LOCAL = (
    "PixelDynamicConv",
    "Involution",
    "DecoupledDynamicFilter",
    "SequenceDynamicConv",
    "FrequencyDynamicConv",
    "DeformableConv",
)
# Those among them that convolve each channel by itself, by no mixture of candidates.
POSITIONS = LOCAL[1:4]


def dense_case(make, **fields):
    """Returns the case of a layer that stands in for `nn.Dense`; it looks at its own input."""
    return Case(make, args=(6,), shape=(4, 9), looks_at=lambda x: x, **fields)


DENSE = {
    "DCDDense": dense_case(partial(layers.DCDDense, latent=3, squeezed=5), statistics=True),
    "DynamicDense": dense_case(partial(layers.DynamicDense, num_kernels=2), temperature=True),
    "CondDense": dense_case(partial(layers.CondDense, num_kernels=2)),
    "WarehouseDense": dense_case(
        partial(layers.WarehouseDense, in_ratio=1 / 3, out_ratio=0.5, **BATCH), statistics=True
    ),
}

LAYERS = {
    **CONVOLUTIONS,
    **DENSE,
    "SqueezeExcite": Case(
        partial(layers.SqueezeExcite, reduction=0.5, spatial_axes=2), args=(), shape=(4, 6, 5, 8)
    ),
    "CBAM": Case(
        partial(layers.CBAM, reduction=0.5, kernel_size=3, spatial_axes=2),
        args=(),
        shape=(4, 6, 5, 8),
        looks_at=None,
        statistics=True,
    ),
    "EfficientChannelAttention": Case(
        partial(layers.EfficientChannelAttention, spatial_axes=2),
        args=(),
        shape=(4, 6, 5, 8),
        looks_at=None,
    ),
    "CoordinateAttention": Case(
        partial(layers.CoordinateAttention, spatial_axes=2, min_squeeze=4, **BATCH),
        args=(),
        shape=(4, 6, 5, 8),
        looks_at=None,
        statistics=True,
    ),
    "DynamicReLU": Case(
        partial(layers.DynamicReLU, reduction=0.5, spatial_axes=2), args=(), shape=(4, 6, 5, 8)
    ),
    "DynamicReLU, positions": Case(
        partial(layers.DynamicReLU, form="C", reduction=0.5, spatial_axes=2),
        args=(),
        shape=(4, 6, 5, 8),
    ),
    "DeformableAggregation": Case(
        partial(layers.DeformableAggregation, kernel_size=(3, 3), groups=2),
        args=(),
        shape=(4, 6, 5, 8),
        looks_at=None,
    ),
    "DeformableAggregation, version 3": Case(
        partial(
            layers.DeformableAggregation,
            kernel_size=(3, 3),
            groups=2,
            version=3,
            scale_center=True,
            remove_center=True,
        ),
        args=(),
        shape=(4, 6, 5, 8),
        looks_at=None,
    ),
}


class Compiled(NamedTuple):
    """The usual case of a layer, compiled lazily and once for all tests of a process.

    Attributes:
        layer: the layer.
        variables: its variables, random.
        x: its input.
        apply: `layer.apply`, compiled.
        train: value and gradient of the parameters, and the new state, compiled: see `compile_training`.
        traces: one entry for each time that `apply` was traced.
    """

    layer: nn.Module
    variables: dict[str, Any]
    x: jax.Array
    apply: Callable[..., Any]
    train: Callable[..., Any]
    traces: list[None]


@functools.cache
def compiled_case(name):
    case, traces = LAYERS[name], []
    layer, x = case.layer(), random_input(*case.shape)

    @jax.jit
    def apply(variables, *args):
        traces.append(None)
        return layer.apply(variables, *args)

    return Compiled(layer, filled(layer, x), x, apply, compile_training(layer), traces)


def compile_training(layer):
    """Compiles `(variables, x) -> (loss, (y, state)), gradient` in training.

    The loss weights the outputs at random: a norm at the end of a layer could keep the sum of their squares
    constant.
    """

    @jax.jit
    def train(variables, x):
        def loss(params):
            mutable = ["batch_stats", "intermediates"]
            y, state = layer.apply({**variables, "params": params}, x, mutable=mutable)
            return jnp.sum(y * random_input(*y.shape, seed=6)), (y, state)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    return train


def trace_strictly(layer, x):
    """Traces initialisation, inference and training where neither ranks nor dtypes may be promoted."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        variables = jax.eval_shape(layer.init, jax.random.key(0), x)
        jax.eval_shape(layer.apply, variables, x)

        def gradient(variables, x):
            def loss(params, x):
                mutable = ["batch_stats", "intermediates", "losses"]
                y, state = layer.apply({**variables, "params": params}, x, mutable=mutable)
                return jnp.sum(y.astype(jnp.float32)), state

            return jax.grad(loss, (0, 1), has_aux=True)(variables["params"], x)

        jax.eval_shape(gradient, variables, x)


def assert_trees_close(got, want, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), got, want)


def assert_learns(gradient):
    """Asserts that all parameters have a finite gradient that is not zero."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, name


def assert_published(layer, variables, x, sums, entries=None):
    """Compares a layer in float64 with published numbers; returns what it sowed.

    Args:
        layer: the layer.
        variables: its variables, NumPy arrays.
        x: its input, a NumPy array.
        sums: the sum of the outputs and of their absolute values, with ten digits after the point.
        entries: the first four outputs in torch's order and the last one, with eight digits.
    """
    with jax.enable_x64(True):
        variables, x = jax.tree.map(jnp.asarray, (variables, x))
        assert shapes_of(variables) == shapes_of(init_shapes(layer, x))
        y, state = jax.jit(partial(layer.apply, mutable=["intermediates"]))(variables, x)
    y = y[0] if isinstance(y, tuple) else y  # a block also returns the state that it carries
    assert y.dtype == np.float64
    # Dense layers have no space, which torch puts behind the features.
    y = np.asarray(y)
    y = np.moveaxis(y, -1, 1).ravel() if y.ndim > 3 else y.ravel()
    np.testing.assert_allclose((y.sum(), np.abs(y).sum()), sums, rtol=0, atol=1e-10)
    if entries is not None:
        np.testing.assert_allclose((*y[:4], y[-1]), entries, rtol=0, atol=6e-9)
    return state.get("intermediates", {})
