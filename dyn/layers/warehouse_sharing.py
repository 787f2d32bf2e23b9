"""Networks whose convolutions share warehouses of cells: plans who shares, and finds each warehouse.

Li, Yao: KernelWarehouse: Rethinking the Design of Dynamic Convolution. ICML 2024.
https://arxiv.org/abs/2406.07879

Deviation from the authors' code: kernels are read from the shapes of the network instead of from the
names of its layers.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from dyn.layers.attention import he_normal_fan_out
from dyn.layers.convolution import resolve_kernel_size
from dyn.layers.fields import CheckedModule
from dyn.layers.kernel_warehouse import KernelShape, Warehouse, WarehouseConv

Array = jax.Array


class Warehouses(CheckedModule):
    """Makes the convolutions of a network that share warehouses; a network takes it as `conv=`.

    It owns the cells. A convolution finds its warehouse by its path in the network. `share_kernels`
    makes the warehouses of a network.

    Attributes:
        plan: for each warehouse its name, and the path and kernel of each convolution.
        fields: fields of `WarehouseConv` that all convolutions have in common.
        cell_ratio, in_ratio, out_ratio, param_dtype, kernel_init: as in `Warehouse`.
    """

    plan: tuple[tuple[str, tuple[tuple[tuple[str, ...], KernelShape], ...]], ...]
    fields: Mapping[str, Any] = FrozenDict()
    cell_ratio: float = 1.0
    in_ratio: float = 1.0
    out_ratio: float = 1.0
    param_dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = he_normal_fan_out

    def setup(self) -> None:
        """Makes the warehouses."""
        for name, convolutions in self.plan:
            warehouse = Warehouse(
                tuple(kernel for _, kernel in convolutions),
                self.cell_ratio,
                self.in_ratio,
                self.out_ratio,
                self.param_dtype,
                self.kernel_init,
            )
            setattr(self, name, warehouse)

    # Without flax's wrapper, so that the convolution belongs to the block that makes it.
    @nn.nowrap
    def __call__(self, *args: Any, **fields: Any) -> WarehouseConv:
        """Makes a convolution from `nn.Conv`'s arguments."""
        merged: dict[str, Any] = {**self.fields, **fields, "warehouse": self}
        return WarehouseConv(*args, **merged)

    def find(self, path: tuple[str, ...], _place: int, /) -> tuple[Warehouse, int]:
        """Returns the warehouse of the convolution at a path, and its place there, from the plan.

        Raises:
            ValueError: if the network for which the plan was made has no convolution there.
        """
        # The plan may belong to an outer network, such as a segmentation head over this backbone.
        path = path[len(self.path) - 1 :]
        for name, convolutions in self.plan:
            for place, (planned_path, _) in enumerate(convolutions):
                if planned_path[-len(path) :] == path:
                    return getattr(self, name), place
        raise ValueError(
            f"no warehouse was planned for the convolution {'/'.join(path)}: call share_kernels with the "
            "network that uses the warehouses."
        )


def share_kernels(
    network: Callable[[Callable[..., nn.Module]], nn.Module],
    *inputs: Any,
    share: Callable[[tuple[str, ...]], str] | None = None,
    cell_ratio: float = 1.0,
    in_ratio: float = 1.0,
    out_ratio: float = 1.0,
    param_dtype: Any = jnp.float32,
    kernel_init: nn.initializers.Initializer = he_normal_fan_out,
    **fields: Any,
) -> nn.Module:
    """Makes a network whose convolutions are `WarehouseConv`s that share warehouses.

    Args:
        network: a function from `conv=` to the network. `lambda conv: ResNet18(conv=conv, shortcut=conv)`
            is the paper's, in which the projections of the shortcuts share too.
        inputs: the inputs of the network, arrays or `jax.ShapeDtypeStruct`s. Only those of their shapes
            matter on which the kernels depend.
        share: a function from a convolution's path to the name of its warehouse; None for `by_stage`.
        cell_ratio, in_ratio, out_ratio, param_dtype, kernel_init: as in `Warehouse`.
        fields: fields of `WarehouseConv` that all convolutions have in common.

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
    kernels: dict[tuple[str, ...], KernelShape] = {}

    class Recorded(nn.Conv):
        @nn.compact
        def __call__(self, x: Array, context: Array | None = None) -> Array:
            del context  # no kernel's shape depends on it
            size = resolve_kernel_size(self.kernel_size, x)
            in_features = x.shape[-1] // self.feature_group_count
            kernels[self.path] = KernelShape(size, in_features, self.features)
            return super().__call__(x)

    # Flax names layers after their class if they have no name.
    Recorded.__name__ = WarehouseConv.__name__
    jax.eval_shape(network(Recorded).init, jax.random.key(0), *inputs)
    warehouses: dict[str, list[tuple[tuple[str, ...], KernelShape]]] = {}
    for path, kernel in kernels.items():
        warehouses.setdefault(share(path), []).append((path, kernel))
    return network(
        Warehouses(
            plan=tuple((name, tuple(members)) for name, members in warehouses.items()),
            fields=FrozenDict(fields),
            cell_ratio=cell_ratio,
            in_ratio=in_ratio,
            out_ratio=out_ratio,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
        )
    )


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
