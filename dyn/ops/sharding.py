"""Arrays whose sharding is part of their type: how operations work on meshes with explicit axes.

On the axes of `jax.make_mesh`, which are `AxisType.Explicit` by default, every operation must be able to say
how its result is sharded. A reshape of patches and a product per sample cannot. Such a function runs with
automatic axes instead, where XLA decides, and only the sharding of its result is stated: that of the batch.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Array = jax.Array


def automate_sharding(
    function: Callable[..., Any], *arrays: Any, spec: PartitionSpec | None = None
) -> Any:
    """Computes `function(*arrays)` with every explicit mesh axis made automatic.

    Without explicit axes it is the call itself, and changes nothing in the program.

    Args:
        function: reads no other arrays with a sharding than its arguments.
        arrays: arrays, or trees of them.
        spec: sharding of the result's axes; None: the first axis is sharded as that of the first array,
            and the others are not.

    Returns:
        The result, an array or a tree of them, with explicit axes again.
    """
    mesh = find_explicit_mesh(arrays)
    if mesh is None:
        return function(*arrays)
    if spec is None:
        spec = PartitionSpec(*sharding_spec(jax.tree.leaves(arrays)[0])[:1])
    automatic = mesh.update_axis_types(dict.fromkeys(mesh.explicit_axes, AxisType.Auto))

    def run(*arrays: Any) -> Any:
        with jax.sharding.use_abstract_mesh(automatic):
            result = function(*jax.sharding.reshard(arrays, PartitionSpec()))
        return jax.sharding.reshard(result, NamedSharding(mesh, spec))

    # Outside of a jit, single operations would not know the devices.
    return jax.jit(run, inline=True)(*arrays)


def find_explicit_mesh(arrays: Any) -> Any:
    """Returns the abstract mesh of a tree of arrays if it has explicit axes, else None."""
    for array in jax.tree.leaves(arrays):
        mesh = jax.typeof(array).sharding.mesh
        if mesh.explicit_axes:
            return mesh
    return None


def sharding_spec(array: Array) -> tuple[Any, ...]:
    """Returns the explicit mesh axes of each axis of an array: a name, a tuple of names, or None."""
    spec = tuple(jax.typeof(array).sharding.spec)
    return spec + (None,) * (array.ndim - len(spec))


def spec_of_convolution(
    inputs: Array, kernels: Array | None, out: tuple[int, ...]
) -> PartitionSpec:
    """Returns the sharding of a convolution's result `[B, *out, O]`.

    Batch and space are sharded as the inputs, as by `nn.Conv`, features as the kernels. An axis whose size
    is no multiple of the number of devices is not sharded.

    Args:
        inputs: `[B, *spatial, I]`.
        kernels: `[K, *k, I/G, O]`, or None for features that are not sharded.
        out: shape of the result.
    """
    features = None if kernels is None else sharding_spec(kernels)[-1]
    spec = [*sharding_spec(inputs)[:-1], features]
    mesh, used = find_explicit_mesh((inputs, kernels)), set()
    for n, (names, size) in enumerate(zip(spec, out, strict=True)):
        if names is None:
            continue
        axes = set(names) if isinstance(names, tuple) else {names}
        if used & axes or size % math.prod(mesh.shape[axis] for axis in axes):
            spec[n] = None
        used |= axes
    return PartitionSpec(*spec)
