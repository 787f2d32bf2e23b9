"""Places arrays on devices: batches are split over them, parameters are replicated or split too."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.core.errors import UserError

AXIS = "data"  # of a mesh, over which batches are split
# Gathering a smaller array takes longer than splitting it saves.
SMALLEST_SHARDED = 4096


def find_mesh() -> Mesh:
    """Returns the mesh that `jax.set_mesh` has set, or else all devices of all hosts as one axis.

    That axis is automatic: XLA decides how to split what is computed. A run takes explicit axes too, with
    the same result, but layers of Flax such as its dropout do not.

    Raises:
        UserError: if the mesh that is set has no axis `data`.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))
    if AXIS not in mesh.axis_names:
        raise UserError(
            f"jax.set_mesh has set a mesh of the axes {', '.join(mesh.axis_names)}: a batch is split over "
            f"the axis '{AXIS}'; give one of them that name."
        )
    return mesh


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes arrays over all devices from each host's share of a batch."""
    sharding = NamedSharding(mesh, P(AXIS))
    return {
        name: jax.make_array_from_process_local_data(sharding, values)
        for name, values in batch.items()
    }


def with_shards(tree: Any, mesh: Mesh) -> Any:
    """Gives every shape of a tree a sharding that splits its array over the devices of a mesh.

    An array is split along its longest axis that the number of devices divides. An array without such an
    axis, or with fewer than `SMALLEST_SHARDED` numbers, is replicated, and so is all over other axes of the
    mesh than `AXIS`. Rajbhandari, Rasley, Ruwase, He:
    ZeRO: Memory Optimizations toward Training Trillion Parameter Models. SC 2020.
    """

    devices = mesh.shape[AXIS]

    def shard(leaf: Any) -> jax.ShapeDtypeStruct:
        axes = [axis for axis, length in enumerate(leaf.shape) if length % devices == 0]
        if leaf.size < SMALLEST_SHARDED or not axes:
            spec = P()
        else:
            longest = max(axes, key=lambda axis: leaf.shape[axis])
            spec = P(*[None] * longest, AXIS)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(shard, tree)


def shardings_of(tree: Any) -> Any:
    """Returns the sharding of each array of a tree, or of each shape that has one."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


@dataclasses.dataclass(frozen=True)
class ParameterSharding:
    """Shardings of sharded parameters: `gathered` while a step computes, `sharded` between steps.

    Without these constraints XLA gathers other devices' activations where they are fewer numbers.
    """

    gathered: Any
    sharded: Any

    def gather(self, params: Any) -> Any:
        """Constrains parameters to be whole on every device."""
        return _constrain(params, self.gathered)

    def shard(self, gradients: Any) -> Any:
        """Constrains gradients to be split as the parameters are between steps."""
        return _constrain(gradients, self.sharded)


def _constrain(tree: Any, shardings: Any) -> Any:
    """Shards the arrays of a tree inside a compiled function."""
    mesh = jax.tree.leaves(shardings)[0].mesh
    # With explicit axes a constraint would only compare.
    if AXIS in mesh.explicit_axes:
        return jax.sharding.reshard(tree, shardings)
    return jax.lax.with_sharding_constraint(tree, shardings)
