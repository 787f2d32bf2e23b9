"""WarehouseConv against published numbers and an independent computation; its cells and its blend."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from layer_cases import assert_published, filled, init_shapes, random_input, sines

from dyn.layers.kernel_warehouse import KernelShape, Warehouse, WarehouseConv
from dyn.schedules import linear_blend, set_blend, set_temperature


class Shared(nn.Module):
    """Applies the second of two convolutions that share a warehouse."""

    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        kernels = (KernelShape((3, 3), 4, 4), KernelShape((3, 3), 4, 8))
        warehouse = Warehouse(kernels, param_dtype=self.param_dtype, name="warehouse")
        return WarehouseConv(
            8,
            (3, 3),
            padding=1,
            use_bias=False,
            attention_norm="batch",
            warehouse=warehouse,
            place=1,
            param_dtype=self.param_dtype,
            name="conv",
        )(x)


# Parity with the authors' code, by numbers published with the formulas: all arrays are sines.


PARITY = {
    0.0: (-0.7848171511, 376.9846173455),
    0.5: (2.2350415362, 588.8586407950),
    1.0: (5.2549002235, 1157.6097485885),
}


def test_published_parity_vector():
    # Everything is made in torch's layout and then transposed to ours.
    x = sines((2, 4, 5, 5), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)
    blocks, cells, squeezed = 18, 27, 16
    outputs = blocks * (cells + 1)
    variables = {
        "params": {
            "warehouse": {"cells": sines((cells, 4, 4), 0.7).transpose(0, 2, 1)},
            "conv": {
                "attention": {
                    "squeeze": {"kernel": sines((squeezed, 4), 1.3).T},
                    "norm": {
                        "scale": 1 + sines((squeezed,), 1.6, 0.1),
                        "bias": sines((squeezed,), 1.9),
                    },
                    "cell": {
                        "kernel": sines((outputs, squeezed), 2.2).T,
                        "bias": sines((outputs,), 2.5),
                    },
                }
            },
        },
        "batch_stats": {
            "conv": {"attention": {"norm": {"mean": np.zeros(squeezed), "var": np.ones(squeezed)}}}
        },
        "attention": {"conv": {"attention": {"blend": np.asarray(0.0)}}},
    }
    net = Shared(param_dtype=jnp.float64)
    entries = {0.0: (-1.98753421, -1.72398163, -1.55411329, -1.30239414, -0.67717493)}
    for blend, sums in PARITY.items():
        variables["attention"]["conv"]["attention"]["blend"] = np.asarray(blend)
        assert_published(net, variables, x, sums, entries.get(blend))


# The formulas in numpy.


def kernels_by_definition(variables, context, size, blocks, cells, blend, assignment):
    """Assembles each sample's kernel, `[B, *size, i, o]`, one block after another."""
    attention = jax.tree.map(np.asarray, variables["params"]["attention"])
    running = variables["batch_stats"]["attention"]["norm"]
    z = np.asarray(context) @ attention["squeeze"]["kernel"]
    z = (z - running["mean"]) / np.sqrt(running["var"] + 1e-5)
    z = np.maximum(z * attention["norm"]["scale"] + attention["norm"]["bias"], 0)
    q = z @ attention["cell"]["kernel"] + attention["cell"]["bias"]
    n, i, o = cells.shape
    out_blocks, in_blocks = blocks
    kernels = []
    for row in q:
        kernel = np.zeros((math.prod(size), in_blocks * i, out_blocks * o))
        for m, weights in enumerate(row.reshape(-1, n + 1)):
            weights = (1 - blend) * weights / (np.abs(weights).sum() + 1e-3)
            weights[assignment[m]] += blend
            block = sum(w * cell for w, cell in zip(weights[:n], cells, strict=True))
            tap, rest = divmod(m, out_blocks * in_blocks)
            p, r = divmod(rest, in_blocks)
            kernel[tap, r * i : (r + 1) * i, p * o : (p + 1) * o] = block
        kernels.append(kernel.reshape(*size, in_blocks * i, out_blocks * o))
    return np.stack(kernels)


CASES = {
    "usual": dict(kernel_size=(3, 2), strides=2, cell_ratio=2),
    "blocks": dict(kernel_size=(3, 3), in_ratio=0.5, out_ratio=0.25, cell_ratio=0.5),
    "groups": dict(kernel_size=(3, 3), feature_group_count=2, padding="VALID"),
}


@pytest.mark.parametrize(("name", "blend"), [*zip(CASES, (0.3, 0.0, 0.0), strict=True)])
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
        )
        kernels = kernels_by_definition(
            variables,
            np.asarray(x).mean((1, 2)),
            layer.kernel_size,
            (8 // cells.shape[2], i // cells.shape[1]),
            cells,
            blend,
            warehouse.initial_cells(0),
        )
        fields = ("strides", "padding", "feature_group_count")
        geometry = {name: getattr(layer, name) for name in fields}
        want = numpy_oracle.convolve(x, kernels, np.eye(len(x)), **geometry)
        want = want + np.asarray(variables["params"]["bias"])
    np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-11)


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
