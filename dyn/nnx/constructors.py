"""The constructors of the modules of `dyn.nnx`, in the order of `nnx.Conv`, `nnx.Linear` and `nnx.BatchNorm`.

Each one makes the Linen module, and the smallest inputs that it can be initialised with.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from dyn.nnx.module import FromLinen, Modes

Array = jax.Array


class ConvModule(FromLinen):
    """The base of layers that stand in for `nnx.Conv`, and have the order of its arguments."""

    has_local_context: ClassVar[bool] = False
    """True if a context must have the positions of the inputs."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        context_features: int | None = None,
        rngs: nnx.Rngs,
        **fields: Any,
    ):
        fields = {"kernel_size": kernel_size, "strides": strides, **fields}
        linen, parts = make_linen(type(self), {"features": out_features}, fields)
        self.in_features = in_features
        self.out_features = out_features
        self.context_features = context_features
        size = _list_numbers(kernel_size)
        dilations = _list_numbers(fields.get("kernel_dilation") or 1)
        if len(dilations) == 1:
            dilations *= len(size)
        space = [(k - 1) * d + 1 for k, d in zip(size, dilations, strict=False)]
        inputs = _make_inputs((1, *space, in_features), context_features)
        if self.has_local_context and context_features is not None:
            inputs[1] = jax.ShapeDtypeStruct((1, *space, context_features), jnp.float32)
        self._initialise(linen, inputs, rngs, parts)

    def __call__(
        self, inputs: Array, context: Array | None = None, **modes: Unpack[Modes]
    ) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, *spatial, in_features]`, any number of batch axes.
            context: what attention looks at, if the layer has a context; None for its own.
            modes: see `Modes`.

        Returns:
            `[*batch, *out, out_features]`.

        Raises:
            ValueError: if inputs or context do not fit the layer.
        """
        return self._apply("__call__", _list_inputs(inputs, context), modes)


class DenseModule(FromLinen):
    """The base of layers that stand in for `nnx.Linear`, and have the order of its arguments."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        context_features: int | None = None,
        rngs: nnx.Rngs,
        **fields: Any,
    ):
        linen, parts = make_linen(type(self), {"features": out_features}, fields)
        self.in_features = in_features
        self.out_features = out_features
        self.context_features = context_features
        tokens = (1,) * fields.get("token_axes", 0)
        inputs = _make_inputs((1, *tokens, in_features), context_features)
        self._initialise(linen, inputs, rngs, parts)

    def __call__(
        self, inputs: Array, context: Array | None = None, **modes: Unpack[Modes]
    ) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, *tokens, in_features]`.
            context: what attention looks at, `[*batch, D]`, if the layer has a context; None for its own.
            modes: see `Modes`.

        Returns:
            `[*batch, *tokens, out_features]`.

        Raises:
            ValueError: if inputs or context do not fit the layer.
        """
        return self._apply("__call__", _list_inputs(inputs, context), modes)


class FeatureModule(FromLinen):
    """The base of layers that keep their input's shape, and have the order of `nnx.BatchNorm`'s arguments.

    The parameters of some depend on the number of spatial axes: it is two without `spatial_axes`.
    """

    def __init__(
        self,
        num_features: int,
        *,
        context_features: int | None = None,
        rngs: nnx.Rngs,
        **fields: Any,
    ):
        linen, parts = make_linen(type(self), {}, fields)
        self.num_features = num_features
        self.context_features = context_features
        axes = fields.get("spatial_axes") or 2
        if isinstance(size := fields.get("kernel_size"), Sequence):
            axes = len(size)
        self.spatial_axes = axes
        inputs = _make_inputs((1, *(1,) * axes, num_features), context_features)
        self._initialise(linen, inputs, rngs, parts)

    def __call__(
        self, inputs: Array, context: Array | None = None, **modes: Unpack[Modes]
    ) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, *spatial, num_features]`.
            context: what attention looks at, `[*batch, D]`, if the layer has a context; None for its own.
            modes: see `Modes`.

        Returns:
            An array of the inputs' shape.

        Raises:
            ValueError: if inputs or context do not fit the layer.
        """
        return self._apply("__call__", _list_inputs(inputs, context), modes)


class NetworkModule(FromLinen):
    """The base of networks: the number of input features, and the fields of the Linen network by keyword.

    A factory among the fields, such as `conv=`, may make layers of `dyn.nnx` or of `dyn.layers`, which are
    the same.
    """

    spatial_axes: ClassVar[int] = 2
    """Number of spatial axes of the inputs, for networks without a field of that name."""

    def __init__(
        self,
        in_features: int,
        *,
        spatial_shape: Sequence[int] | None = None,
        rngs: nnx.Rngs,
        **fields: Any,
    ):
        linen, parts = make_linen(type(self), {}, fields)
        self.in_features = in_features
        if spatial_shape is None:
            spatial_shape = (32,) * getattr(linen, "spatial_axes", self.spatial_axes)
        self.spatial_shape = tuple(spatial_shape)
        self._initialise(linen, _make_inputs((1, *spatial_shape, in_features)), rngs, parts)

    def __call__(self, x: Array, head_only: bool = False, **modes: Unpack[Modes]) -> Any:
        """Applies the network.

        Args:
            x: `[B, *spatial, in_features]`.
            head_only: whether only `head` trains, in networks that have this.
            modes: see `Modes`.
        """
        named = {"head_only": True} if head_only else {}
        return self._apply("__call__", (x,), {**named, **modes})


def make_linen(
    cls: type[FromLinen], sizes: Mapping[str, Any], fields: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, FromLinen]]:
    """Makes the Linen module of a class.

    Args:
        cls: a class that was made from a Linen class.
        sizes: fields of the Linen class that are called otherwise here.
        fields: its other fields. Modules, layers and factories of `dyn.nnx` stand for those of Linen.

    Returns:
        The Linen module, and the modules among the fields.

    Raises:
        TypeError: for a field that Linen does not have, or a class without a Linen class.
        ValueError: for a value that Linen does not take.
    """
    if cls.make_linen is None:
        raise TypeError(
            f"{cls.__name__} has no Linen class: write class {cls.__name__}(..., linen=...)."
        )
    if "features" in sizes.keys() & fields.keys():
        raise TypeError(f"{cls.__name__} has no field features: write out_features.")
    parts = {name: value for name, value in fields.items() if isinstance(value, FromLinen)}
    values = {name: translate_value(name, value) for name, value in fields.items()}
    return cls.make_linen(**sizes, **values, parent=None), parts


def translate_value(name: str, value: Any) -> Any:
    """Returns what stands in Linen for a field's value.

    Args:
        name: of the field, for the error message.
        value: any value; layers of `dyn.nnx`, and partials of them, become those of `dyn.layers`.

    Raises:
        ValueError: for another class of NNX modules, or a module of it, and for a module in a partial.
    """
    if isinstance(value, FromLinen):
        return value.linen
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, partial):
        for key, one in [*enumerate(value.args), *value.keywords.items()]:
            if isinstance(one, FromLinen):
                raise ValueError(
                    f"{name}: the argument {key} of a partial is a module, {type(one).__name__}, whose "
                    "variables would not be used: write a module of Linen there, such as "
                    f"{type(one.linen).__name__}(...), or pass yours to the layer itself."
                )
        keywords = {key: translate_value(key, one) for key, one in value.keywords.items()}
        return EqualPartial(translate_value(name, value.func), *value.args, **keywords)
    kind = value if isinstance(value, type) else type(value)
    if not issubclass(kind, nnx.Module):
        return value
    if not issubclass(kind, FromLinen) or kind.make_linen is None:
        raise ValueError(
            f"{name}={kind.__name__} cannot become a part of a Linen module: write a layer of dyn.nnx or "
            "dyn.layers, or FromLinen(...) with a module of flax.linen."
        )
    return kind.make_linen


class EqualPartial(partial):
    """A `partial` that equals one with the same arguments, so that equal networks compile once."""

    def __eq__(self, other: object) -> bool:
        """Compares function and arguments."""
        if not isinstance(other, EqualPartial):
            return NotImplemented
        return (self.func, self.args, self.keywords) == (other.func, other.args, other.keywords)

    def __hash__(self) -> int:
        """Returns a number that is equal for equal partials."""
        return hash((self.func, self.args, frozenset(self.keywords)))


def _list_numbers(numbers: int | Sequence[int]) -> list[int]:
    return list(numbers) if isinstance(numbers, Sequence) else [numbers]


def _make_inputs(
    shape: Sequence[int], context_features: int | None = None
) -> list[jax.ShapeDtypeStruct]:
    """Returns the shapes of the inputs, and of a context of one sample if it has features."""
    shapes = [tuple(shape)] if context_features is None else [tuple(shape), (1, context_features)]
    return [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]


def _list_inputs(inputs: Array, context: Array | None) -> tuple[Array, ...]:
    return (inputs,) if context is None else (inputs, context)
