"""Arrays whose sharding is part of their type: how operations work on meshes with explicit axes.

On the axes of `jax.make_mesh`, which are `AxisType.Explicit` by default, every operation must be able to say
how its result is sharded. A reshape of patches and a product per sample cannot. Such a function runs with
automatic axes instead, where XLA decides, and only the sharding of its result is stated: that of the batch.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

Array = jax.Array
MeshAxes = str | tuple[str, ...] | None


class BatchShards(NamedTuple):
    """The shards that a mesh divides a batch into.

    Attributes:
        mesh: the mesh; None if there is a single device.
        axes: the mesh axes that the batch is sharded over.
        number: number of shards.
    """

    mesh: AbstractMesh | None = None
    axes: tuple[str, ...] = ()
    number: int = 1


def automate_sharding(
    function: Callable[..., Any], *arrays: Any, axes: Sequence[MeshAxes] | None = None
) -> Any:
    """Computes `function(*arrays)` with every explicit mesh axis made automatic.

    Without explicit axes it is the call itself, and changes nothing in the program.

    Args:
        function: reads no other arrays with a sharding than its arguments.
        arrays: arrays, or trees of them.
        axes: the mesh axes that each axis of the result is sharded over; None: the first as that of the
            first array, and no other. An axis whose size is no multiple of the number of devices is not
            sharded.

    Returns:
        The result, an array or a tree of them, with explicit axes again.
    """
    mesh = find_explicit_mesh(arrays)
    if mesh is None:
        return function(*arrays)
    if axes is None:
        axes = mesh_axes(jax.tree.leaves(arrays)[0])[:1]
    automatic = mesh.update_axis_types(dict.fromkeys(mesh.explicit_axes, AxisType.Auto))

    def run(*arrays: Any) -> Any:
        with jax.sharding.use_abstract_mesh(automatic):
            result = function(*jax.sharding.reshard(arrays, PartitionSpec()))
        shardings = jax.tree.map(partial(_shard_where_possible, mesh, axes), result)
        return jax.sharding.reshard(result, shardings)

    # Outside of a jit, single operations would not know the devices.
    return jax.jit(run, inline=True)(*arrays)


def map_batch(function: Callable[..., Any], *arrays: Any) -> Any:
    """Computes `function(*arrays)` on each device for its part of a batch.

    XLA does not partition `lax.top_k` and scatters: it gathers the batch on every device. A loop of
    `jax.vmap` that ends with its slowest sample asks all devices in each turn. Here each device has its own.

    Where nothing divides the batch, or nobody knows how (see `find_batch_shards`), XLA decides.

    Args:
        function: treats each sample of the batch by itself.
        arrays: arrays with the batch as their first axis, or trees of them.

    Returns:
        An array, or a tree of them, with the batch as their first axis.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.ops.sharding import map_batch
        >>> values, places = map_batch(lambda x: jax.lax.top_k(x, 1), jnp.array([[3, 5], [4, 2]]))
        >>> places.tolist()
        [[1], [0]]
    """
    leaves = jax.tree.leaves(arrays)
    # Arrays that are made of nothing, such as random numbers, lie on no mesh, or whole on every device.
    known = [shards for leaf in leaves if (shards := find_batch_shards(leaf))]
    shards = max(known, key=lambda shards: shards.number, default=BatchShards())
    if shards.number == 1 or leaves[0].shape[0] % shards.number:
        return automate_sharding(function, *arrays)
    spec = PartitionSpec(shards.axes)
    return map_shards(function, arrays, [spec] * len(arrays), spec, shards.mesh)


def shard_like(array: Array, like: Array) -> Array:
    """Shards each axis of an array as that of another, where mesh axes are explicit."""
    return automate_sharding(lambda _, array: array, like, array, axes=mesh_axes(like))


def shard_batch_like(array: Array, like: Array) -> Array:
    """Shards the first axis of an array as that of another, where mesh axes are explicit."""
    return automate_sharding(lambda _, array: array, like, array)


def find_explicit_mesh(arrays: Any) -> AbstractMesh | None:
    """Returns the abstract mesh of a tree of arrays if it has explicit axes, else None."""
    for array in jax.tree.leaves(arrays):
        mesh = jax.typeof(array).sharding.mesh
        if mesh.explicit_axes:
            return mesh
    return None


def may_use_several_mesh_axes(*arrays: Any, unknown: bool) -> bool:
    """Returns whether a program may be partitioned over two or more axes of a mesh.

    XLA then multiplies the kernel's gradient of a grouped convolution by the size of every axis over which
    the convolution is replicated, for all types of axes (jaxlib 0.10.2). Axes of one device, and the manual
    ones of `jax.shard_map`, do not count.

    Args:
        arrays: arrays of the program, or None.
        unknown: the answer if no mesh is known on four or more devices. `in_shardings` of `jax.jit`, for
            example, are not known while a function is traced.
    """
    meshes = [jax.typeof(array).sharding.mesh for array in arrays if array is not None]
    known = [mesh for mesh in (*meshes, jax.sharding.get_abstract_mesh()) if not mesh.empty]
    if not known:
        return unknown and jax.device_count() >= 4
    return any(
        sum(mesh.shape[name] > 1 for name in mesh.axis_names if name not in mesh.manual_axes) > 1
        for mesh in known
    )


def find_batch_shards(array: Any) -> BatchShards | None:
    """Returns how the first axis of an array is sharded; None if that is unknown while it is traced.

    It is also None if a spatial axis, one between the first and the last, is sharded. Explicit mesh axes are
    part of the array's type. An automatic mesh is taken to shard the batch over its only axis of more than
    one device; if it has several, nobody knows. Manual axes, those of an outer `jax.shard_map`, are left out,
    since the array is a shard already.

    Args:
        array: an array, or a `jax.ShapeDtypeStruct`.
    """
    mesh = jax.typeof(array).sharding.mesh if isinstance(array, Array) else None
    if mesh is None or mesh.empty:
        mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return None
    wide = [name for name in mesh.axis_names if mesh.shape[name] > 1]
    free = [name for name in wide if name not in mesh.manual_axes]
    if not free:
        return BatchShards()
    axes = tuple(free)
    if mesh.explicit_axes:
        first, *others = mesh_axes(array)
        if any(others[:-1]):
            return None
        axes = first if isinstance(first, tuple) else (first,) if first else ()
    elif len(free) > 1:
        return None
    return BatchShards(mesh, axes, math.prod(mesh.shape[name] for name in axes))


def count_batch_shards(array: Any) -> int | None:
    """Returns the number of shards of a batch; None if it is unknown, as in `find_batch_shards`."""
    shards = find_batch_shards(array)
    return None if shards is None else shards.number


def map_shards(
    function: Callable[..., Any],
    arrays: Sequence[Any],
    specs: Sequence[PartitionSpec],
    out: PartitionSpec,
    mesh: AbstractMesh | None,
) -> Any:
    """Computes `function(*arrays)` on each device for its shards: what XLA cannot partition by itself.

    Args:
        function: maps shards of the arrays to a shard of the result.
        arrays: arrays, trees of them, or None.
        specs: how each array is sharded.
        out: how the result is sharded.
        mesh: the mesh; axes that are manual already are left alone. None for a single device.
    """
    if mesh is None:
        return function(*arrays)
    if mesh.explicit_axes:
        arrays = [
            array if array is None else jax.sharding.reshard(array, NamedSharding(mesh, spec))
            for array, spec in zip(arrays, specs, strict=True)
        ]
    # `check_vma` would ask the kernel for the mesh axes that its results vary over.
    run = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=tuple(specs),
        out_specs=out,
        axis_names=set(mesh.axis_names) - set(mesh.manual_axes),
        check_vma=False,
    )
    return run(*arrays)


def mesh_axes(array: Array) -> tuple[MeshAxes, ...]:
    """Returns the explicit mesh axes that each axis of an array is sharded over."""
    spec = tuple(jax.typeof(array).sharding.spec)
    return spec + (None,) * (array.ndim - len(spec))


def _shard_where_possible(
    mesh: AbstractMesh, axes: Sequence[MeshAxes], array: Array
) -> NamedSharding:
    """Returns the sharding over `axes`, without those that occur twice or do not divide the array."""
    used: set[str] = set()
    spec = []
    for names, size in zip(axes, array.shape, strict=False):
        of_axis = names if isinstance(names, tuple) else (names,) if names else ()
        devices = math.prod(mesh.shape[name] for name in of_axis)
        fits = size % devices == 0 and not used.intersection(of_axis)
        spec.append(names if fits else None)
        used.update(of_axis if fits else ())
    return NamedSharding(mesh, PartitionSpec(*spec))
