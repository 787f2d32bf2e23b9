"""KernelWarehouse: kernels assembled from cells that the layers of a stage share.

Li, Yao: KernelWarehouse: Rethinking the Design of Dynamic Convolution. ICML 2024.
https://arxiv.org/abs/2406.07879

`dyn.layers.warehouse_sharing` decides which layers of a network share.

Deviations from the authors' code: the paper's temperature is called the blend here, because it blends
the attention with its initial assignment and softens no softmax; a layer without a warehouse has a
private one; an assignment that runs out of cells (with a ratio below one) starts again with the first; a
choice of norm in the attention branch, always without bias; context from elsewhere. Left out: cells that
keep their spatial size, the low-rank form of the attention's last product, and `Linear`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dyn.layers.attention import AttentionBranch, he_normal_fan_out, read_variable
from dyn.layers.convolution import ConvLayer
from dyn.layers.fields import CheckedModule
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.lowerings import assemble_kernels
from dyn.ops.sharding import automate_sharding

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class KernelShape:
    """The shape of one kernel, `(*size, in_features, features)`; `in_features` are those of one group."""

    size: tuple[int, ...]
    in_features: int
    features: int


class Warehouse(CheckedModule):
    """Holds the cells that the kernels of several convolutions are assembled from.

    A kernel is cut along its taps and features into blocks of `[i, o]` numbers, where i and o are the
    greatest common divisors of all kernels' features, times a ratio. Each block is a mixture of the n
    cells. The kernels have M blocks in total, and n = cell_ratio * M. Make one warehouse and pass it to the
    convolutions.

    Attributes:
        kernels: shapes of the kernels, in the order of their `place`.
        cell_ratio: n / M. With 1/2 there are about half as many parameters as in the static convolutions,
            with 4 four times as many.
        in_ratio: input features of a cell, as a share of the kernels' greatest common divisor.
        out_ratio: output features of a cell, likewise.
        param_dtype: dtype of the cells.
        kernel_init: initialises the cells that a kernel starts with, all together, as a matrix
            `[i, cells * o]`.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from dyn.layers.kernel_warehouse import KernelShape, Warehouse, WarehouseConv
        >>> class Two(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x):
        ...         cells = Warehouse((KernelShape((3, 3), 4, 4), KernelShape((3, 3), 4, 8)))
        ...         x = WarehouseConv(4, (3, 3), warehouse=cells, place=0)(x)
        ...         return WarehouseConv(8, (3, 3), warehouse=cells, place=1)(nn.relu(x))
        >>> variables = Two().init(jax.random.key(0), jnp.ones((2, 8, 8, 4)))
        >>> variables["params"]["Warehouse_0"]["cells"].shape
        (27, 4, 4)
    """

    kernels: Sequence[KernelShape]
    cell_ratio: float = 1.0
    in_ratio: float = 1.0
    out_ratio: float = 1.0
    param_dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = he_normal_fan_out

    @nn.compact
    def __call__(self) -> Array:
        """Returns the cells, `[n, i, o]`."""
        return self.param("cells", self._init_cells, (self.num_cells, *self.cell), self.param_dtype)

    @property
    def cell(self) -> tuple[int, int]:
        """Input and output features of a cell, (i, o).

        Raises:
            ValueError: if the ratios give a cell that does not divide every kernel.
        """
        i = max(1, int(math.gcd(*(k.in_features for k in self.kernels)) * self.in_ratio))
        o = max(1, int(math.gcd(*(k.features for k in self.kernels)) * self.out_ratio))
        for kernel in self.kernels:
            if kernel.in_features % i or kernel.features % o:
                raise ValueError(
                    f"in_ratio={self.in_ratio} and out_ratio={self.out_ratio} make cells of {i} x {o} "
                    f"features, which do not divide {kernel}: write 1, 1/2, 1/4, ..."
                )
        return i, o

    def find(self, _path: tuple[str, ...], place: int, /) -> tuple["Warehouse", int]:
        """Returns itself and the place: a convolution at any path may use it."""
        return self, place

    def count_blocks(self, place: int) -> tuple[int, int, int]:
        """Returns the number of taps and of blocks along output and input features of a kernel."""
        kernel, (i, o) = self.kernels[place], self.cell
        return math.prod(kernel.size), kernel.features // o, kernel.in_features // i

    @property
    def num_cells(self) -> int:
        """Number of cells, n."""
        if not self.cell_ratio > 0:
            raise ValueError(f"cell_ratio must be positive; got {self.cell_ratio}.")
        return max(1, int(sum(self._counts) * self.cell_ratio))

    @property
    def _counts(self) -> list[int]:
        """Number of blocks of each kernel."""
        return [math.prod(self.count_blocks(place)) for place in range(len(self.kernels))]

    def initial_cells(self, place: int) -> tuple[int, ...]:
        """Returns the cell that each block of a kernel starts with; n stands for the cell of zeros.

        With a ratio of at least one, blocks take cells in order, floor(ratio) apart. Below one, with
        p = floor(1 / ratio), block i takes the next cell if i mod p = floor(i / p) mod p, and starts as zeros
        otherwise.
        """
        n = self.num_cells
        step = max(1, int(self.cell_ratio))
        p = int(1 / min(self.cell_ratio, 1.0))
        next_cell, cells = 0, []
        for count in self._counts[: place + 1]:
            cells = []
            for block in range(count):
                if block % p == (block // p) % p:
                    cells.append(next_cell % n)
                    next_cell += step
                else:
                    cells.append(n)
        return tuple(cells)

    def _init_cells(self, key: Array, shape: Sequence[int], dtype: Any) -> Array:
        n, i, o = shape
        ends = [int(sum(self._counts[: p + 1]) * self.cell_ratio) for p in range(len(self.kernels))]
        ends[-1] = n
        slices = []
        for start, end, k in zip([0, *ends], ends, jax.random.split(key, len(ends)), strict=False):
            if end > start:
                cells = self.kernel_init(k, (i, (end - start) * o), dtype)
                slices.append(jnp.moveaxis(cells.reshape(i, end - start, o), 1, 0))
        return jnp.concatenate(slices)


class FindsWarehouse(Protocol):
    """A `Warehouse`, or the `Warehouses` of a network, from which a convolution gets its warehouse."""

    def find(self, path: tuple[str, ...], place: int, /) -> tuple[Warehouse, int]:
        """Returns the warehouse of the convolution at a path, and its place there."""
        ...


class WarehouseConv(ConvLayer):
    """Convolves each input with a kernel assembled from the cells of a warehouse.

        y = conv(x, W) + b,   block m of W = sum_j a[m, j] E_j

    with cells E, z = ReLU(norm(W_fc context)) and q = W_q z + b_q, which has a row for each block with one
    number for each of the n cells and one for a cell of zeros, and at blend t,

        a[m] = (1 - t) q[m] / (sum_j |q[m, j]| + 0.001) + t beta[m]

    beta is a fixed assignment of one cell to each block: with t = 1 the kernel is static. The paper goes
    from 1 to 0 over the first epochs: see `dyn.schedules.linear_blend`. The blend is the variable `blend`
    of the collection `attention`; it is 0 until `dyn.schedules.set_blend` sets it.

    Each sample has its own kernel, and there are no whole kernels whose outputs could be mixed, so that
    only the lowerings for per-sample kernels work. Sows `weights`: `cell`, the attention `[B, M, n]`, and
    `kernel`, the share that each cell has in the layer's kernel, `[B, n]`.

    Attributes:
        features: number of output features; `nn.Conv`'s other fields follow, see `ConvLayer`.
        warehouse: a `Warehouse`, or `Warehouses`, which find one by the layer's path in the network; None
            for a private one, which the taps of the kernel share.
        place: index of this kernel in a `Warehouse`.
        cell_ratio, in_ratio, out_ratio: those of the private warehouse; see `Warehouse`.
        reduction: size of the squeezed vector, as a share of the context's.
        min_squeeze: lower bound on that size.
        attention_norm: 'layer', 'batch' (the paper's) or 'none'; see
            `dyn.layers`.
        use_running_average: for 'batch': None uses batch statistics exactly when the collection
            `batch_stats` is mutable.
        lowering: 'taps', 'patches', 'samples', 'reference', 'fused' or 'auto'; see `dyn.ops.dynamic_conv`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers.kernel_warehouse import WarehouseConv
        >>> layer = WarehouseConv(features=16, kernel_size=(3, 3), cell_ratio=2)
        >>> x = jnp.ones((2, 8, 8, 3))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> layer.apply(variables, x).shape
        (2, 8, 8, 16)
        >>> variables["params"]["warehouse"]["cells"].shape
        (18, 3, 16)
    """

    warehouse: FindsWarehouse | None = None
    place: int = 0
    cell_ratio: float = 1.0
    in_ratio: float = 1.0
    out_ratio: float = 1.0
    reduction: float = 1 / 16
    min_squeeze: int = 16
    attention_norm: str = "layer"
    use_running_average: bool | None = None
    lowering: str = "auto"

    @nn.compact
    def __call__(self, inputs: Array, context: Array | None = None) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, *spatial, I]`, any number of batch axes.
            context: what attention looks at, `[*batch, D]`; None for the mean of the inputs over space.

        Returns:
            `[*batch, *out, features]`.

        Raises:
            ValueError: if the kernel, the context or the groups do not fit the inputs, or the warehouse
                was not made for this kernel.
        """
        x, batch = self.flatten_inputs(inputs)
        warehouse, place = self.find_warehouse(x)
        cells = warehouse()
        taps, out_blocks, in_blocks = warehouse.count_blocks(place)
        dtype = float32_or_wider(x, cells)
        context = self.flatten_context(context, x, batch)
        mix = WarehouseAttention(
            num_cells=warehouse.num_cells,
            assignment=warehouse.initial_cells(place),
            **self.attention_fields(context.shape[-1], dtype),
        )(context)

        mix = mix.reshape(-1, taps, out_blocks, in_blocks, mix.shape[-1])
        x = x.astype(self.conv_dtype(x))

        lowering = self.choose_sample_lowering(x, self.lowering)

        def assemble(mix: Array, cells: Array) -> Array:
            kernel = assemble_kernels(mix, cells, x.dtype, fused=lowering == "fused")
            return self.apply_mask(kernel.reshape(-1, *self.kernel_shape(x)))

        y = self.convolve_samples(x, assemble, (mix,), (cells,), lowering)
        y = self.add_bias(y)
        return y.reshape(*batch, *y.shape[1:])

    def find_warehouse(self, x: Array) -> tuple[Warehouse, int]:
        """Returns the layer's warehouse, and its place there."""
        *size, in_features, features = self.kernel_shape(x)
        shape = KernelShape(tuple(size), in_features, features)
        if self.warehouse is None:
            private = Warehouse(
                (shape,),
                self.cell_ratio,
                self.in_ratio,
                self.out_ratio,
                self.param_dtype,
                self.kernel_init,
                name="warehouse",
            )
            return private, 0
        warehouse, place = self.warehouse.find(self.path, self.place)
        if not 0 <= place < len(warehouse.kernels) or warehouse.kernels[place] != shape:
            raise ValueError(
                f"the warehouse has no {shape} at place {place}; it was made for "
                f"{list(warehouse.kernels)}."
            )
        return warehouse, place


class WarehouseAttention(AttentionBranch):
    """Computes the weight of each cell in each block, `[B, M, n]`, from a context `[B, D]`.

    Sows it as `cell` in `weights`, and with it `kernel`, the share of each cell, `[B, n]`.
    """

    num_cells: int
    assignment: tuple[int, ...]

    @nn.compact
    def __call__(self, context: Array) -> Array:
        """Computes the weights of the cells."""
        blocks, num_cells = len(self.assignment), self.num_cells
        z = self.squeeze_context(context)
        q = self.apply_head("cell", z, blocks * (num_cells + 1))
        q = automate_sharding(lambda q: q.reshape(-1, blocks, num_cells + 1), q)
        q = q / (jnp.sum(jnp.abs(q), axis=-1, keepdims=True) + 1e-3)
        t = read_blend(self).astype(self.dtype)
        beta = nn.one_hot(jnp.asarray(self.assignment), num_cells + 1, dtype=self.dtype)
        # The last cell is zeros: it counts in the sum above, but adds nothing to the kernel.
        mix = ((1 - t) * q + lax.broadcast_to_rank(t * beta, q.ndim))[..., :-1]
        share = jnp.sum(jnp.abs(mix), axis=1)
        share = share / jnp.maximum(jnp.sum(share, axis=-1, keepdims=True), 1e-12)
        self.sow_weights(kernel=share, cell=mix)
        return mix


def read_blend(module: nn.Module) -> Array:
    """Returns the variable `blend` of the collection `attention`: 0 until `set_blend` sets it.

    Trained layers have zero; at one, attention would have no effect and learn nothing.
    """
    return read_variable(module, "blend", jnp.zeros)
