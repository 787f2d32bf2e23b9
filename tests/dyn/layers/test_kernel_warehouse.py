"""WarehouseConv against published numbers and an independent computation; its cells and its blend."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from jax.test_util import check_grads
from layer_cases import assert_published, filled, init_shapes, random_input, shapes_of, sines

from dyn.layers.kernel_warehouse import KernelShape, Warehouse, WarehouseConv, WarehouseDense
from dyn.schedules import linear_blend, set_blend, set_temperature


class Shared(nn.Module):
    """Applies the second of two convolutions that share a warehouse."""

    param_dtype: jnp.dtype = jnp.float32
    spatial_partition: bool = True
    basis_ratio: float = 1.0

    @nn.compact
    def __call__(self, x):
        kernels = (KernelShape((3, 3), 4, 4), KernelShape((3, 3), 4, 8))
        warehouse = Warehouse(
            kernels,
            param_dtype=self.param_dtype,
            spatial_partition=self.spatial_partition,
            name="warehouse",
        )
        return WarehouseConv(
            8,
            (3, 3),
            padding=1,
            use_bias=False,
            attention_norm="batch",
            warehouse=warehouse,
            place=1,
            param_dtype=self.param_dtype,
            basis_ratio=self.basis_ratio,
            name="conv",
        )(x)


# Parity with the authors' code, by numbers published with the formulas: all arrays are sines, made in torch's
# layout and then transposed to ours.


def attention_of(in_features, head, squeezed=16):
    """Returns the parameters of an attention, `head` those after the norm, and its statistics."""
    params = {
        "squeeze": {"kernel": sines((squeezed, in_features), 1.3).T},
        "norm": {"scale": 1 + sines((squeezed,), 1.6, 0.1), "bias": sines((squeezed,), 1.9)},
        **head,
    }
    return params, {"norm": {"mean": np.zeros(squeezed), "var": np.ones(squeezed)}}


def whole_head(blocks, cells, squeezed=16):
    outputs = blocks * (cells + 1)
    kernel, bias = sines((outputs, squeezed), 2.2).T, sines((outputs,), 2.5)
    return {"cell": {"kernel": kernel, "bias": bias}}


def low_rank_head(blocks, own, others, basis, squeezed=16):
    return {
        "cell": {"kernel": sines((blocks * (own + basis + 1), squeezed), 2.2).T},
        "basis": {"kernel": sines((others, basis), 2.5).T},
        "bias": sines((blocks * (own + others + 1),), 2.8),
    }


def shared_variables(cells, head, blend):
    params, statistics = attention_of(4, head)
    return {
        "params": {"warehouse": {"cells": cells}, "conv": {"attention": params}},
        "batch_stats": {"conv": {"attention": statistics}},
        "attention": {"conv": {"attention": {"blend": np.asarray(blend)}}},
    }


SMALL_CELLS = sines((27, 4, 4), 0.7).transpose(0, 2, 1)
WHOLE_CELLS = sines((3, 4, 4, 3, 3), 0.7).transpose(0, 3, 4, 2, 1)
FORMS = {
    "KW-A": ({}, SMALL_CELLS, whole_head(18, 27)),
    "KW-B": ({"basis_ratio": 1 / 16}, SMALL_CELLS, low_rank_head(18, own=18, others=9, basis=16)),
    "KW-D": ({"spatial_partition": False}, WHOLE_CELLS, whole_head(2, 3)),
}
PARITY = [
    (
        "KW-A",
        0.0,
        (-0.7848171511, 376.9846173455),
        (-1.98753421, -1.72398163, -1.55411329, -1.30239414, -0.67717493),
    ),
    ("KW-A", 0.5, (2.2350415362, 588.8586407950), None),
    ("KW-A", 1.0, (5.2549002235, 1157.6097485885), None),
    (
        "KW-B",
        0.0,
        (-3.2768099014, 351.3205913688),
        (0.16430482, 0.05921456, 0.55968202, 1.03067259, -1.53707509),
    ),
    (
        "KW-B",
        0.5,
        (0.9890451610, 605.2176463080),
        (-1.65186688, -2.31442268, -1.83371733, -1.25643521, 0.59492548),
    ),
    (
        "KW-D",
        0.0,
        (0.0518945312, 98.9984817540),
        (-0.01441095, 0.11183362, 0.18107829, 0.24078607, -0.14665219),
    ),
    (
        "KW-D",
        0.5,
        (1.2349397646, 176.1680992246),
        (-0.02704201, -0.21772983, -0.30673895, -0.37959299, 0.36859886),
    ),
]


@pytest.mark.parametrize(("form", "blend", "sums", "entries"), PARITY)
def test_published_parity_vector(form, blend, sums, entries):
    fields, cells, head = FORMS[form]
    x = sines((2, 4, 5, 5), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)
    net = Shared(param_dtype=jnp.float64, **fields)
    assert_published(net, shared_variables(cells, head, blend), x, sums, entries)


DENSE_PARITY = {
    (2, 6): (
        (3.9274485640, 9.3453063079),
        (0.97374029, 1.0873644, 0.45904797, -0.19262392, 0.03705766),
    ),
    (2, 5, 6): (
        (21.5489907209, 41.8114063800),
        (0.95423911, 1.03733548, 0.43405728, -0.1648198, 0.10452315),
    ),
}


@pytest.mark.parametrize("shape", DENSE_PARITY)
def test_published_parity_vector_of_the_dense_layer(shape):
    params, statistics = attention_of(6, whole_head(4, 2))
    cells, bias = sines((2, 4, 3), 0.7).transpose(0, 2, 1), sines((8,), 0.9)
    variables = {
        "params": {"warehouse": {"cells": cells}, "attention": params, "bias": bias},
        "batch_stats": {"attention": statistics},
        "attention": {"attention": {"blend": np.asarray(0.0)}},
    }
    layer = WarehouseDense(
        8,
        param_dtype=jnp.float64,
        cell_ratio=0.5,
        in_ratio=0.5,
        out_ratio=0.5,
        attention_norm="batch",
        token_axes=len(shape) - 2,
    )
    assert_published(layer, variables, sines(shape, 0.05, 1.0, 0.23), *DENSE_PARITY[shape])


# The formulas in numpy.


def logits_by_definition(attention, z, blocks, own, cells):
    """Computes q of one sample before it is divided, one number after another: `[M, n + 1]`."""
    if "basis" not in attention:
        q = z @ attention["cell"]["kernel"] + attention["cell"]["bias"]
        return q.reshape(blocks, cells + 1)
    first, number = own
    rows = (z @ attention["cell"]["kernel"]).reshape(blocks, -1)
    bias = attention["bias"].reshape(blocks, cells + 1)
    q = np.zeros((blocks, cells + 1))
    others = [j for j in range(cells) if not first <= j < first + number]
    for m, row in enumerate(rows):
        for j in range(number):
            q[m, first + j] = row[j]
        for index, j in enumerate(others):
            q[m, j] = row[number:-1] @ attention["basis"]["kernel"][:, index]
        q[m, cells] = row[-1]
    return q + bias


def kernels_by_definition(variables, context, size, blocks, cells, blend, assignment, own=None):
    """Assembles each sample's kernel, `[B, *size, i, o]`, one block after another."""
    attention = jax.tree.map(np.asarray, variables["params"]["attention"])
    running = variables["batch_stats"]["attention"]["norm"]
    z = np.asarray(context) @ attention["squeeze"]["kernel"]
    z = (z - running["mean"]) / np.sqrt(running["var"] + 1e-5)
    z = np.maximum(z * attention["norm"]["scale"] + attention["norm"]["bias"], 0)
    n, *cell_size, i, o = cells.shape
    out_blocks, in_blocks = blocks
    kernels = []
    for sample in z:
        kernel = np.zeros((math.prod(size), in_blocks * i, out_blocks * o))
        for m, weights in enumerate(
            logits_by_definition(attention, sample, len(assignment), own, n)
        ):
            weights = (1 - blend) * weights / (np.abs(weights).sum() + 1e-3)
            weights[assignment[m]] += blend
            block = sum(w * cell for w, cell in zip(weights[:n], cells, strict=True))
            tap, rest = divmod(m, out_blocks * in_blocks)
            p, r = divmod(rest, in_blocks)
            where = slice(None) if cell_size else slice(tap, tap + 1)
            kernel[where, r * i : (r + 1) * i, p * o : (p + 1) * o] = block.reshape(-1, i, o)
        kernels.append(kernel.reshape(*size, in_blocks * i, out_blocks * o))
    return np.stack(kernels)


CASES = {
    "usual": dict(kernel_size=(3, 2), strides=2, cell_ratio=2),
    "blocks": dict(kernel_size=(3, 3), in_ratio=0.5, out_ratio=0.25, cell_ratio=0.5),
    "groups": dict(kernel_size=(3, 3), feature_group_count=2, padding="VALID"),
    "whole cells": dict(
        kernel_size=(3, 2), in_ratio=0.5, out_ratio=0.25, cell_ratio=2, spatial_partition=False
    ),
}


@pytest.mark.parametrize(("name", "blend"), [*zip(CASES, (0.3, 0.0, 0.0, 0.3), strict=True)])
def test_follows_the_formulas(name, blend):
    layer = WarehouseConv(8, **CASES[name], attention_norm="batch", param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = random_input(3, 5, 4, 4, dtype=np.float64)
        variables = set_blend(filled(layer, x, dtype=np.float64), blend)
        y = jax.jit(layer.apply)(variables, x)
        cells = np.asarray(variables["params"]["warehouse"]["cells"])
        i = 4 // layer.feature_group_count
        warehouse = Warehouse(
            (KernelShape(layer.kernel_size, i, 8),),
            layer.cell_ratio,
            layer.in_ratio,
            layer.out_ratio,
            spatial_partition=layer.spatial_partition,
        )
        kernels = kernels_by_definition(
            variables,
            np.asarray(x).mean((1, 2)),
            layer.kernel_size,
            (8 // cells.shape[-1], i // cells.shape[-2]),
            cells,
            blend,
            warehouse.initial_cells(0),
        )
        fields = ("strides", "padding", "feature_group_count")
        geometry = {name: getattr(layer, name) for name in fields}
        want = numpy_oracle.convolve(x, kernels, np.eye(len(x)), **geometry)
        want = want + np.asarray(variables["params"]["bias"])
    np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-11)


class Middle(nn.Module):
    """Applies the second of three convolutions of one warehouse, with a basis for the cells of the others."""

    cell_ratio: float = 2.0

    def make_warehouse(self, **fields):
        kernels = (KernelShape((1,), 2, 4), KernelShape((2,), 2, 8), KernelShape((3,), 2, 4))
        return Warehouse(kernels, self.cell_ratio, param_dtype=jnp.float64, **fields)

    @nn.compact
    def __call__(self, x, context):
        return WarehouseConv(
            8,
            (2,),
            use_bias=False,
            param_dtype=jnp.float64,
            attention_norm="batch",
            use_running_average=True,
            warehouse=self.make_warehouse(name="warehouse"),
            place=1,
            basis_ratio=0.25,
            name="conv",
        )(x, context)


@pytest.mark.parametrize(
    ("cell_ratio", "own"),
    [(2.0, (2, 8)), pytest.param(0.5, (1, 2), marks=pytest.mark.matrix)],
)
def test_low_rank_attention_follows_the_formulas(cell_ratio, own):
    net = Middle(cell_ratio)
    warehouse = net.make_warehouse(parent=None)
    assert (warehouse.first_cell(1), warehouse.count_own_cells(1)) == own
    with jax.enable_x64(True):
        x, context = random_input(3, 5, 2, dtype=np.float64), random_input(3, 7, dtype=np.float64)
        variables = filled(net, x, context, dtype=np.float64)
        conv = {name: tree["conv"] for name, tree in variables.items() if name != "attention"}
        cells = np.asarray(variables["params"]["warehouse"]["cells"])
        kernels = kernels_by_definition(
            conv, context, (2,), (2, 1), cells, 0.0, warehouse.initial_cells(1), own
        )
        y = jax.jit(net.apply)(variables, x, context)
        want = numpy_oracle.convolve(x, kernels, np.eye(len(x)))
        np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-11)
        others = warehouse.num_cells - own[1]
        attention = shapes_of(conv["params"]["attention"])
        assert attention["basis/kernel"] == (16, others)
        assert attention["bias"] == (4 * (warehouse.num_cells + 1),)


@pytest.mark.matrix
def test_gradients_of_low_rank_attention():
    net = Middle()
    with jax.enable_x64(True):
        x, context = random_input(3, 5, 2, dtype=np.float64), random_input(3, 7, dtype=np.float64)
        variables = filled(net, x, context, dtype=np.float64)
        params = variables["params"]
        # Far from the kinks of its ReLU.
        params["conv"]["attention"]["norm"]["bias"] += 4.0
        params["conv"]["attention"]["squeeze"]["kernel"] *= 0.1

        def apply(params, context):
            return jnp.sum(net.apply({**variables, "params": params}, x, context) ** 2)

        check_grads(apply, (params, context), 1, ["rev"], atol=1e-6, rtol=1e-6, eps=1e-6)


def test_a_layer_that_owns_all_cells_has_no_basis():
    x = jnp.ones((2, 5, 4))
    whole, low = (
        shapes_of(init_shapes(WarehouseConv(8, (3,), basis_ratio=ratio), x)["params"])
        for ratio in (1.0, 0.1)
    )
    assert whole == low


def test_the_squeeze_may_have_a_bias():
    params = init_shapes(WarehouseConv(8, (3,), squeeze_bias=True), jnp.ones((2, 5, 4)))["params"]
    assert shapes_of(params["attention"]["squeeze"]) == {"kernel": (4, 16), "bias": (16,)}


# Cells: how many, which ones, how initialised.


def test_ratios_of_two_and_a_half_assign_as_in_the_paper_s_code():
    kernels = (KernelShape((3,), 4, 8), KernelShape((3,), 8, 8))
    twice = Warehouse(kernels, cell_ratio=2)
    assert twice.cell == (4, 8) and twice.num_cells == 18
    assert twice.initial_cells(0) == (0, 2, 4)
    assert twice.initial_cells(1) == (6, 8, 10, 12, 14, 16)
    half = Warehouse((KernelShape((3, 3), 4, 4),) * 4, cell_ratio=0.5)
    zero = half.num_cells
    assert zero == 18
    assert half.initial_cells(0) == (0, zero, zero, 1, 2, zero, zero, 3, 4)
    assert half.initial_cells(1) == (5, zero, zero, 6, 7, zero, zero, 8, 9)
    # Odd numbers of blocks ask for more than half of them: the count starts again.
    assert half.initial_cells(3) == (15, zero, zero, 16, 17, zero, zero, 0, 1)


def test_every_cell_is_some_block_s_first_at_ratio_one():
    kernels = tuple(KernelShape((3, 3), i, o) for i, o in ((4, 4), (4, 8), (8, 12)))
    warehouse = Warehouse(kernels)
    taken = [cell for place in range(3) for cell in warehouse.initial_cells(place)]
    assert taken == list(range(warehouse.num_cells))


def test_cells_are_initialised_by_the_slice_of_each_kernel():
    """Variance 2 / (cells of the kernel * o)."""
    kernels = (KernelShape((1, 1), 32, 32), KernelShape((3, 3), 32, 64))
    cells = np.asarray(Warehouse(kernels).init(jax.random.key(0))["params"]["cells"])
    assert cells.shape == (19, 32, 32)
    for part, count in ((cells[:1], 1), (cells[1:], 18)):
        np.testing.assert_allclose(part.var(), 2 / (count * 32), rtol=0.12)
    few = Warehouse(kernels, cell_ratio=0.01).init(jax.random.key(0))["params"]["cells"]
    assert few.shape == (1, 32, 32) and np.abs(few).max() > 0


def test_cells_with_taps_are_initialised_like_kernels():
    kernels = (KernelShape((3, 3), 32, 32), KernelShape((3, 3), 32, 64))
    warehouse = Warehouse(kernels, spatial_partition=False)
    cells = np.asarray(warehouse.init(jax.random.key(0))["params"]["cells"])
    assert cells.shape == (3, 3, 3, 32, 32)
    for part, count in ((cells[:1], 1), (cells[1:], 2)):
        np.testing.assert_allclose(part.var(), 2 / (9 * count * 32), rtol=0.05)
    mixed = Warehouse((*kernels, KernelShape((1, 1), 32, 32)), spatial_partition=False)
    with pytest.raises(ValueError, match="spatial_partition=False"):
        mixed.init(jax.random.key(0))


# The blend.


def test_temperature_does_not_touch_the_blend_and_annealing_compiles_once():
    layer = WarehouseConv(8, (3,))
    x = random_input(3, 6, 4)
    variables = set_temperature(filled(layer, x), 30.0)
    assert variables["attention"]["attention"]["blend"] == 0
    traces = []

    @jax.jit
    def apply(variables, step):
        traces.append(1)
        return layer.apply(set_blend(variables, linear_blend(step, 10)), x)

    outputs = [apply(variables, jnp.asarray(step)) for step in (0, 5, 10)]
    assert len(traces) == 1
    assert not np.allclose(outputs[0], outputs[1])
    np.testing.assert_allclose(outputs[2], layer.apply(variables, x), rtol=1e-4, atol=1e-5)
    without = {k: v for k, v in variables.items() if k != "attention"}
    np.testing.assert_array_equal(layer.apply(without, x), layer.apply(variables, x))


def test_a_new_layer_s_blend_is_zero():
    layer = WarehouseConv(8, (3,))
    variables = layer.init(jax.random.key(0), random_input(3, 6, 4))
    assert variables["attention"]["attention"]["blend"] == 0


def test_sows_the_weights_and_the_share_of_each_cell():
    layer = WarehouseConv(8, (3, 3))
    x = random_input(3, 5, 5, 4)
    _, sown = jax.jit(lambda v: layer.apply(v, x, mutable=["intermediates"]))(filled(layer, x))
    weights = sown["intermediates"]["attention"]["weights"][0]
    assert weights["cell"].shape == (3, 9, 9) and weights["kernel"].shape == (3, 9)
    assert (np.abs(weights["cell"]).sum(-1) <= 1).all()
    np.testing.assert_allclose(weights["kernel"].sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_kernel_that_the_warehouse_was_not_made_for_is_refused(place):
    class Wrong(nn.Module):
        @nn.compact
        def __call__(self, x):
            cells = Warehouse((KernelShape((3, 3), 4, 4),))
            return WarehouseConv(8, (3, 3), warehouse=cells, place=place)(x)

    with pytest.raises(ValueError, match=f"features=8.* at place {place}"):
        init_shapes(Wrong(), jnp.ones((2, 5, 5, 4)))
