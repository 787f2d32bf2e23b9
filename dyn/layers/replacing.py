"""Replaces the convolutions of a network that was written without this library.

Flax calls every layer through one place, `nn.intercept_methods`, which is where another layer takes over,
with the scope of the first: parameters keep their place in the tree, and nothing in the network changes.
"""

import dataclasses
import types
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from dyn.layers.convolution import ConvLayer
from dyn.layers.fields import CheckedModule
from dyn.layers.static_conv import Conv

# Fields that a layer cannot take over, because they are functions that compute the convolution.
_OWN_FUNCTIONS = ("promote_dtype", "conv_general_dilated", "conv_general_dilated_cls")
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(nn.Conv)}
_FIELDS = [name for name in _DEFAULTS if name not in (*_OWN_FUNCTIONS, "parent", "name")]


@dataclasses.dataclass(frozen=True)
class Host:
    """Holds a network so that Flax does not make it a part of the module that has it in a field."""

    network: nn.Module

    def bind(self, module: nn.Module) -> Any:
        """Returns a copy of the network that has the variables of a module as its own."""
        assert module.scope is not None
        # A scope in which no name is taken. Layers in the fields of the network are copied, too, as in
        # Flax's own `bind`.
        scope = module.scope.rewound()
        return self.network.clone(parent=scope, name=module.name, _deep_clone=True)


class ReplacedLayers(CheckedModule):
    """A network in which other layers stand in for some of its own.

    It has the variables of the network at the same places (nothing is nested below it), but for the layers
    that are replaced, which have theirs at the place of the old ones. `replace_convs` makes it.

    It is called like the network. Other methods of the network are called by name, as in
    `apply(variables, x, method="encode")`.

    Attributes:
        host: holds the network.
        replace: a function from each layer of the network, with its path, to what makes the layer in its
            place, a function of `parent=` and `name=`; None leaves it. What a new layer is made of is not
            replaced.
    """

    host: Host
    replace: Callable[[nn.Module], Callable[..., nn.Module] | None]

    def __call__(self, *args: Any, **fields: Any) -> Any:
        """Calls the network.

        Raises:
            ValueError: if no layer is replaced at initialisation.
        """
        return self._run("__call__", args, fields)

    def __getattr__(self, name: str) -> Any:
        """Returns another method of the network, which runs with the replaced layers."""
        host = self.__dict__.get("host")
        if (
            host is not None
            and not name.startswith("_")
            and callable(getattr(type(host.network), name, None))
        ):
            return types.MethodType(
                lambda self, *args, **fields: self._run(name, args, fields), self
            )
        return super().__getattr__(name)

    @nn.compact
    def _run(self, method: str, args: tuple[Any, ...], fields: dict[str, Any]) -> Any:
        replaced: list[nn.Module] = []
        inside = False

        def replace(call: Any, args: Any, fields: Any, context: Any) -> Any:
            nonlocal inside
            module = context.module
            if context.method_name != "__call__" or inside:
                return call(*args, **fields)
            make = self.replace(module)
            if make is not None:
                # A scope in which no name is taken yet: a layer may be called several times.
                call = make(parent=module.scope.rewound(), name=module.name)
                replaced.append(module)
            inside = make is not None or is_closed(module)
            try:
                return call(*args, **fields)
            finally:
                inside = False

        network = self.host.bind(self)
        with nn.intercept_methods(replace):
            outputs = getattr(network, method)(*args, **fields)
        if method == "__call__" and self.is_initializing() and not replaced:
            raise ValueError(
                f"no layer of {type(network).__name__} was replaced: it has no nn.Conv, or where= "
                "leaves them all out. Subclasses of nn.Conv are not replaced."
            )
        return outputs


def replace_convs(
    network: nn.Module,
    conv: Callable[..., nn.Module],
    where: Callable[[tuple[str, ...], nn.Module], bool] | None = None,
) -> ReplacedLayers:
    """Replaces each `nn.Conv` of a Linen network by another layer, which has its fields and its place.

    The network need not know of it, and may have `setup` or compact methods, `nn.scan`, `nn.remat`, and
    convolutions that are called several times. Each layer gets the fields of the `nn.Conv` that differ from
    their defaults. Its parameters are where the `nn.Conv` had its own, with the same names and one axis more
    where there are candidates, so that `dyn.interop.warm_start` starts it from the trained network.

    Replaced are `nn.Conv` and `dyn.layers.Conv` themselves. Not replaced are their subclasses, among them
    what `nn.scan(nn.Conv)` and `nn.remat(nn.Conv)` make; `nn.ConvTranspose` and `nn.ConvLocal`; and
    convolutions inside a layer of `dyn.layers`, `nn.SpectralNorm` or `nn.WeightNorm`. A class that `nn.jit`
    made reuses what it has traced, with another layer too, if the variables have the same shapes.

    Args:
        network: the network, not yet bound to variables.
        conv: makes a layer from `nn.Conv`'s fields, such as `partial(ODConv, num_kernels=4)`. What it binds
            gives way to what the network says.
        where: a function from the path of an `nn.Conv` and the `nn.Conv` to whether it is replaced; None for
            all. Leave out what a layer cannot be, such as grouped convolutions for `DCDConv`.

    Returns:
        A module that is called like the network. `init` raises a ValueError if nothing is replaced, and a
        call does for an `nn.Conv` with a convolution or a promotion of dtypes of its own.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from functools import partial
        >>> from dyn.layers import ODConv, replace_convs
        >>> static = nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, nn.Conv(8, (3, 3))])
        >>> odconv = partial(ODConv, num_kernels=2)
        >>> net = replace_convs(static, odconv, where=lambda path, conv: path != ("layers_0",))
        >>> variables = net.init(jax.random.key(0), jnp.ones((2, 8, 8, 3)))
        >>> variables["params"]["layers_0"]["kernel"].shape
        (3, 3, 3, 4)
        >>> variables["params"]["layers_2"]["kernel"].shape
        (2, 3, 3, 4, 8)
    """
    return ReplacedLayers(Host(network), _ConvReplacement(conv, where))


@dataclasses.dataclass(frozen=True)
class _ConvReplacement:
    """Makes the layer in place of each `nn.Conv` that `where` chooses."""

    conv: Callable[..., nn.Module]
    where: Callable[[tuple[str, ...], nn.Module], bool] | None

    def __call__(self, module: Any) -> Callable[..., nn.Module] | None:
        if type(module) not in (nn.Conv, Conv):
            return None
        if self.where is not None and not self.where(module.path, module):
            return None
        for name in _OWN_FUNCTIONS:
            if getattr(module, name, None) is not (
                None if type(module) is Conv else _DEFAULTS[name]
            ):
                raise ValueError(
                    f"{'/'.join(module.path)} has a function of its own, {name}, which the layer in its "
                    "place would not call: leave it out by where=."
                )
        fields = {name: getattr(module, name) for name in _FIELDS}
        changed = {n: v for n, v in fields.items() if v is not _DEFAULTS[n]}

        def make(**place: Any) -> nn.Module:
            return self.conv(**changed, **place)

        return make


def is_closed(module: nn.Module) -> bool:
    """Returns whether a module needs its parts as they are: a layer of `dyn.layers`, or one of kernels."""
    ours = type(module).__module__.startswith("dyn.layers.")
    layer = isinstance(module, ConvLayer | nn.SpectralNorm | nn.WeightNorm)
    return layer or (ours and not isinstance(module, ReplacedLayers))
