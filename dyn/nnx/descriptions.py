"""Signatures and docstrings of NNX modules, made from those of the Linen classes."""

import inspect
import re
from collections.abc import Callable
from functools import partial

import flax.linen as nn

# A field of Linen that is not a field of NNX, or has another meaning.
MODES = {
    "use_running_average": (
        "as in `nnx.BatchNorm`: whether batch norms use running statistics; `train` and `eval` set it."
    ),
    "deterministic": "as in `nnx.Dropout`: whether nothing is dropped; `train` and `eval` set it.",
}
SIZES = {
    "in_features": "number of input features.",
    "num_features": "number of features, of the inputs and the outputs.",
    "out_features": "number of output features.",
    "context_features": (
        "number of features of the `context` that will be passed; None for the layer's own context."
    ),
    "spatial_shape": (
        "spatial shape of an input, for networks whose parameters depend on it; None for a small one."
    ),
    "rngs": "`rngs.params()` initialises the parameters.",
}


def find_class(linen: Callable[..., nn.Module]) -> type[nn.Module]:
    """Returns the Linen class, of which there may be a `partial`."""
    while isinstance(linen, partial):
        linen = linen.func
    assert isinstance(linen, type)
    return linen


def describe_class(cls: type, linen: Callable[..., nn.Module] | None) -> None:
    """Gives a class its signature, and that of a Linen class its docstring.

    Args:
        cls: the class.
        linen: the Linen class or a `partial` of it; None for a class with a docstring of its own.
    """
    own = inspect.signature(cls.__init__)
    parameters = [p for p in list(own.parameters.values())[1:] if p.kind != p.VAR_KEYWORD]
    if linen is not None:
        parameters = _merge_parameters(parameters, linen)
        if cls.__doc__ is None:
            cls.__doc__ = _write_docstring(linen, [p.name for p in parameters])
    # Flax's metaclass would hide the signature of the constructor.
    cls.__signature__ = own.replace(parameters=parameters)  # pyrefly: ignore[missing-attribute]


def _merge_parameters(
    parameters: list[inspect.Parameter], linen: Callable[..., nn.Module]
) -> list[inspect.Parameter]:
    """Returns the parameters of a constructor: its own, and the fields of the Linen class by keyword."""
    known = {p.name for p in parameters} | {"self", "parent", "name"}
    known |= {"features"} if "out_features" in known else set()
    fields = inspect.signature(linen).parameters.values()
    takes_context = "context" in inspect.signature(find_class(linen).__call__).parameters
    merged = [p for p in parameters if takes_context or p.name != "context_features"]
    for field in fields:
        if field.name not in known:
            default = False if field.name in MODES else field.default
            merged.append(field.replace(kind=field.KEYWORD_ONLY, default=default))
    # Parameters that Linen does not have come last.
    return sorted(merged, key=lambda p: p.kind == p.KEYWORD_ONLY and p.name in SIZES)


def _write_docstring(linen: Callable[..., nn.Module], names: list[str]) -> str:
    """Returns the docstring of a Linen class for the NNX class: the text, and a list of the arguments.

    Args:
        linen: the Linen class.
        names: of the arguments.
    """
    cls = find_class(linen)
    text = inspect.cleandoc(cls.__doc__ or "")
    text, *sections = re.split(r"\n(?=(?:Attributes|Example|Example, [^\n]*):\n)", text)
    entries = {}
    for section in sections:
        if section.startswith("Attributes:"):
            for entry in re.split(r"\n    (?=\S)", section)[1:]:
                key, _, words = entry.partition(": ")
                entries[key] = words
    described = [f"    {name}: {SIZES[name]}" for name in names if name in SIZES]
    for key, words in entries.items():
        fields = [name for name in key.split(", ") if name not in SIZES]
        if fields == ["features"] and "out_features" in names:
            # The other fields of `nn.Conv` are described by the base of the Linen layers.
            _, more, where = words.partition("; ")
            described += [f"    fields: {where}"] if more else []
        elif fields:
            words = MODES.get(key, words)
            described.append(f"    {', '.join(fields)}: {words.rstrip()}")
    source = f"It is `{cls.__module__}.{cls.__name__}` as an NNX module; see `dyn.nnx`."
    return "\n\n".join([text.strip(), source, "\n".join(["Args:", *described])])
