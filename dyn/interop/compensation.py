"""What else has to change where a layer cannot begin neutral by itself: a norm beside it, or shared cells.

All functions take flat dictionaries of variables, from paths to arrays, and return what changes.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn.layers.spectral_norm import spectral_norms
from dyn.layers.warehouse_sharing import Warehouses

Array = jax.Array
Path = tuple[str, ...]
Flat = dict[Path, Any]

_EPSILON = 1e-5  # of the norms of `dyn.models`


def open_gates(started: Flat, trained: Mapping[Path, Any]) -> Flat:
    """Gates of one half for `SqueezeExcite` and `CBAM`, and norms in front of them that undo it.

    A gate in a block stands behind the block's last norm, `norm2` or `norm3`, whose scale and bias become
    two times as large, or four times for the two gates of `CBAM`. A gate whose bias were large instead
    would be as near to one, and learn nothing. Gates without such a norm stay as they are, and so do
    those that the trained network has.
    """
    changed: Flat = {}
    for path in [
        path for path in started if path[0] == "params" and path[-2:] == ("expand", "kernel")
    ]:
        gate = path[:-2]
        if path in trained or (*gate, "reduce", "kernel") not in started:
            continue
        half = {path: 0.0, (*path[:-1], "bias"): 0.0}
        factor, block = 2.0, gate[:-1]
        if gate[-1] == "channel" and (*block, "spatial", "conv", "kernel") in started:
            spatial, factor, block = (*block, "spatial"), 4.0, block[:-1]
            with_norm = (*spatial, "norm", "scale") in started
            leaves = (("norm", "scale"), ("norm", "bias")) if with_norm else (("conv", "kernel"),)
            half |= {(*spatial, *leaf): 0.0 for leaf in leaves}
        norms = [one for one in started if one[:-2] == block and re.fullmatch(r"norm\d+", one[-2])]
        if not norms:
            continue
        last = max(norms, key=lambda one: int(one[-2].removeprefix("norm")))
        changed |= {path: jnp.zeros_like(started[path]) for path in half}
        for leaf in ("scale", "bias"):
            norm = (*last[:-1], leaf)
            changed[norm] = factor * started[norm]
    return changed


def undo_spectral_norms(started: Flat) -> Flat:
    """What makes a `SpectralNormConv` compute what its kernels do: the norm behind it multiplies again.

    The mean of candidates V_k is W; with the attention a_k = sigma_k / sum_k sigma_k, which biases of
    log sigma_k give at temperature 1, sum_k a_k V_k / sigma_k is W over the mean of the sigma_k. By that
    mean the statistics and the scale of the norm behind are changed. It is called as the convolution, with
    `norm` for `conv`; a convolution without one is left with its norm of one.
    """
    changed: Flat = {}
    for path in [path for path in started if path[0] == "batch_stats" and path[-1] == "u"]:
        layer = path[1:-1]
        norm = (*layer[:-1], layer[-1].replace("conv", "norm")) if layer else ()
        statistics, params = ("batch_stats", *norm), ("params", *norm)
        if norm == layer or (*statistics, "var") not in started:
            continue
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
        # 1 but for the norm's epsilon, which does not shrink with its statistics.
        rounding = jnp.sqrt((var + gain**2 * _EPSILON) / (var + _EPSILON))
        changed[*params, "scale"] = started[*params, "scale"] * rounding
    return changed


def fill_warehouses(
    started: Flat, trained: Mapping[Path, Any], warehouses: Warehouses | None
) -> tuple[Flat, set[Path]]:
    """Cells that hold the trained kernels, and attention that picks them: (what changes, kernels held).

    Each block of a kernel has a cell of its own, the one that it is assigned to for a blend of 1, and the
    attention's bias picks the same one for a blend of 0. Cells that no block is assigned to stay as they
    are. Noise is not needed: blocks may mix with all other cells.

    Raises:
        ValueError: if there are fewer cells than blocks, or a kernel is missing in the trained network.
    """
    plans: dict[Path, list[Path]] = {
        path: [path[:-2]] for path in started if path[-2:] == ("warehouse", "cells")
    }
    for name, places in () if warehouses is None else warehouses.plan:
        found = [path for path in started if path[0] == "params" and path[-2:] == (name, "cells")]
        for cells in found:
            plans[cells] = [(*cells[:-3], *at) for at, _ in places]
    changed: Flat = {}
    held: set[Path] = set()
    for cells, layers in plans.items():
        kernels = [(*layer, "kernel") for layer in layers]
        missing = ["/".join(kernel) for kernel in kernels if kernel not in trained]
        if missing:
            raise ValueError(
                f"the static network has no {', '.join(missing)} for the warehouse {'/'.join(cells)}."
            )
        filled, picks = _fill(started[cells], [trained[kernel] for kernel in kernels], cells)
        changed[cells] = filled
        for layer, pick in zip(layers, picks, strict=True):
            head = (*layer, "attention", "cell")
            changed[*head, "kernel"] = jnp.zeros_like(started[*head, "kernel"])
            changed[*head, "bias"] = jnp.asarray(pick, started[*head, "bias"].dtype)
        held |= set(kernels)
    return changed, held


def _fill(cells: Array, kernels: Sequence[Array], path: Path) -> tuple[Array, list[Array]]:
    """Cells `[n, i, o]` with the blocks of kernels in them, and for each kernel its attention's bias."""
    n, i, o = cells.shape
    blocks = []
    for kernel in kernels:
        *size, inputs, outputs = kernel.shape
        if inputs % i or outputs % o:
            raise ValueError(f"{'/'.join(path)} has cells {(i, o)}, which cut no {kernel.shape}.")
        cut = kernel.reshape(math.prod(size), inputs // i, i, outputs // o, o)
        blocks.append(cut.transpose(0, 3, 1, 2, 4).reshape(-1, i, o))
    number = sum(map(len, blocks))
    if number > n:
        raise ValueError(
            f"{'/'.join(path)} has {n} cells for the {number} blocks of trained kernels: with a cell_ratio "
            "below 1 it cannot hold them."
        )
    places = np.arange(number) * (n // number)
    # The attention's 1 / (1 + 0.001).
    cells = jnp.asarray(cells).at[places].set(1.001 * jnp.concatenate(blocks).astype(cells.dtype))
    picks = jax.nn.one_hot(places, n + 1)
    ends = np.cumsum([len(block) for block in blocks])
    return cells, [part.reshape(-1) for part in jnp.split(picks, ends[:-1])]
