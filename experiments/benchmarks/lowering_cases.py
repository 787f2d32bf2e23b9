"""The layers that the lowerings of the dynamic convolution are compared on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dyn.ops.dynamic_conv import check_arguments, dynamic_conv
from dyn.ops.geometry import Geometry, Problem, resolve_geometry

PHASES = ("forward", "training")


class Case(NamedTuple):
    """One layer.

    With 0 kernels it is a static convolution. Otherwise kernels larger than 1x1 also have tap attention,
    unless the mixture is pixel-wise.
    """

    batch: int
    spatial: tuple[int, ...]
    inputs: int
    outputs: int
    size: int
    stride: int
    groups: int
    kernels: int
    pixelwise: bool = False
    dtype: str = "float32"

    def __str__(self) -> str:
        places = "x".join(map(str, self.spatial))
        name = f"{self.batch} x {places}, {self.inputs}-{self.outputs}, k{self.size}"
        name += f" s{self.stride}" if self.stride > 1 else ""
        if self.groups > 1:
            name += " depthwise" if self.groups == self.inputs else f" g{self.groups}"
        name += " pixels" if self.pixelwise else ""
        return name + (f", K{self.kernels}" if self.kernels else ", static")

    @property
    def tap_attention(self) -> bool:
        """True if the taps of the kernel are weighted."""
        return self.kernels > 0 and self.size > 1 and not self.pixelwise

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `dynamic_conv` that say how the kernel slides."""
        sliding = {"strides": self.stride, "padding": self.size // 2}
        return {**sliding, "feature_group_count": self.groups}

    def make_arrays(self) -> tuple[Any, ...]:
        """Returns `(inputs, kernels, mix or None, taps or None)`."""
        dtype, rank = jnp.dtype(self.dtype), len(self.spatial)
        size, number = (self.size,) * rank, max(1, self.kernels)
        keys = jax.random.split(jax.random.key(0), 4)
        x = jax.random.normal(keys[0], (self.batch, *self.spatial, self.inputs), dtype)
        w = (number, *size, self.inputs // self.groups, self.outputs)
        w = jax.random.normal(keys[1], w) / (self.size**rank * self.inputs / self.groups) ** 0.5
        mix = taps = None
        if self.kernels > 1:
            places = self.geometry.out if self.pixelwise else ()
            mix = jax.nn.softmax(jax.random.normal(keys[2], (self.batch, *places, number)))
        if self.tap_attention:
            taps = jax.nn.sigmoid(jax.random.normal(keys[3], (self.batch, *size)))
        return x, w, mix, taps

    @property
    def geometry(self) -> Geometry:
        """The geometry of the convolution."""
        size = (self.size,) * len(self.spatial)
        return resolve_geometry(self.spatial, size, self.stride, self.size // 2, groups=self.groups)

    @property
    def problem(self) -> Problem:
        """The case, as the planner sees it."""
        x, w, mix, taps = jax.eval_shape(self.make_arrays)
        return check_arguments(x, w, mix, taps, self.geometry)


def square(batch: int, side: int, *rest: int) -> Case:
    """Returns a case with square pictures."""
    return Case(batch, (side, side), *rest)


def list_cases() -> list[Case]:
    """Returns all cases."""
    dynamic = [
        # ResNet-18's stages at 224 pixels
        *(square(16, 56, 64, 64, 3, 1, 1, k) for k in (1, 4)),
        *(square(16, 28, 128, 128, 3, 1, 1, k) for k in (1, 4, 8)),
        *(square(16, 14, 256, 256, 3, 1, 1, k) for k in (1, 4, 8)),
        *(square(16, 7, 512, 512, 3, 1, 1, k) for k in (1, 4)),
        *(square(1, side, f, f, 3, 1, 1, 4) for side, f in ((56, 64), (14, 256), (7, 512))),
        *(square(8, side, f, f, 3, 1, 1, 4) for side, f in ((28, 128), (7, 512))),
        # at 64 and at 32 pixels
        *(square(32, 16, 64, 64, 3, 1, 1, k) for k in (1, 4)),
        *(square(32, 8, 128, 128, 3, 1, 1, k) for k in (1, 4, 8)),
        *(square(32, 4, 256, 256, 3, 1, 1, k) for k in (1, 4, 8)),
        *(square(32, 2, 512, 512, 3, 1, 1, k) for k in (1, 4)),
        *(square(128, side, f, f, 3, 1, 1, 4) for side, f in ((16, 64), (8, 128), (4, 256))),
        square(1, 4, 256, 256, 3, 1, 1, 4),
        square(32, 32, 64, 64, 3, 1, 1, 4),
        # narrow networks
        *(square(32, side, f, f, 3, 1, 1, 4) for side, f in ((8, 16), (4, 32), (2, 64))),
        # strided
        *(square(16, side, f, 2 * f, 3, 2, 1, 4) for side, f in ((56, 64), (28, 128), (14, 256))),
        *(square(32, side, f, 2 * f, 3, 2, 1, 4) for side, f in ((16, 64), (8, 128), (4, 256))),
        *(square(32, side, f, 2 * f, 3, 2, 1, 1) for side, f in ((8, 128), (4, 256))),
        # 1x1
        square(16, 56, 64, 256, 1, 1, 1, 4),
        square(32, 14, 256, 256, 1, 1, 1, 4),
        square(32, 4, 512, 512, 1, 1, 1, 4),
        square(32, 28, 128, 256, 1, 2, 1, 4),
        # series
        Case(32, (176,), 64, 64, 3, 1, 1, 4),
        Case(32, (44,), 128, 128, 3, 1, 1, 4),
        Case(16, (22,), 256, 256, 3, 1, 1, 4),
        Case(16, (176,), 16, 16, 3, 1, 1, 4),
        # grouped and depthwise
        square(32, 14, 256, 256, 3, 1, 32, 4),
        *(square(32, 28, 128, 128, 3, 1, 128, k) for k in (1, 4)),
        square(32, 7, 512, 512, 3, 1, 512, 4),
        # pixel-wise
        *(square(16, 56 * 64 // f, f, f, 3, 1, 1, 4, True) for f in (64, 128, 256, 512)),
        *(square(32, 16 * 64 // f, f, f, 3, 1, 1, 4, True) for f in (64, 256)),
    ]
    static = [
        *(square(16, 56 * 64 // f, f, f, 3, 1, 1, 0) for f in (64, 128, 256, 512)),
        *(square(32, 16 * 64 // f, f, f, 3, 1, 1, 0) for f in (64, 128, 256, 512)),
        *(square(16, 56 * 64 // f, f, 2 * f, 3, 2, 1, 0) for f in (64, 256)),
        *(square(32, 16 * 64 // f, f, 2 * f, 3, 2, 1, 0) for f in (64, 256)),
        *(square(16, 56 * 64 // f, f, 2 * f, 1, 2, 1, 0) for f in (64, 256)),
        square(16, 56, 64, 256, 1, 1, 1, 0),
        *(square(batch, side, 3, 64, 7, 2, 1, 0) for batch, side in ((16, 224), (32, 64))),
        Case(32, (176,), 64, 64, 3, 1, 1, 0),
        square(32, 28, 128, 128, 3, 1, 128, 0),
    ]
    return dynamic + static


def make_function(case: Case, lowering: str, phase: str) -> Callable[[Any], Any]:
    """Returns a function of a case's arrays: its outputs, or in 'training' the gradients of their squares."""

    def forward(arrays: Any) -> jax.Array:
        x, w, mix, taps = arrays
        return dynamic_conv(x, w, mix, taps=taps, lowering=lowering, **case.arguments)

    def loss(arrays: Any) -> jax.Array:
        return jnp.sum(forward(arrays).astype(jnp.float32) ** 2)

    return jax.grad(loss) if phase == "training" else forward
