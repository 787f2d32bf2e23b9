"""Networks whose convolutions share warehouses of cells: plans who shares, and finds each warehouse.

Li, Yao: KernelWarehouse: Rethinking the Design of Dynamic Convolution. ICML 2024.
https://arxiv.org/abs/2406.07879

Deviation from the authors' code: kernels are read from the shapes of the network instead of from the
names of its layers.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from dyn.layers.attention import he_normal_fan_out
from dyn.layers.convolution import resolve_kernel_size
from dyn.layers.fields import CheckedModule
from dyn.layers.kernel_warehouse import KernelShape, Warehouse, WarehouseConv, WarehouseDense

Array = jax.Array
Path = tuple[str, ...]


class Warehouses(CheckedModule):
    """Makes the layers of a network that share warehouses; a network takes it as `conv=`, and `dense=`.

    It owns the cells. A layer finds its warehouse by its path in the network. `share_kernels` makes the
    warehouses of a network.

    Attributes:
        plan: for each warehouse its name, and the path and kernel of each layer.
        fields: fields of `WarehouseConv` that all layers have in common.
        cell_ratio, in_ratio, out_ratio, spatial_partition, reduction: as in `Warehouse`, one value for all,
            or one for each warehouse in the order of the plan.
        param_dtype, kernel_init: as in `Warehouse`.
        static: paths of the layers that stay static.
    """

    plan: tuple[tuple[str, tuple[tuple[Path, KernelShape], ...]], ...]
    fields: Mapping[str, Any] = FrozenDict()
    cell_ratio: float | Sequence[float] = 1.0
    in_ratio: float | Sequence[float] = 1.0
    out_ratio: float | Sequence[float] = 1.0
    param_dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = he_normal_fan_out
    spatial_partition: bool | Sequence[bool] = True
    reduction: float | Sequence[float] | None = None
    static: tuple[Path, ...] = ()

    def setup(self) -> None:
        """Makes the warehouses.

        Raises:
            ValueError: if an option has another number of values than there are warehouses.
        """
        for number, (name, members) in enumerate(self.plan):
            options = {option: self._choose(option, number) for option in _OPTIONS}
            kernels = tuple(kernel for _, kernel in members)
            types = {"param_dtype": self.param_dtype, "kernel_init": self.kernel_init}
            setattr(self, name, Warehouse(kernels, **options, **types))

    def _choose(self, option: str, number: int) -> Any:
        """Returns the value of an option for a warehouse."""
        value = getattr(self, option)
        if not isinstance(value, Sequence):
            return value
        if len(value) != len(self.plan):
            raise ValueError(
                f"{option} has {len(value)} values for the {len(self.plan)} warehouses "
                f"{', '.join(name for name, _ in self.plan)}: write one for all, or one for each of these."
            )
        return value[number]

    # Without flax's wrapper, so that the layer belongs to the block that makes it.
    @nn.nowrap
    def __call__(
        self,
        features: int,
        kernel_size: int | Sequence[int] | None = None,
        *args: Any,
        **fields: Any,
    ) -> WarehouseConv | WarehouseDense:
        """Makes a convolution from `nn.Conv`'s arguments, or without a kernel size a dense layer."""
        merged: dict[str, Any] = {**self.fields, **fields, "warehouse": self}
        if kernel_size is None:
            return WarehouseDense(features, *args, **merged)
        return WarehouseConv(features, kernel_size, *args, **merged)

    def find(self, path: Path, _place: int, /) -> tuple[Warehouse, int] | None:
        """Returns the warehouse of the layer at a path, and its place there, from the plan; None if static.

        Raises:
            ValueError: if the network for which the plan was made has no convolution there.
        """
        # The plan may belong to an outer network, such as a segmentation head over this backbone.
        path = path[len(self.path) - 1 :]
        places: dict[Path, tuple[str, int] | None] = {
            planned_path: (name, place)
            for name, convolutions in self.plan
            for place, (planned_path, _) in enumerate(convolutions)
        }
        places |= dict.fromkeys(self.static)
        planned = [planned_path for planned_path in places if planned_path[-len(path) :] == path]
        if not planned:
            raise ValueError(
                f"no warehouse was planned for the layer {'/'.join(path)}: call share_kernels with the "
                "network that uses the warehouses."
            )
        # The paths of layers in inner blocks may end like that of a layer around them, but are longer.
        found = places[min(planned, key=len)]
        if found is None:
            return None
        name, place = found
        return getattr(self, name), place


_OPTIONS = ("cell_ratio", "in_ratio", "out_ratio", "spatial_partition", "reduction")


def share_kernels(
    network: Callable[[Callable[..., nn.Module]], nn.Module],
    *inputs: Any,
    share: Callable[[Path], str | None] | None = None,
    cell_ratio: float | Sequence[float] = 1.0,
    in_ratio: float | Sequence[float] = 1.0,
    out_ratio: float | Sequence[float] = 1.0,
    param_dtype: Any = jnp.float32,
    kernel_init: nn.initializers.Initializer = he_normal_fan_out,
    spatial_partition: bool | Sequence[bool] = True,
    reduction: float | Sequence[float] | None = None,
    **fields: Any,
) -> nn.Module:
    """Makes a network whose layers are `WarehouseConv`s and `WarehouseDense`s that share warehouses.

    Args:
        network: a function from `conv=` to the network. `lambda conv: ResNet18(conv=conv, shortcut=conv)`
            is the paper's, in which the projections of the shortcuts share too. With `dense=conv` so does
            the classifier.
        inputs: the inputs of the network, arrays or `jax.ShapeDtypeStruct`s. Only those of their shapes
            matter on which the kernels depend.
        share: a function from a layer's path to the name of its warehouse, or to None for a layer that
            stays static; None for `by_stage`.
        cell_ratio, in_ratio, out_ratio, spatial_partition, reduction: as in `Warehouse`, one value for all
            warehouses, or one for each in the order in which the network first uses them.
        param_dtype, kernel_init: as in `Warehouse`.
        fields: fields of `WarehouseConv` that all layers have in common.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import share_kernels
        >>> from dyn.models import ResNet18
        >>> x = jnp.ones((2, 8, 8, 3))
        >>> small = {"num_classes": 10, "width": 8, "stem": "small"}
        >>> net = share_kernels(lambda conv: ResNet18(**small, conv=conv, shortcut=conv), x)
        >>> variables = jax.eval_shape(net.init, jax.random.key(0), x)
        >>> {name: w["cells"].shape for name, w in sorted(variables["params"]["conv"].items())}
        {'stage1': (56, 8, 8), 'stage2': (47, 16, 16), 'stage3': (47, 32, 32), 'stage4': (27, 64, 64)}
    """
    share = share or by_stage
    warehouses: dict[str, list[tuple[Path, KernelShape]]] = {}
    static = []
    for path, kernel in list_kernels(network, *inputs).items():
        name = share(path)
        if name is None:
            static.append(path)
        else:
            warehouses.setdefault(name, []).append((path, kernel))

    def freeze(value: Any) -> Any:
        return tuple(value) if isinstance(value, Sequence) else value

    return network(
        Warehouses(
            plan=tuple((name, tuple(members)) for name, members in warehouses.items()),
            fields=FrozenDict(fields),
            cell_ratio=freeze(cell_ratio),
            in_ratio=freeze(in_ratio),
            out_ratio=freeze(out_ratio),
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            spatial_partition=freeze(spatial_partition),
            reduction=freeze(reduction),
            static=tuple(static),
        )
    )


def list_kernels(
    network: Callable[[Callable[..., nn.Module]], nn.Module], *inputs: Any
) -> dict[Path, KernelShape]:
    """Returns path and kernel of each layer that a network makes by `conv`, in the order of first use.

    Args:
        network: a function from `conv=` to the network.
        inputs: the inputs of the network, arrays or their shapes.
    """
    kernels: dict[Path, KernelShape] = {}

    class Conv(nn.Conv):
        @nn.compact
        def __call__(self, x: Array, context: Array | None = None) -> Array:
            del context  # no kernel's shape depends on it
            size = resolve_kernel_size(self.kernel_size, x)
            in_features = x.shape[-1] // self.feature_group_count
            kernels[self.path] = KernelShape(size, in_features, self.features)
            return super().__call__(x)

    class Dense(nn.Dense):
        @nn.compact
        def __call__(self, x: Array, context: Array | None = None) -> Array:
            del context
            kernels[self.path] = KernelShape((1,), x.shape[-1], self.features)
            return super().__call__(x)

    # Flax names layers after their class if they have no name.
    Conv.__name__, Dense.__name__ = WarehouseConv.__name__, WarehouseDense.__name__

    def record(features: int, kernel_size: Any = None, *args: Any, **fields: Any) -> nn.Module:
        if kernel_size is None:
            return Dense(features, *args, **fields)
        return Conv(features, kernel_size, *args, **fields)

    jax.eval_shape(network(record).init, jax.random.key(0), *inputs)
    return kernels


def by_stage(path: tuple[str, ...]) -> str:
    """Names the warehouse of a convolution by the paper's rule: each stage shares one.

    The layers that lead into a stage (the first convolution of its first block, and the projection of that
    block's shortcut) share with the stage before. Convolutions must be called `stage2_block1/conv1`, as in
    `dyn.models`.

    Raises:
        ValueError: for a path without a stage.

    Example:
        >>> from dyn.layers import by_stage
        >>> [by_stage(("stage2_block1", name)) for name in ("conv1", "conv2", "downsample_conv")]
        ['stage1', 'stage2', 'stage1']
    """
    match = re.fullmatch(r"(?:.*/)?stage(\d+)_block(\d+)/(\w+)", "/".join(path))
    if match is None:
        raise ValueError(
            f"the convolution {'/'.join(path)} is in no stage: pass share=, a function from its path to "
            "the name of a warehouse."
        )
    stage, block, name = int(match[1]), int(match[2]), match[3]
    if stage > 1 and block == 1 and name in ("conv1", "downsample_conv"):
        stage -= 1
    return f"stage{stage}"
