"""KernelWarehouse: kernels assembled from cells that the layers of a stage share.

Li, Yao: KernelWarehouse: Rethinking the Design of Dynamic Convolution. ICML 2024.
https://arxiv.org/abs/2406.07879

`dyn.layers.warehouse_sharing` decides which layers of a network share.

Deviations from the authors' code: the paper's temperature is called the blend here, because it blends
the attention with its initial assignment and softens no softmax; a layer without a warehouse has a
private one; an assignment that runs out of cells (with a ratio below one) starts again with the first; a
choice of norm in the attention branch; context from elsewhere; no basis for a layer that has all cells to
itself.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dyn.layers.attention import (
    AttentionBranch,
    drop_axis_names,
    he_normal_fan_out,
    read_variable,
    squeezed_size,
)
from dyn.layers.convolution import ConvLayer
from dyn.layers.dense import DenseLayer
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
    convolutions. With `spatial_partition=False` kernels are cut along their features only.

    Attributes:
        kernels: shapes of the kernels, in the order of their `place`.
        cell_ratio: n / M. With 1/2 there are about half as many parameters as in the static convolutions,
            with 4 four times as many.
        in_ratio: input features of a cell, as a share of the kernels' greatest common divisor.
        out_ratio: output features of a cell, likewise.
        param_dtype: dtype of the cells.
        kernel_init: initialises the cells that a kernel starts with, all together, as a matrix
            `[i, cells * o]`, or `[*k, i, cells * o]` if cells have taps. Its partitioning is not used.
        spatial_partition: whether kernels are cut along their taps, too; False for cells `[*k, i, o]` with
            all taps of a kernel, of which all kernels must then have the same numbers.
        reduction: size of the squeezed vector in the attention of its convolutions, as a share of their
            context's; None for each convolution's own.

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
    spatial_partition: bool = True
    reduction: float | None = None

    @nn.compact
    def __call__(self) -> Array:
        """Returns the cells, `[n, i, o]`, or `[n, *k, i, o]` if they have taps."""
        shape = (self.num_cells, *self._size, *self.cell)
        return self.param("cells", self._init_cells, shape, self.param_dtype)

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

    @property
    def _size(self) -> tuple[int, ...]:
        """Taps of a cell along each axis, if it has any.

        Raises:
            ValueError: if cells have taps and the kernels have different numbers of them.
        """
        if self.spatial_partition:
            return ()
        sizes = dict.fromkeys(kernel.size for kernel in self.kernels)
        if len(sizes) > 1:
            raise ValueError(
                f"spatial_partition=False keeps the taps of a kernel together, but kernels of {list(sizes)} "
                "taps share a warehouse: let each size have its own, or cut them along their taps."
            )
        return next(iter(sizes))

    def find(self, _path: tuple[str, ...], place: int, /) -> tuple["Warehouse", int]:
        """Returns itself and the place: a convolution at any path may use it."""
        return self, place

    def count_blocks(self, place: int) -> tuple[int, int, int]:
        """Returns the number of blocks of a kernel along its taps, its output and its input features."""
        kernel, (i, o) = self.kernels[place], self.cell
        taps = math.prod(kernel.size) // math.prod(self._size)
        return taps, kernel.features // o, kernel.in_features // i

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
        n, cells = self.num_cells, []
        next_cell = self.first_cell(place)
        for block in range(self._counts[place]):
            if self._takes_cell(block):
                cells.append(next_cell % n)
                next_cell += self._step
            else:
                cells.append(n)
        return tuple(cells)

    def first_cell(self, place: int) -> int:
        """Returns the number of cells that earlier kernels have taken."""
        earlier = (map(self._takes_cell, range(count)) for count in self._counts[:place])
        return self._step * sum(map(sum, earlier))

    def count_own_cells(self, place: int) -> int:
        """Returns the number of cells that fall to a kernel, cell_ratio times that of its blocks."""
        return int(self.cell_ratio * self._counts[place])

    @property
    def _step(self) -> int:
        return max(1, int(self.cell_ratio))

    def _takes_cell(self, block: int) -> bool:
        p = int(1 / min(self.cell_ratio, 1.0))
        return block % p == (block // p) % p

    def _init_cells(self, key: Array, shape: Sequence[int], dtype: Any) -> Array:
        n, *size, i, o = shape
        ends = [int(sum(self._counts[: p + 1]) * self.cell_ratio) for p in range(len(self.kernels))]
        ends[-1] = n
        slices = []
        for start, end, k in zip([0, *ends], ends, jax.random.split(key, len(ends)), strict=False):
            if end > start:
                cells = drop_axis_names(self.kernel_init(k, (*size, i, (end - start) * o), dtype))
                slices.append(jnp.moveaxis(cells.reshape(*size, i, end - start, o), -2, 0))
        return jnp.concatenate(slices)


class FindsWarehouse(Protocol):
    """A `Warehouse`, or the `Warehouses` of a network, from which a convolution gets its warehouse."""

    def find(self, path: tuple[str, ...], place: int, /) -> tuple[Warehouse, int] | None:
        """Returns the warehouse of the convolution at a path, and its place there; None if it is static."""
        ...


class WarehouseConv(ConvLayer):
    """Convolves each input with a kernel assembled from the cells of a warehouse.

        y = conv(x, W) + b,   block m of W = sum_j a[m, j] E_j

    with cells E, z = ReLU(norm(W_fc context)) and q = W_q z + b_q, which has a row for each block with one
    number for each of the n cells and one for a cell of zeros, and at blend t,

        a[m] = (1 - t) q[m] / (sum_j |q[m, j]| + 0.001) + t beta[m]

    The layer's own cells are the cell_ratio * M of them that fall to it in the order of the kernels. With
    `basis_ratio` below one, the numbers for the others come from a short vector, by a matrix V that all
    blocks share,

        q[m] = [V u[m], l[m], v[m]] + b_q[m],    [l, u, v][m] = W_q z

    with l for the own cells, which stand where they are in the warehouse, and v for the cell of zeros.

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
        spatial_partition: that of the private warehouse; see `Warehouse`.
        basis_ratio: length of u, as a share of the number of cells that are not the layer's own, and at
            least 16; 1 for a matrix with a row for every cell. Attention then has no u and V, nor has that of
            a layer that owns all cells.
        squeeze_bias: whether W_fc has a bias, as in the authors' networks with a layer norm.

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
    spatial_partition: bool = True
    basis_ratio: float = 1.0
    squeeze_bias: bool = False

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
        context = self.flatten_context(context, x, batch)
        found = self.find_warehouse(x)
        dtype = self.conv_dtype(x)
        if found is None:
            shape = self.kernel_shape(x)
            kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
            y = self.convolve(x.astype(dtype), self.apply_mask(kernel)[None])
        else:
            warehouse, place = found
            cells = warehouse()
            mix = self.attend(context, warehouse, place, float32_or_wider(x, cells))
            y = self.convolve_mixture(x.astype(dtype), mix, cells)
        y = self.add_bias(y)
        return y.reshape(*batch, *y.shape[1:])

    def attend(self, context: Array, warehouse: Warehouse, place: int, dtype: jnp.dtype) -> Array:
        """Returns the weights of the cells in the blocks, `[B, taps, out, in, n]`."""
        fields = self.attention_fields(context.shape[-1], dtype)
        if warehouse.reduction is not None:
            fields["squeezed"] = squeezed_size(
                context.shape[-1], warehouse.reduction, self.min_squeeze
            )
        mix = WarehouseAttention(
            num_cells=warehouse.num_cells,
            assignment=warehouse.initial_cells(place),
            own=(warehouse.first_cell(place), warehouse.count_own_cells(place)),
            basis_ratio=self.basis_ratio,
            squeeze_bias=self.squeeze_bias,
            **fields,
        )(context)
        return mix.reshape(-1, *warehouse.count_blocks(place), mix.shape[-1])

    def convolve_mixture(self, x: Array, mix: Array, cells: Array) -> Array:
        """Convolves each sample with the kernel that its weights assemble from the cells."""
        lowering = self.choose_sample_lowering(x, self.lowering)

        def assemble(mix: Array, cells: Array) -> Array:
            n, *size, i, o = cells.shape
            # A cell with taps is one with more input features, until the taps are taken out again.
            flat = cells.reshape(n, math.prod(size) * i, o)
            kernel = assemble_kernels(mix, flat, x.dtype, fused=lowering == "fused")
            if size:
                kernel = kernel.reshape(-1, mix.shape[3], math.prod(size), i, kernel.shape[-1])
                kernel = jnp.swapaxes(kernel, 1, 2)
            return self.apply_mask(kernel.reshape(-1, *self.kernel_shape(x)))

        return self.convolve_samples(x, assemble, (mix,), (cells,), lowering)

    def find_warehouse(self, x: Array) -> tuple[Warehouse, int] | None:
        """Returns the layer's warehouse, and its place there; None if the layer is static."""
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
                self.spatial_partition,
                name="warehouse",
            )
            return private, 0
        found = self.warehouse.find(self.path, self.place)
        if found is None:
            return None
        warehouse, place = found
        if not 0 <= place < len(warehouse.kernels) or warehouse.kernels[place] != shape:
            raise ValueError(
                f"the warehouse has no {shape} at place {place}; it was made for "
                f"{list(warehouse.kernels)}."
            )
        return warehouse, place


class WarehouseDense(DenseLayer):
    """Multiplies each input by a matrix assembled from the cells of a warehouse.

        y = x W + b,   block m of W = sum_j a[m, j] E_j

    It is a `WarehouseConv` with a kernel of one tap, whose formulas and fields it has: the dense layer of a
    `share_kernels` network, or of its own. Drop-in for `nn.Dense`.

    Attributes:
        features: number of output features; `nn.Dense`'s other fields follow, see `DenseLayer`, and those of
            `WarehouseConv`. A `Warehouse` has the layer's matrix as `KernelShape((1,), I, features)`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import WarehouseDense
        >>> layer = WarehouseDense(features=10, in_ratio=1 / 16)
        >>> x = jnp.ones((2, 512))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> layer.apply(variables, x).shape
        (2, 10)
        >>> variables["params"]["warehouse"]["cells"].shape
        (16, 32, 10)
    """

    kernel_init: nn.initializers.Initializer = he_normal_fan_out
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
    basis_ratio: float = 1.0
    squeeze_bias: bool = False

    @nn.compact
    def __call__(self, inputs: Array, context: Array | None = None) -> Array:
        """Applies the layer; see `DenseLayer.apply_conv`."""
        return self.apply_conv(WarehouseConv, inputs, context)


class WarehouseAttention(AttentionBranch):
    """Computes the weight of each cell in each block, `[B, M, n]`, from a context `[B, D]`.

    Sows it as `cell` in `weights`, and with it `kernel`, the share of each cell, `[B, n]`.

    Attributes:
        num_cells: n.
        assignment: the cell that each block starts with.
        own: index of the first of the layer's own cells, and their number.
        basis_ratio: as in `WarehouseConv`.
    """

    num_cells: int
    assignment: tuple[int, ...]
    own: tuple[int, int]
    basis_ratio: float

    @nn.compact
    def __call__(self, context: Array) -> Array:
        """Computes the weights of the cells."""
        q = self.compute_logits(self.squeeze_context(context))
        q = q / (jnp.sum(jnp.abs(q), axis=-1, keepdims=True) + 1e-3)
        t = read_blend(self).astype(self.dtype)
        beta = nn.one_hot(jnp.asarray(self.assignment), self.num_cells + 1, dtype=self.dtype)
        # The last cell is zeros: it counts in the sum above, but adds nothing to the kernel.
        mix = ((1 - t) * q + lax.broadcast_to_rank(t * beta, q.ndim))[..., :-1]
        share = jnp.sum(jnp.abs(mix), axis=1)
        share = share / jnp.maximum(jnp.sum(share, axis=-1, keepdims=True), 1e-12)
        self.sow_weights(kernel=share, cell=mix)
        return mix

    def compute_logits(self, z: Array) -> Array:
        """Returns q before it is divided, `[B, M, n + 1]`.

        Raises:
            ValueError: if `basis_ratio` is not positive.
        """
        blocks, (first, own) = len(self.assignment), self.own
        others = self.num_cells - own
        if not self.basis_ratio > 0:
            raise ValueError(f"basis_ratio must be positive; got {self.basis_ratio}.")

        def split(q: Array) -> Array:
            return automate_sharding(lambda q: q.reshape(-1, blocks, q.shape[-1] // blocks), q)

        if self.basis_ratio >= 1 or others == 0:
            return split(self.apply_head("cell", z, blocks * (self.num_cells + 1)))
        basis = max(int(others * self.basis_ratio), 16)
        heads = split(self.apply_head("cell", z, blocks * (own + basis + 1), use_bias=False))
        local, short, zero = jnp.split(heads, (own, own + basis), axis=-1)
        far = self.apply_head("basis", short, others, use_bias=False)
        q = jnp.concatenate([far[..., :first], local, far[..., first:], zero], axis=-1)
        shape = (blocks * (self.num_cells + 1),)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        return q + bias.astype(self.dtype).reshape(1, *q.shape[1:])


def read_blend(module: nn.Module) -> Array:
    """Returns the variable `blend` of the collection `attention`: 0 until `set_blend` sets it.

    Trained layers have zero; at one, attention would have no effect and learn nothing.
    """
    return read_variable(module, "blend", jnp.zeros)
