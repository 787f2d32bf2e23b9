"""The mechanism behind every module of `dyn.nnx`: an NNX module that computes what a Linen module computes.

A `FromLinen` holds the variables of a Linen module as attributes, and applies that module to them. There is
one formula for both, the Linen module's.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from flax.errors import InvalidRngError, ScopeParamShapeError

from dyn.layers.replacing import Host
from dyn.nnx.descriptions import MODES, describe_class
from dyn.nnx.variables import find_collection, find_type, iter_variables, to_linen

Array = jax.Array
Shape = jax.ShapeDtypeStruct


class Modes(TypedDict, total=False):
    """The arguments that a call takes besides those of the Linen module; None for the module's own.

    Attributes:
        use_running_average: as in `nnx.BatchNorm`.
        deterministic: as in `nnx.Dropout`.
        rngs: as in `nnx.Dropout`.
    """

    use_running_average: bool | None
    deterministic: bool | None
    rngs: nnx.Rngs | nnx.RngStream | Array | None


class Scope(nnx.Module):
    """The variables of a submodule of a Linen module, and those of its own submodules, by their names."""


class FromLinen(nnx.Module):
    """Computes what a Linen module computes, as an NNX module: for networks that are made in Linen.

    The classes of `dyn.nnx` derive from it. Use it itself for what has none: a network of `share_kernels` or
    `replace_convs`, or a module of your own.

    Variables are attributes, with the names that they have in Linen: `conv.attention.squeeze.kernel`. The
    Linen module is `linen`, with its fields: `conv.linen.num_kernels`.

    * `use_running_average`, if there are batch statistics, and `deterministic`, if the Linen module drops
      anything or takes `train`, are attributes as in `nnx.BatchNorm` and `nnx.Dropout`, False at first:
      `train` and `eval` set them. A Linen module that takes `train` gets it from both, which must agree.
    * `rngs` is a stream of random numbers, as in `nnx.Dropout`, if the Linen module drops anything and the
      constructor's `rngs` have one for it.
    * `flax.nnx.capture` with `nnx.Intermediate` returns what the Linen module sows into `intermediates`,
      with `Loss` what it sows into `losses`.

    Args:
        linen: the Linen module.
        inputs: its inputs, arrays or `jax.ShapeDtypeStruct`s. Only those of their shapes matter on which
            the shapes of variables depend.
        rngs: `rngs.params()` initialises the variables: they are those of
            `jax.jit(linen.init)(rngs.params(), *inputs)`. What drops anything needs `rngs.dropout`, too.

    Raises:
        ValueError: for a field of the Linen module that NNX cannot compare, such as a set.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import share_kernels
        >>> from dyn.models import ResNet18
        >>> from dyn.nnx import FromLinen
        >>> from flax import nnx
        >>> x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
        >>> small = {"num_classes": 10, "width": 8, "stem": "small"}
        >>> linen = share_kernels(lambda conv: ResNet18(**small, conv=conv, shortcut=conv), x)
        >>> net = nnx.eval_shape(lambda: FromLinen(linen, x, rngs=nnx.Rngs(0)))
        >>> net.conv.stage1.cells.shape
        (56, 8, 8)
    """

    make_linen: ClassVar[Callable[..., nn.Module] | None] = None
    """The Linen class that a subclass is made from, or a function with its fields."""

    def __init_subclass__(
        cls,
        linen: Callable[..., nn.Module] | None = None,
        methods: Sequence[str] = (),
        **options: Any,
    ) -> None:
        """Derives the signature and the docstring from a Linen class.

        Args:
            linen: the Linen class, or a `partial` of it; None for a subclass of a finished class.
            methods: names of its methods besides `__call__`.
            options: those of other base classes.
        """
        super().__init_subclass__(**options)
        if linen is not None:
            cls.make_linen = staticmethod(linen)
            for name in methods:
                setattr(cls, name, _make_method(name))
        describe_class(cls, linen)

    def __init__(self, linen: nn.Module, *inputs: Array | Shape, rngs: nnx.Rngs):
        self._initialise(linen, inputs, rngs)

    def _initialise(
        self,
        linen: nn.Module,
        inputs: Sequence[Array | Shape],
        rngs: nnx.Rngs,
        parts: Mapping[str, "FromLinen"] | None = None,
        method: Callable[..., Any] | None = None,
    ) -> None:
        """Sets the attributes; every constructor ends with it.

        Args:
            linen: as in the constructor.
            inputs: as in the constructor.
            rngs: as in the constructor.
            parts: modules whose variables this one shares, by the fields of the Linen module.
            method: initialises the Linen module, a function of it and the inputs; None to call it.
        """
        linen = _freeze_fields(linen)
        fields = {f.name: getattr(linen, f.name) for f in dataclasses.fields(linen)}
        arrays: dict[str, Any] = {
            n: v for n, v in fields.items() if isinstance(v, jax.Array | np.ndarray)
        }
        takes_train = _takes_train(linen)
        # Modes are attributes, and so are arrays, because a graph definition must have a hash.
        attributes = [n for n in fields if n in MODES or n in arrays]
        self.linen = _replace_fields(linen, dict.fromkeys(attributes))
        _check_hashes(self.linen)
        for name, value in {**arrays, **(parts or {})}.items():
            setattr(self, name, value)

        shapes = tuple(Shape(x.shape, x.dtype) for x in inputs)
        still = {"deterministic": True} if "deterministic" in fields else {}
        initial = _replace_fields(self.linen, still)
        initialise = _init_on_cpu if _compiles_on_cpu() else _init_compiled
        variables = initialise(initial, shapes, method, rngs.params(), arrays)
        _hold_variables(self, variables, set(parts or {}))
        if takes_train or "batch_stats" in variables or "use_running_average" in fields:
            self.use_running_average = bool(fields.get("use_running_average"))
        if takes_train or "deterministic" in fields:
            self.deterministic = bool(fields.get("deterministic"))
            if _drops_anything(linen) and ("dropout" in rngs or "default" in rngs):
                self.rngs = rngs.dropout.fork()

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Applies the Linen module.

        Args:
            inputs: its inputs.
            named: its other arguments, and `use_running_average`, `deterministic` and `rngs`: see `Modes`.
        """
        return self._apply("__call__", inputs, named)

    def _apply(self, method: str, inputs: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Applies a method of the Linen module, and keeps what it changes.

        Raises:
            ValueError: if the inputs do not fit the parameters, the two modes contradict each other, or there
                are no random numbers for what is dropped.
        """
        named = dict(named)
        running = _choose(named.pop("use_running_average", None), self, "use_running_average")
        still = _choose(named.pop("deterministic", None), self, "deterministic")
        rngs = named.pop("rngs", None)
        names = {f.name for f in dataclasses.fields(self.linen)}
        changes: dict[str, Any] = {"use_running_average": running, "deterministic": still}
        changes |= {n: v for n, v in vars(self).items() if isinstance(v, jax.Array | np.ndarray)}
        changes = {name: value for name, value in changes.items() if name in names}
        if _takes_train(self.linen, method):
            if running != still:
                raise ValueError(
                    f"{type(self).__name__} has use_running_average={running} and deterministic={still}, and "
                    "one switch for both: call train() or eval(), or set both."
                )
            named["train"] = not still
        sown = [find_collection(type(v)) for v in getattr(self, "__captures__", ())]
        keys = None if still else self._draw_key(rngs)
        try:
            outputs, updates = _replace_fields(self.linen, changes).apply(
                to_linen(self),
                *inputs,
                **named,
                rngs=keys,
                mutable=[*sown, *([] if running else ["batch_stats"])],
                method=method,
            )
        except ScopeParamShapeError as error:
            raise ValueError(self._explain_shapes(error)) from error
        except InvalidRngError as error:
            if keys != {} or "dropout" not in str(error):
                raise
            raise ValueError(
                f"{type(self.linen).__name__} has no random numbers for what it drops in training: make the "
                "module with rngs=nnx.Rngs(0), or add dropout= beside params=; or call it with rngs=."
            ) from error
        self._update(updates, sown)
        return outputs

    def _draw_key(self, rngs: nnx.Rngs | nnx.RngStream | Array | None) -> dict[str, Array]:
        """Returns the random numbers of a call."""
        rngs = getattr(self, "rngs", None) if rngs is None else rngs
        if rngs is None:
            return {}
        if isinstance(rngs, nnx.Rngs):
            return {"dropout": rngs.dropout()}
        return {"dropout": rngs() if isinstance(rngs, nnx.RngStream) else rngs}

    def _update(self, updates: Mapping[str, Any], sown: Sequence[str]) -> None:
        """Sets the variables that a call has changed, and sows what it has sown."""
        kept = {c: tree for c, tree in updates.items() if c not in sown}
        if kept:
            variables = dict(iter_variables(self))
            for path, value in traverse_util.flatten_dict(kept).items():
                variables[path].set_value(value)
        for collection in sown:
            _sow_tree(self, find_type(collection), updates.get(collection, {}))

    def _explain_shapes(self, error: Exception) -> str:
        """Returns the message for inputs that do not fit the parameters."""
        sizes = ("in_features", "num_features", "context_features", "spatial_axes", "spatial_shape")
        made_for = ", ".join(f"{n}={getattr(self, n)}" for n in sizes if n in vars(self))
        return (
            f"these inputs do not fit the parameters of the {type(self).__name__}, which was made for "
            f"{made_for or 'others'}. Make it for these inputs. {error}"
        )


def _make_method(name: str) -> Callable[..., Any]:
    def apply(self: FromLinen, *inputs: Any, **named: Any) -> Any:
        return self._apply(name, inputs, named)

    apply.__name__ = name
    return apply


def _choose(given: bool | None, module: nnx.Module, name: str) -> bool:
    """Returns the value of a mode: of the call, or else the module's own; True for one that it has not."""
    return getattr(module, name, True) if given is None else given


def _replace_fields(linen: nn.Module, fields: Mapping[str, Any]) -> nn.Module:
    """Returns a Linen module with other values of some fields."""
    return linen.clone(**fields) if fields else linen


def _freeze_fields(linen: nn.Module) -> nn.Module:
    """Returns a Linen module with tuples for lists, as Linen itself has them in a call: they have a hash."""
    linen = linen.copy(parent=None, name=linen.name)
    host = getattr(linen, "host", None)
    if isinstance(host, Host):
        return linen.clone(host=Host(_freeze_fields(host.network)))
    return linen


def _check_hashes(linen: nn.Module) -> None:
    """Checks that the fields of a Linen module have a hash, which a graph definition must have.

    Raises:
        ValueError: for the first field that has none.
    """
    for field in dataclasses.fields(linen):
        value = getattr(linen, field.name)
        try:
            hash(value)
        except TypeError:
            inner = value.network if isinstance(value, Host) else value
            if isinstance(inner, nn.Module):
                _check_hashes(inner)
            raise ValueError(
                f"{type(linen).__name__}: {field.name} is or holds a value without a hash, "
                "such as a set or an array, which NNX cannot compare: write a tuple of numbers."
            ) from None


def _takes_train(linen: nn.Module, method: str = "__call__") -> bool:
    """Returns whether a Linen module takes `train`, or the network in it whose layers it replaces."""
    network = getattr(getattr(linen, "host", None), "network", linen)
    return "train" in inspect.signature(getattr(type(network), method)).parameters


def _drops_anything(linen: nn.Module) -> bool:
    """Returns whether a Linen module may need random numbers; False if it says that it drops nothing."""
    names = [field.name for field in dataclasses.fields(linen)]
    shares = [getattr(linen, name) for name in names if "drop" in name]
    return not shares or any(shares) or "backbone" in names


def _compiles_on_cpu() -> bool:
    """Returns whether a call of a compiled function compiles it now, for a CPU; not inside another one."""
    return jax.default_backend() == "cpu" and not isinstance(jnp.zeros(()), jax.core.Tracer)


def _init_variables(
    linen: nn.Module,
    inputs: Sequence[Shape],
    method: Callable[..., Any] | None,
    key: Array,
    arrays: Mapping[str, Array],
) -> dict[str, Any]:
    """Initialises a Linen module. Under `jit` nothing but the variables is computed.

    Returns:
        The variables. In `intermediates`, only names mean anything.
    """
    zeros = [jnp.zeros(x.shape, x.dtype) for x in inputs]
    linen = _replace_fields(linen, arrays)
    variables = dict(linen.init(key, *zeros, method=method, mutable=True))
    names = jax.tree.map(lambda _: jnp.zeros(()), variables.pop("intermediates", {}))
    return {**variables, "intermediates": names}


_init_compiled = jax.jit(_init_variables, static_argnums=(0, 1, 2))
# The program runs once: most of the time would go into making it fast.
_init_on_cpu = jax.jit(
    _init_variables,
    static_argnums=(0, 1, 2),
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


def _hold_variables(scope: nnx.Module, variables: Mapping[str, Any], parts: set[str]) -> None:
    """Makes variables the attributes of a module, and of a `Scope` for each submodule of the Linen module.

    Args:
        scope: the module.
        variables: those of `_init_variables`.
        parts: submodules that the module has already.

    Raises:
        ValueError: if two variables have the same name, or one has the name of another attribute.
    """
    for collection, tree in variables.items():
        for path, value in traverse_util.flatten_dict(tree).items():
            if path[0] in parts:
                continue
            here = scope
            for name in path[:-1]:
                if not hasattr(here, name):
                    setattr(here, name, Scope())
                here = getattr(here, name)
            if collection == "intermediates":
                continue
            if not isinstance(here, nnx.Module) or hasattr(here, path[-1]):
                raise ValueError(
                    f"{'/'.join(path)} of the Linen module cannot be an attribute of an NNX module, which "
                    "has one of that name: give it another."
                )
            setattr(here, path[-1], find_type(collection)(value))


def _sow_tree(scope: nnx.Module, kind: type[nnx.Variable], tree: Mapping[str, Any]) -> None:
    """Sows what a Linen module has sown, by the module of the same path."""
    for name, value in tree.items():
        part = getattr(scope, name, None)
        if isinstance(value, Mapping) and isinstance(part, nnx.Module):
            _sow_tree(part, kind, value)
        elif isinstance(value, tuple):
            for one in value:
                scope.sow(kind, name, one)
        else:
            scope.sow(kind, name, value)
