"""Adjusts norms and shared cells for layers that cannot start neutral by themselves.

All functions take flat dictionaries of variables, `{path: array}`, and return the entries that change.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn.layers.spectral_norm import spectral_norms
from dyn.layers.warehouse_sharing import Warehouses

Array = jax.Array
Path = tuple[str, ...]
Flat = dict[Path, Any]


def open_gates(started: Flat, trained: Mapping[Path, Any]) -> Flat:
    """Sets the gates at the ends of blocks to one half, and makes up for it in the norms before them.

    A gate follows the last norm of its block, `norm2`, `norm3` or `project_norm`, whose scale and bias become
    twice as large for each gate: `SqueezeExcite` and `EfficientChannelAttention` have one, `CBAM` has two,
    and `CoordinateAttention` one for each spatial axis. A gate with a large bias instead would be near one
    too, but saturated, and learn nothing. Gates without such a norm stay as they are, and so do those that
    the trained network has.
    """
    changed: Flat = {}
    for block, zeros, factor in _find_gates(started):
        norms = [
            other[:-1]
            for other in started
            if other[:-2] == block and re.fullmatch(r"norm\d+|project_norm", other[-2])
        ]
        if not norms or zeros[0] in trained:
            continue
        last_norm = max(norms, key=lambda norm: (len(norm[-1]), norm))
        if last_norm[-1] == "project_norm" and "squeeze_excite" in zeros[0]:
            continue  # that of an inverted residual block is before its last convolution
        changed |= {path: jnp.zeros_like(started[path]) for path in zeros if path in started}
        if (*last_norm, "scale") not in started:
            raise ValueError(
                f"{'/'.join(last_norm[1:])} has no scale to make up for the gates of one half after it."
            )
        for leaf in ("scale", "bias"):
            if (*last_norm, leaf) in started:
                changed[*last_norm, leaf] = factor * started[*last_norm, leaf]
    return changed


def _find_gates(started: Flat) -> Iterator[tuple[Path, list[Path], float]]:
    """Yields the block of each layer of gates, what is zero where they are one half, and their inverse."""
    for path, value in started.items():
        if path[0] != "params":
            continue
        gate, leaf = path[:-2], path[-2:]
        block = gate[:-1]
        if leaf == ("expand", "kernel") and (*gate, "reduce", "kernel") in started:
            zeros = [path, (*gate, "expand", "bias")]
            spatial = (*block, "spatial")
            if gate[-1] != "channel" or (*spatial, "conv", "kernel") not in started:
                yield block, zeros, 2.0
            elif (*spatial, "norm", "scale") in started:  # CBAM
                zeros += [(*spatial, "norm", "scale"), (*spatial, "norm", "bias")]
                yield block[:-1], zeros, 4.0
            else:
                yield block[:-1], [*zeros, (*spatial, "conv", "kernel")], 4.0
        elif leaf == ("conv", "kernel") and value.shape[1:] == (1, 1):  # EfficientChannelAttention
            yield block, [path], 2.0
        elif leaf == ("expand0", "kernel"):  # CoordinateAttention
            heads = [
                other
                for other in started
                if other[:-2] == gate and re.fullmatch(r"expand\d+", other[-2])
            ]
            yield block[:-1], heads, 2.0 ** len({head[-2] for head in heads})


def rest_taps(started: Flat, trained: Mapping[Path, Any]) -> Flat:
    """Sets the offsets of `DeformableConv` to zero and its weights to one half, and doubles its kernel."""
    changed: Flat = {}
    for path in started:
        name = path[-2] if len(path) > 1 else ""
        if path[0] != "params" or name not in ("offsets", "offsets_and_masks") or path in trained:
            continue
        changed[path] = jnp.zeros_like(started[path])
        kernel = (*path[:-2], "kernel")
        if name == "offsets_and_masks" and kernel in trained:
            changed[kernel] = 2 * started[kernel]
    return changed


def straighten_relus(started: Flat, trained: Mapping[Path, Any]) -> Flat:
    """Sets the coefficients of `DynamicReLU` to those of ReLU."""
    return {
        path: jnp.zeros_like(value)
        for path, value in started.items()
        if path[0] == "params" and path[-2:-1] == ("coefficients",) and path not in trained
    }


def undo_spectral_norms(started: Flat, epsilon: float) -> Flat:
    """Rescales the norm after each `SpectralNormConv`, which undoes its division by the spectral norm.

    The mean of the candidates V_k is W. Biases of log sigma_k give the attention
    a_k = sigma_k / sum_k sigma_k at temperature 1, and sum_k a_k V_k / sigma_k is then W over the mean of the
    sigma_k. The statistics and the scale of the following norm are rescaled by that mean. The norm has the
    name of the convolution with `norm` for `conv`, or with `_norm` after it, and the given epsilon.

    Raises:
        ValueError: for a convolution without such a norm, which would keep its spectral norm of 1.
    """
    changed: Flat = {}
    for path in started:
        if path[0] != "batch_stats" or path[-1] != "u":
            continue
        layer = path[1:-1]
        norm = _find_norm(started, layer)
        statistics, params = ("batch_stats", *norm), ("params", *norm)
        kernel = started["params", *layer, "kernel"]
        matrices = kernel.reshape(len(kernel), -1, kernel.shape[-1]).astype(jnp.float32)
        squares = jnp.einsum(
            "kno,knp->kop", matrices, matrices, precision=jax.lax.Precision.HIGHEST
        )
        u, sigma = spectral_norms(matrices, jnp.linalg.eigh(squares)[1][..., -1])
        changed[path] = u
        gain = jnp.mean(sigma)
        if ("params", *layer, "attention", "kernel", "bias") in started:
            changed["params", *layer, "attention", "kernel", "bias"] = jnp.log(sigma)
        if ("params", *layer, "bias") in started:
            changed["params", *layer, "bias"] = started["params", *layer, "bias"] / gain
        var, mean = started[*statistics, "var"], started[*statistics, "mean"]
        changed[*statistics, "mean"] = mean / gain
        changed[*statistics, "var"] = var / gain**2
        # Near 1: the norm's epsilon does not shrink with its statistics.
        correction = jnp.sqrt((var + gain**2 * epsilon) / (var + epsilon))
        changed[*params, "scale"] = started[*params, "scale"] * correction
    return changed


def _find_norm(started: Flat, layer: Path) -> Path:
    """Returns the path of the norm that follows a `SpectralNormConv`, by its name."""
    name = layer[-1] if layer else ""
    norms = [name.replace("conv", "norm"), f"{name}_norm"]
    for norm in norms:
        path = (*layer[:-1], norm)
        needed = {("params", *path, "scale"), ("batch_stats", *path, "var")}
        if norm != name and needed <= started.keys():
            return path
    raise ValueError(
        f"{'/'.join(layer) or 'the network'} is a SpectralNormConv, whose spectral norm of 1 only a batch "
        f"norm with a scale can undo, called {' or '.join(dict.fromkeys(norms))}: the network lacks it."
    )


def fill_warehouses(
    started: Flat, trained: Mapping[Path, Any], warehouses: Warehouses | None
) -> tuple[Flat, set[Path]]:
    """Fills cells with the blocks of the trained kernels, and sets the attention to select them.

    Each block of a kernel gets its own cell, to which it is assigned at a blend of 1; the attention's bias
    selects the same cell at a blend of 0. Cells without a block stay as they are. Noise is not needed: blocks
    may mix with all other cells.

    Returns:
        The entries that change, and the paths of the kernels that the cells now hold.

    Raises:
        ValueError: if there are fewer cells than blocks, or a kernel is missing in the trained network.
    """
    layers_of: dict[Path, list[Path]] = {
        path: [path[:-2]] for path in started if path[-2:] == ("warehouse", "cells")
    }
    if warehouses is not None:
        for name, members in warehouses.plan:
            for cells in started:
                if cells[0] == "params" and cells[-2:] == (name, "cells"):
                    layers_of[cells] = [(*cells[:-3], *layer) for layer, _ in members]
    changed: Flat = {}
    held: set[Path] = set()
    for cells, layers in layers_of.items():
        kernels = [(*layer, "kernel") for layer in layers]
        missing = ["/".join(kernel) for kernel in kernels if kernel not in trained]
        if missing:
            raise ValueError(
                f"the static network has no {', '.join(missing)} for the warehouse {'/'.join(cells)}."
            )
        filled, biases = _fill_cells(started[cells], [trained[kernel] for kernel in kernels], cells)
        changed[cells] = filled
        for layer, bias in zip(layers, biases, strict=True):
            head = (*layer, "attention", "cell")
            changed[*head, "kernel"] = jnp.zeros_like(started[*head, "kernel"])
            # With a basis, the bias is the attention's.
            place = head if (*head, "bias") in started else head[:-1]
            changed[*place, "bias"] = jnp.asarray(bias, started[*place, "bias"].dtype)
        held |= set(kernels)
    return changed, held


def _fill_cells(cells: Array, kernels: Sequence[Array], path: Path) -> tuple[Array, list[Array]]:
    """Returns cells `[n, *k, i, o]` that hold the blocks of the kernels, and each kernel's attention bias."""
    n, *cell_size, i, o = cells.shape
    blocks = []
    for kernel in kernels:
        *size, inputs, outputs = kernel.shape
        if inputs % i or outputs % o:
            raise ValueError(
                f"a kernel of shape {kernel.shape} cannot be divided into the cells {(i, o)} of "
                f"{'/'.join(path)}."
            )
        taps = math.prod(cell_size)
        cut = kernel.reshape(math.prod(size) // taps, taps, inputs // i, i, outputs // o, o)
        blocks.append(cut.transpose(0, 4, 2, 1, 3, 5).reshape(-1, *cell_size, i, o))
    number = sum(map(len, blocks))
    if number > n:
        raise ValueError(
            f"{'/'.join(path)} has {n} cells, too few for the {number} blocks of the trained kernels: use a "
            "cell_ratio of 1 or more."
        )
    indices = np.arange(number) * (n // number)
    # The attention gives them the weight 1 / (1 + 0.001).
    cells = jnp.asarray(cells).at[indices].set(1.001 * jnp.concatenate(blocks).astype(cells.dtype))
    biases = jax.nn.one_hot(indices, n + 1)
    ends = np.cumsum([len(block) for block in blocks])
    return cells, [bias.reshape(-1) for bias in jnp.split(biases, ends[:-1])]
