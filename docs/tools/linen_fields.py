"""Reads `dyn` for the reference of the site as Python would import it: an extension of griffe.

* Flax makes a module's `__init__` from its fields when it is imported, while the reference is made from the
  source alone. Here the fields become the parameters that they are, those of the bases first.
* A function in a file of its own name, such as `dyn.ops.dynamic_conv`, hides that file.
* The sections `Attributes` of modules, and `Example`, get the names that griffe knows.
"""

from collections.abc import Iterator

import griffe

MODULES = ("flax.linen.Module", "flax.nnx.Module")


class LinenFields(griffe.Extension):
    """Changes a package after it has been read."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: object) -> None:
        """Adds `__init__` to Flax modules, and mends names and sections."""
        items = list(walk(pkg))
        modules = [i for i in items if isinstance(i, griffe.Class) and is_flax_module(i)]
        fields = [list_fields(module) for module in modules]  # of all, before any is changed
        for module, of_module in zip(modules, fields, strict=True):
            if "__init__" not in module.members:
                add_init(module, of_module)
        for item in items:
            if isinstance(item, griffe.Module):
                show_functions(item)
            if item.docstring:
                text = item.docstring.value.replace("\nExample:\n", "\nExamples:\n")
                if item in modules:
                    text = text.replace("\nAttributes:\n", "\nArgs:\n")
                item.docstring.value = text


def walk(item: griffe.Object) -> Iterator[griffe.Object]:
    """Yields an object and everything that is defined in it."""
    yield item
    for member in item.members.values():
        if not member.is_alias:
            yield from walk(member)


def list_bases(item: griffe.Class) -> list[griffe.Class]:
    """Returns a class and its bases in this package, the most basic first."""
    bases = [base for parent in item.resolved_bases for base in list_bases(parent)]
    return [*dict.fromkeys(bases), item]


def is_flax_module(item: griffe.Class) -> bool:
    """Returns whether a class derives from Flax's modules."""
    roots = {
        getattr(base, "canonical_path", base) for cls in list_bases(item) for base in cls.bases
    }
    return not roots.isdisjoint(MODULES)


def list_fields(item: griffe.Class) -> dict[str, griffe.Attribute]:
    """Returns the fields of a module, those of its bases first."""
    return {
        name: member
        for base in list_bases(item)
        for name, member in base.members.items()
        if member.is_attribute and member.annotation is not None and "property" not in member.labels
    }


def add_init(item: griffe.Class, fields: dict[str, griffe.Attribute]) -> None:
    """Adds the `__init__` that Flax will make from a module's fields, in their place."""
    for name in fields.keys() & item.members.keys():
        item.del_member(name)
    parameters = griffe.Parameters(
        *(
            griffe.Parameter(
                name,
                annotation=field.annotation,
                kind=griffe.ParameterKind.positional_or_keyword,
                default=read_default(field.value),
            )
            for name, field in fields.items()
        )
    )
    item.set_member("__init__", griffe.Function("__init__", parameters=parameters, parent=item))


def show_functions(package: griffe.Module) -> None:
    """Puts exported functions in the place of the files that are called like them."""
    exported = {}  # all of them, before a file is out of reach
    for name in map(str, package.exports or ()):
        member = package.members.get(name)
        if isinstance(member, griffe.Module):
            member = member.members.get(name)
        if member:
            exported[name] = member.final_target if member.is_alias else member
    for name, target in exported.items():
        if target.parent is not package:
            package.set_member(name, griffe.Alias(name, target, parent=package))


def read_default(value: griffe.Expr | str | None) -> griffe.Expr | str | None:
    """Returns the default of a field, also from `dataclasses.field(default=...)`."""
    if isinstance(value, griffe.ExprCall) and str(value.function).endswith("field"):
        for argument in value.arguments:
            if isinstance(argument, griffe.ExprKeyword) and argument.name == "default":
                return argument.value
        return None
    return value
