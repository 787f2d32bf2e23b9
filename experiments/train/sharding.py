"""Where arrays lie: batches are dealt out to the devices, parameters are on each, or dealt out too."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"
# Fetching fewer numbers than these takes longer than it saves.
SMALL = 4096


def make_mesh() -> Mesh:
    """All devices of all hosts, in a row."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def with_shards(tree: Any, mesh: Mesh) -> Any:
    """Gives every shape of a tree a sharding that deals its array out to the devices of a mesh.

    An array is cut along its longest axis that the number of devices divides; one without such an
    axis, or of fewer than `SMALL` numbers, is whole on every device. Rajbhandari, Rasley, Ruwase, He:
    ZeRO: Memory Optimizations toward Training Trillion Parameter Models. SC 2020.
    """

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        axes = [axis for axis, length in enumerate(leaf.shape) if length % mesh.size == 0]
        if leaf.size < SMALL or not axes:
            spec = P()
        else:
            longest = max(axes, key=lambda axis: leaf.shape[axis])
            spec = P(*[None] * longest, AXIS)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)


def shardings_of(tree: Any) -> Any:
    """Where each array of a tree, or each shape with a sharding, lies."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)
