"""The layers of `dyn.layers` as NNX modules; their docstrings are made from those of the Linen layers."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from dyn import layers
from dyn.layers import KernelShape
from dyn.nnx.constructors import ConvModule, DenseModule, FeatureModule, make_linen
from dyn.nnx.module import FromLinen, Modes

Array = jax.Array


# Convolutions: ODConv(in_features, out_features, kernel_size, ..., rngs=rngs).
class CondConv(ConvModule, linen=layers.CondConv): ...


class Conv(ConvModule, linen=layers.Conv): ...


class DCDConv(ConvModule, linen=layers.DCDConv): ...


class DecoupledDynamicFilter(ConvModule, linen=layers.DecoupledDynamicFilter): ...


class DeformableConv(ConvModule, linen=layers.DeformableConv):
    has_local_context = True


class DynamicConv(ConvModule, linen=layers.DynamicConv): ...


class FDConv(ConvModule, linen=layers.FDConv): ...


class FrequencyDynamicConv(ConvModule, linen=layers.FrequencyDynamicConv): ...


class GatedConv(ConvModule, linen=layers.GatedConv): ...


class Involution(ConvModule, linen=layers.Involution): ...


class LightweightConv(ConvModule, linen=layers.LightweightConv): ...


class ODConv(ConvModule, linen=layers.ODConv): ...


class PartialFrequencyDynamicConv(ConvModule, linen=layers.PartialFrequencyDynamicConv): ...


class PixelDynamicConv(ConvModule, linen=layers.PixelDynamicConv): ...


class RotatedConv(ConvModule, linen=layers.RotatedConv): ...


class SelectiveKernel(ConvModule, linen=layers.SelectiveKernel): ...


class SequenceDynamicConv(ConvModule, linen=layers.SequenceDynamicConv): ...


class SpectralNormConv(ConvModule, linen=layers.SpectralNormConv): ...


class WarehouseConv(ConvModule, linen=layers.WarehouseConv): ...


# Dense layers: CondDense(in_features, out_features, ..., rngs=rngs).
class CondDense(DenseModule, linen=layers.CondDense): ...


class DCDDense(DenseModule, linen=layers.DCDDense): ...


class DynamicDense(DenseModule, linen=layers.DynamicDense): ...


class SpectralNormDense(DenseModule, linen=layers.SpectralNormDense): ...


class WarehouseDense(DenseModule, linen=layers.WarehouseDense): ...


# Layers that keep the shape of their input: CBAM(num_features, ..., rngs=rngs).
class CBAM(FeatureModule, linen=layers.CBAM): ...


class CoordinateAttention(FeatureModule, linen=layers.CoordinateAttention): ...


class DeformableAggregation(FeatureModule, linen=layers.DeformableAggregation): ...


class DynamicReLU(FeatureModule, linen=layers.DynamicReLU): ...


class EfficientChannelAttention(FeatureModule, linen=layers.EfficientChannelAttention): ...


class SqueezeExcite(FeatureModule, linen=layers.SqueezeExcite): ...


class Warehouse(FromLinen, linen=layers.Warehouse):
    def __init__(self, kernels: Sequence[KernelShape], *, rngs: nnx.Rngs, **fields: Any):
        linen, _ = make_linen(type(self), {"kernels": tuple(kernels)}, fields)
        self._initialise(linen, (), rngs)


class KernelRepresentation(FromLinen, linen=layers.KernelRepresentation):
    def __init__(
        self,
        in_features: Mapping[str, int],
        out_features: int = 64,
        *,
        rngs: nnx.Rngs,
        **fields: Any,
    ):
        linen, _ = make_linen(type(self), {"features": out_features}, fields)
        self.in_features = tuple(in_features.items())
        space = (1,) * fields.get("spatial_axes", 2)
        inputs = [jax.ShapeDtypeStruct((1, *space, n), jnp.float32) for n in in_features.values()]
        self._initialise(linen, inputs, rngs, method=partial(_call_by_name, tuple(in_features)))

    def __call__(
        self, x: Array, state: Array | None = None, *, layer: str, **modes: Unpack[Modes]
    ) -> Array:
        """Updates the state with the input of a layer.

        Args:
            x: the layer's input, `[*batch, *spatial, I]`.
            state: the state of the layer before, `[*batch, d]`; None for the learned initial state.
            layer: name of the layer, one of those in `in_features`.
            modes: see `Modes`.

        Returns:
            The state for this layer, `[*batch, d]`.

        Raises:
            ValueError: for a layer that is not in `in_features`.
        """
        known = dict(self.in_features)
        if layer not in known:
            raise ValueError(
                f"layer={layer!r} is unknown: write it and its input features into in_features={known}."
            )
        return self._apply("__call__", (x, state), {"layer": layer, **modes})


def _call_by_name(names: Sequence[str], linen: nn.Module, *inputs: Array) -> None:
    for name, x in zip(names, inputs, strict=True):
        linen(x, layer=name)
