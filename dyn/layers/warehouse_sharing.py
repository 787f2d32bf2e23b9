"""Networks whose convolutions share warehouses of cells: which layers share, and how they find theirs.

Li, Yao: KernelWarehouse: Rethinking the Design of Dynamic Convolution. ICML 2024.
https://arxiv.org/abs/2406.07879

Deviation from the authors' code: which layers share is found from the shapes of the network instead of
from the names of its layers.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from dyn.layers.attention import he_normal_fan_out
from dyn.layers.convolution import kernel_shape
from dyn.layers.kernel_warehouse import KernelShape, Warehouse, WarehouseConv

Array = jax.Array


class Warehouses(nn.Module):
    """Makes the convolutions of a network, which draw on warehouses: what a network takes as `conv=`.

    It owns the cells. A convolution finds its warehouse by its path in the network. `share_kernels`
    makes one for a network.

    Attributes:
        plan: for each warehouse its name, and the path and kernel of each convolution.
        fields: fields of `WarehouseConv` that all the convolutions have.
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
        for name, places in self.plan:
            warehouse = Warehouse(
                tuple(kernel for _, kernel in places),
                self.cell_ratio,
                self.in_ratio,
                self.out_ratio,
                self.param_dtype,
                self.kernel_init,
            )
            setattr(self, name, warehouse)

    # Not wrapped, so that the convolution belongs to the block that asks for it.
    @nn.nowrap
    def __call__(self, *args: Any, **fields: Any) -> WarehouseConv:
        """A convolution, from `nn.Conv`'s arguments."""
        return WarehouseConv(*args, **{**self.fields, **fields, "warehouse": self})

    def find(self, path: tuple[str, ...], place: int) -> tuple[Warehouse, int]:
        """The warehouse of the convolution at a path, and its place there by the plan.

        Raises:
            ValueError: if the network for which the plan was made has no convolution there.
        """
        del place
        # The plan may be of a network around the one that this belongs to, such as a head's over a backbone.
        path = path[len(self.path) - 1 :]
        for name, places in self.plan:
            for place, (at, _) in enumerate(places):
                if at[-len(path) :] == path:
                    return getattr(self, name), place
        raise ValueError(
            f"no warehouse was planned for the convolution {'/'.join(path)}: make them with "
            "share_kernels from the network that they are for."
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
    """A network whose convolutions are `WarehouseConv`s that share warehouses.

    Args:
        network: makes it, from what makes its convolutions. `lambda conv: ResNet18(conv=conv,
            shortcut=conv)` is the paper's: there the projections of the shortcuts share, too.
        inputs: what the network is called with, arrays or `jax.ShapeDtypeStruct`s. Only their shapes
            matter, and only so far as the kernels depend on them.
        share: the name of the warehouse of the convolution at a path; None for `by_stage`.
        cell_ratio, in_ratio, out_ratio, param_dtype, kernel_init: as in `Warehouse`.
        fields: fields of `WarehouseConv` that all the convolutions have.

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
            size = kernel_shape(self.kernel_size, x)
            in_features = x.shape[-1] // self.feature_group_count
            kernels[self.path] = KernelShape(size, in_features, self.features)
            return super().__call__(x)

    # A network calls layers without a name after their class.
    Recorded.__name__ = WarehouseConv.__name__
    jax.eval_shape(network(Recorded).init, jax.random.key(0), *inputs)
    warehouses: dict[str, list[tuple[tuple[str, ...], KernelShape]]] = {}
    for path, kernel in kernels.items():
        warehouses.setdefault(share(path), []).append((path, kernel))
    return network(
        Warehouses(
            plan=tuple((name, tuple(places)) for name, places in warehouses.items()),
            fields=FrozenDict(fields),
            cell_ratio=cell_ratio,
            in_ratio=in_ratio,
            out_ratio=out_ratio,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
        )
    )


def by_stage(path: tuple[str, ...]) -> str:
    """The paper's rule: a stage shares, and the layers that lead into a stage share with the one before.

    For networks whose convolutions are called `stage2_block1/conv1`, as those of `dyn.models` are. Into a
    stage lead its first block's first convolution and the projection of its shortcut.

    Raises:
        ValueError: for another name.

    Example:
        >>> from dyn.layers import by_stage
        >>> [by_stage(("stage2_block1", name)) for name in ("conv1", "conv2", "downsample_conv")]
        ['stage1', 'stage2', 'stage1']
    """
    found = re.fullmatch(r"(?:.*/)?stage(\d+)_block(\d+)/(\w+)", "/".join(path))
    if found is None:
        raise ValueError(
            f"the convolution {'/'.join(path)} is in no stage: give share=, a function from its path to "
            "the name of a warehouse."
        )
    stage, block, name = int(found[1]), int(found[2]), found[3]
    leads_into = stage > 1 and block == 1 and name in ("conv1", "downsample_conv")
    return f"stage{stage - leads_into}"
