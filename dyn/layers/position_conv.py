"""The base of the layers that convolve each channel by itself, and the steps that they share."""

import math

import jax
import jax.numpy as jnp

from dyn.layers.convolution import ConvLayer
from dyn.layers.static_conv import Conv
from dyn.ops.positions import convolve_positions_with_geometry
from dyn.ops.sharding import automate_sharding, mesh_axes

Array = jax.Array


class PositionConv(ConvLayer):
    """A convolution of each channel by itself, by a kernel that groups of channels share.

    Such a layer has as many output features as input features. To stand in for any `nn.Conv`, it begins with
    a pointwise convolution, the submodule `project`, if the numbers differ; the papers' layers do not. Of
    `nn.Conv`'s fields, `kernel_init` and `feature_group_count` are those of that convolution.
    """

    def project_inputs(self, x: Array) -> Array:
        """Returns `[B, *spatial, features]` of the flat inputs, in the dtype of the convolution.

        Raises:
            ValueError: if the groups do not divide the features, or for a mask.
        """
        size = self.kernel_shape(x)[:-2]
        if self.mask is not None:
            raise ValueError(
                f"mask has no kernel to hide weights of: {type(self).__name__} makes one for each position "
                "and convolves each channel by itself. Use another layer if positions must stay hidden, or "
                "padding='CAUSAL' for later ones."
            )
        x = x.astype(self.conv_dtype(x))
        if x.shape[-1] == self.features:
            return x
        return Conv(
            self.features,
            (1,) * len(size),
            feature_group_count=self.feature_group_count,
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            kernel_init=self.kernel_init,
            name="project",
        )(x)

    def count_groups(self, field: str, number: int | None, default: int) -> int:
        """Returns the number of groups of channels that share a kernel.

        Args:
            field: name of the layer's field.
            number: its value; None for the largest number that divides the features, up to the default.
            default: that limit.

        Raises:
            ValueError: if the number does not divide the features.
        """
        if number is None:
            return next(n for n in range(max(1, default), 0, -1) if self.features % n == 0)
        if number < 1 or self.features % number:
            raise ValueError(
                f"{field}={number} must divide the {self.features} features; leave it out for a number that "
                "does."
            )
        return number

    def convolve_positions(
        self, x: Array, kernels: Array, scale: Array | None = None, shift: Array | None = None
    ) -> Array:
        """Computes `dyn.ops.convolve_positions` with the layer's strides, padding and dilation.

        Args:
            x: `[B, *spatial, features]`.
            kernels: `[B, *out, *k, G]`, or `[B, *k, G]` for the same kernel everywhere.
            scale, shift: `[B, *k, features]` or None.
        """
        geometry = self.resolve_geometry(x)
        if kernels.ndim == geometry.rank + 2:

            def repeat(kernels: Array, x: Array) -> Array:
                del x
                ones = (1,) * geometry.rank
                kernels = kernels.reshape(kernels.shape[0], *ones, *kernels.shape[1:])
                shape = (kernels.shape[0], *geometry.out, *geometry.size, kernels.shape[-1])
                return jnp.broadcast_to(kernels, shape)

            kernels = automate_sharding(repeat, kernels, x)
        return convolve_positions_with_geometry(x, kernels, scale, shift, geometry)


def arrange_taps(flat: Array, groups: int, size: tuple[int, ...]) -> Array:
    """Arranges the taps of each group, one group after another as in the papers' code.

    Args:
        flat: `[..., G T]`, the T taps of the first group first.
        groups: G.
        size: kernel size.

    Returns:
        `[..., *k, G]`.
    """

    def arrange(flat: Array) -> Array:
        kernels = flat.reshape(*flat.shape[:-1], groups, math.prod(size))
        kernels = jnp.swapaxes(kernels, -1, -2)
        return kernels.reshape(*flat.shape[:-1], *size, groups)

    return automate_sharding(arrange, flat, axes=mesh_axes(flat)[:-1])
