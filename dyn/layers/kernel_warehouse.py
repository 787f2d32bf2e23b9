"""KernelWarehouse: kernels assembled from cells that the layers of a stage share.

Li, Yao: KernelWarehouse: Rethinking the Design of Dynamic Convolution. ICML 2024.
https://arxiv.org/abs/2406.07879

Which layers of a network share is decided in `dyn.layers.warehouse_sharing`.

Deviations from the authors' code: the paper's temperature is called the blend here, because it blends
the attention with its initial assignment and softens no softmax; a layer without a warehouse has one of
its own; where the assignment of a ratio below one asks for more cells than there are, it starts again
with the first; a choice of norm in the attention branch, without bias whichever it is; context from
elsewhere. Left out: cells that keep their spatial size, the low-rank form of the attention's last
product, and `Linear`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dyn.layers.attention import he_normal_fan_out, head, squeeze
from dyn.layers.convolution import ConvLayer
from dyn.ops.dtypes import float32_or_wider

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class KernelShape:
    """One kernel, `[*size, in_features, features]`; `in_features` are those of one group."""

    size: tuple[int, ...]
    in_features: int
    features: int


class Warehouse(nn.Module):
    """The cells that the kernels of several convolutions are assembled from.

    A kernel is cut along its taps and features into blocks of `[i, o]` numbers, i and o being the
    greatest that divide those of every kernel, times a ratio. Each block is a mixture of the n cells:
    the kernels have M blocks in all, and n = cell_ratio * M. Make one, and hand it to the convolutions.

    Attributes:
        kernels: the shapes of the kernels, in the order of their `place`.
        cell_ratio: n / M. 1/2 has about half of the parameters of the static convolutions, 4 four times.
        in_ratio: size of a cell, as a share of the greatest common divisor of the input features.
        out_ratio: the same for output features.
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
        """The cells, `[n, i, o]`."""
        return self.param("cells", self._init_cells, (self.num_cells, *self.cell), self.param_dtype)

    @property
    def cell(self) -> tuple[int, int]:
        """(i, o), the input and output features of a cell.

        Raises:
            ValueError: if the ratios give a cell that does not divide every kernel.
        """
        i = max(1, int(math.gcd(*(k.in_features for k in self.kernels)) * self.in_ratio))
        o = max(1, int(math.gcd(*(k.features for k in self.kernels)) * self.out_ratio))
        for kernel in self.kernels:
            if kernel.in_features % i or kernel.features % o:
                raise ValueError(
                    f"in_ratio={self.in_ratio} and out_ratio={self.out_ratio} give cells of {i} x {o} "
                    f"features, which do not divide {kernel}: write 1, 1/2, 1/4, ..."
                )
        return i, o

    def find(self, path: tuple[str, ...], place: int) -> tuple["Warehouse", int]:
        """Itself and the place given: the convolution at any path may draw on it."""
        del path
        return self, place

    def blocks(self, place: int) -> tuple[int, int, int]:
        """(taps, blocks of output features, blocks of input features) of a kernel."""
        kernel, (i, o) = self.kernels[place], self.cell
        return math.prod(kernel.size), kernel.features // o, kernel.in_features // i

    @property
    def num_cells(self) -> int:
        """n."""
        if not self.cell_ratio > 0:
            raise ValueError(f"cell_ratio must be positive; got {self.cell_ratio}.")
        return max(1, int(sum(self._counts) * self.cell_ratio))

    @property
    def _counts(self) -> list[int]:
        """Number of blocks of each kernel."""
        return [math.prod(self.blocks(place)) for place in range(len(self.kernels))]

    def assignment(self, place: int) -> tuple[int, ...]:
        """The cell that each block of a kernel starts with; n stands for the cell of zeros.

        With a ratio of at least one, blocks take cells in order, floor(ratio) apart. Below one, with
        p = floor(1 / ratio), block number i takes the next cell if i mod p = floor(i / p) mod p, and
        starts as zeros otherwise.
        """
        n, step, p = (
            self.num_cells,
            max(1, int(self.cell_ratio)),
            int(1 / min(self.cell_ratio, 1.0)),
        )
        cell, cells = 0, []
        for count in self._counts[: place + 1]:
            cells = []
            for i in range(count):
                takes_one = i % p == i // p % p
                cells.append(cell % n if takes_one else n)
                cell += step * takes_one
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
    """What a convolution asks for its warehouse: a `Warehouse`, or the `Warehouses` of a network."""

    def find(self, path: tuple[str, ...], place: int) -> tuple[Warehouse, int]:
        """The warehouse of the convolution at a path, and its place there."""
        ...


class WarehouseConv(ConvLayer):
    """A convolution whose kernel is assembled, for each input, from the cells of a warehouse.

        y = conv(x, W) + b,   block m of W = sum_j a[m, j] E_j

    with cells E, with z = ReLU(norm(W_fc context)) and q = W_q z + b_q, one row for each block with a
    number for each of the n cells and one for a cell of zeros, and at blend t,

        a[m] = (1 - t) q[m] / (sum_j |q[m, j]| + 0.001) + t beta[m]

    beta is a fixed assignment of one cell to each block: with t = 1 the kernel is static. The paper goes
    from 1 to 0 over the first epochs: see `dyn.schedules.linear_blend`. It is the variable
    `blend` of the collection `attention`, which `dyn.schedules.set_blend` sets; it is 0 until then.

    There is a kernel of its own for each sample, and no mixture of whole kernels that could be applied
    afterwards: of the lowerings, 'taps' and 'patches' serve. Sows `weights`: `cell`, the attention
    `[B, M, n]`, and `kernel`, the share that each cell has in the layer's kernel, `[B, n]`.

    Attributes:
        features: `nn.Conv`'s fields come first, in its order; see `ConvLayer`.
        warehouse: a `Warehouse`, or what finds one by the layer's path in the network, as `Warehouses`
            does; None for one of the layer's own, in which the kernel's taps share.
        place: for a `Warehouse`, which of its kernels this is.
        cell_ratio, in_ratio, out_ratio: of the layer's own warehouse; see `Warehouse`.
        reduction: size of the squeezed vector, as a share of the context's.
        min_squeeze: its least size.
        attention_norm: 'batch' (the paper's), 'layer' or 'none'.
        use_running_average: for 'batch': None uses batch statistics exactly when the collection
            `batch_stats` is mutable.
        lowering: 'taps', 'patches', 'reference', or 'auto' for one of the first two.

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
    attention_norm: str = "batch"
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
                does not hold this kernel.
        """
        x, batch = self.flat_inputs(inputs)
        warehouse, place = self.find_warehouse(x)
        cells = warehouse()
        taps, out_blocks, in_blocks = warehouse.blocks(place)
        dtype = float32_or_wider(x, cells)
        mix = WarehouseAttention(
            num_cells=warehouse.num_cells,
            assignment=warehouse.assignment(place),
            reduction=self.reduction,
            min_squeeze=self.min_squeeze,
            norm=self.attention_norm,
            use_running_average=self.use_running_average,
            dtype=dtype,
            param_dtype=self.param_dtype,
            name="attention",
        )(self.flat_context(context, x, batch))

        mix = mix.reshape(-1, taps, out_blocks, in_blocks, mix.shape[-1])
        x = x.astype(self.conv_dtype(x))

        def kernels(mix: Array) -> Array:
            # Not `jnp.einsum`, which may exchange the two: XLA then copies every kernel in another layout.
            rows = mix.reshape(math.prod(mix.shape[:-1]), mix.shape[-1])
            flat = cells.astype(dtype).reshape(cells.shape[0], math.prod(cells.shape[1:]))
            kernel = jnp.matmul(rows, flat, precision=lax.Precision.HIGHEST)
            kernel = kernel.reshape(*mix.shape[:-1], *cells.shape[1:])  # [b, T, p, q, i, o]
            kernel = kernel.transpose(0, 1, 3, 4, 2, 5)
            return self.masked(kernel.reshape(-1, *self.one_kernel(x))).astype(x.dtype)

        y = self.convolve_samples(x, kernels, (mix,), self.lowering)
        y = self.add_bias(y)
        return y.reshape(*batch, *y.shape[1:])

    def find_warehouse(self, x: Array) -> tuple[Warehouse, int]:
        """The layer's warehouse, and its place there."""
        *size, in_features, features = self.one_kernel(x)
        shape = KernelShape(tuple(size), in_features, features)
        if self.warehouse is None:
            own = Warehouse(
                (shape,),
                self.cell_ratio,
                self.in_ratio,
                self.out_ratio,
                self.param_dtype,
                self.kernel_init,
                name="warehouse",
            )
            return own, 0
        warehouse, place = self.warehouse.find(self.path, self.place)
        if not 0 <= place < len(warehouse.kernels) or warehouse.kernels[place] != shape:
            raise ValueError(
                f"the warehouse has no {shape} at place {place}; it was made for "
                f"{list(warehouse.kernels)}."
            )
        return warehouse, place


class WarehouseAttention(nn.Module):
    """The weight of each cell in each block, `[B, M, n]`, from a context `[B, D]`.

    Sows it as `cell` in `weights`, and with it `kernel`, the share of each cell, `[B, n]`.
    """

    num_cells: int
    assignment: tuple[int, ...]
    reduction: float
    min_squeeze: int
    norm: str
    use_running_average: bool | None
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, context: Array) -> Array:
        """Weighs the cells."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        blocks, num_cells = len(self.assignment), self.num_cells
        z = squeeze(
            context.astype(self.dtype),
            max(int(context.shape[-1] * self.reduction), self.min_squeeze),
            norm=self.norm,
            use_running_average=self.use_running_average,
            **types,
        )
        q = head("cell", z, blocks * (num_cells + 1), **types).reshape(-1, blocks, num_cells + 1)
        q = q / (jnp.sum(jnp.abs(q), axis=-1, keepdims=True) + 1e-3)
        t = blend(self).astype(self.dtype)
        beta = nn.one_hot(jnp.asarray(self.assignment), num_cells + 1, dtype=self.dtype)
        # The last cell is zeros: it takes its part of the sum above, and nothing comes from it.
        mix = ((1 - t) * q + t * beta)[..., :-1]
        share = jnp.sum(jnp.abs(mix), axis=1)
        share = share / jnp.maximum(jnp.sum(share, axis=-1, keepdims=True), 1e-12)
        self.sow("intermediates", "weights", {"kernel": share, "cell": mix})
        return mix


def blend(module: nn.Module) -> Array:
    """The variable `blend` of the collection `attention`: 0 until `dyn.schedules.set_blend` sets it.

    Zero is what a trained layer has; with one the attention would have no effect, and learn nothing.
    """
    if not (module.has_variable("attention", "blend") or module.is_mutable_collection("attention")):
        return jnp.zeros((), jnp.float32)
    return module.variable("attention", "blend", jnp.zeros, (), jnp.float32).value
