"""SelectiveKernel against published numbers and an independent computation, in any geometry."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from layer_cases import assert_published, filled, init_shapes, random_input, shapes_of, sines

from dyn.diagnostics import count_macs
from dyn.layers import SelectiveKernel

Published = partial(
    SelectiveKernel,
    padding=1,
    use_bias=False,
    attention_norm="batch",
    param_dtype=jnp.float64,
)


def published_variables(inputs):
    """All arrays are sines, in the order in which timm's module has its parameters."""
    phases = (0.3 + 0.1 * n for n in range(10))
    params, statistics = {"attention": {}}, {"attention": {}}

    def add_norm(to, name, size):
        scale = 1 + sines((size,), next(phases), 0.1)
        to[0][name] = {"scale": scale, "bias": sines((size,), next(phases))}
        to[1][name] = {"mean": sines((size,), 0.4, 0.1), "var": 1 + sines((size,), 0.5, 0.2)}

    for path in ("path0", "path1"):
        kernel = sines((16, inputs, 3, 3), next(phases)).transpose(2, 3, 1, 0)
        params[f"{path}_conv"] = {"kernel": kernel}
        add_norm((params, statistics), f"{path}_norm", 16)
    attention = params["attention"]
    attention["squeeze"] = {"kernel": sines((8, 16), next(phases)).T}
    add_norm((attention, statistics["attention"]), "norm", 8)
    attention["path"] = {"kernel": sines((32, 8), next(phases)).T}
    return {"params": params, "batch_stats": statistics}


@pytest.mark.parametrize(
    ("split", "strides", "total", "entries"),
    [
        (True, 1, 425.2330701672, (0, 0.2168259, 0.56806244, 0.89995963, 0)),
        (False, 2, 45.7221810615, (0.0000739, 0.00001314, 0.04221816, 0.41336817, 0)),
    ],
)
def test_published_parity_vectors(split, strides, total, entries):
    x = sines((2, 16, 6, 5), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)
    layer = Published(16, (3, 3), strides, split_input=split)
    variables = published_variables(8 if split else 16)
    sown = assert_published(layer, variables, x, (total, total), entries)
    (weights,) = sown["attention"]["weights"]
    np.testing.assert_allclose(np.asarray(weights["path"]).sum(1), 1, rtol=1e-12)


def by_numpy(variables, x, dilations, paddings, context=None, **geometry):
    """Computes the layer with a layer norm in its attention; the paths' paddings are written out."""
    params = jax.tree.map(np.asarray, variables["params"])
    running = variables["batch_stats"]
    paths = []
    for n, (dilation, padding) in enumerate(zip(dilations, paddings, strict=True)):
        conv, norm, old = (
            v[f"path{n}_{k}"] for v, k in ((params, "conv"), (params, "norm"), (running, "norm"))
        )
        y = numpy_oracle.convolve(
            x, conv["kernel"][None], padding=padding, kernel_dilation=dilation, **geometry
        )
        y = (y - old["mean"]) / np.sqrt(old["var"] + 1e-5) * norm["scale"] + norm["bias"]
        paths.append(np.maximum(y, 0))
    if context is None:
        context = sum(paths).mean(tuple(range(1, x.ndim - 1)))
    attention = params["attention"]
    z = context @ attention["squeeze"]["kernel"]
    z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5)
    z = np.maximum(z * attention["norm"]["scale"] + attention["norm"]["bias"], 0)
    logits = (z @ attention["path"]["kernel"]).reshape(len(z), len(paths), -1)
    weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    axes = (1,) * (x.ndim - 2)
    y = sum(u * weights[:, n].reshape(len(x), *axes, -1) for n, u in enumerate(paths))
    return y + params["bias"]


SAME = ["SAME", "SAME"]
GEOMETRIES = {
    "1d causal": ((7,), dict(kernel_size=3, padding="CAUSAL"), ["CAUSAL"] * 2),
    "2d strided": ((5, 4), dict(kernel_size=(3, 2), strides=2), SAME),
    "2d valid": ((6, 5), dict(kernel_size=(3, 2), padding="VALID"), ["VALID", [(1, 1), (0, 1)]]),
    "2d pairs, groups": (
        (5, 4),
        dict(kernel_size=(3, 3), padding=((0, 1), (2, 0)), feature_group_count=2),
        [[(0, 1), (2, 0)], [(1, 2), (3, 1)]],
    ),
    "3d circular": ((3, 4, 3), dict(kernel_size=(3, 1, 2), padding="CIRCULAR"), ["CIRCULAR"] * 2),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_follows_the_formulas(name):
    spatial, fields, paddings = GEOMETRIES[name]
    layer = SelectiveKernel(6, **fields, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = random_input(3, *spatial, 4, dtype=np.float64)
        variables = filled(layer, x, dtype=np.float64)
        y = jax.jit(layer.apply)(variables, x)
    others = {k: v for k, v in fields.items() if k not in ("kernel_size", "padding")}
    want = by_numpy(variables, np.asarray(x), (1, 2), paddings, **others)
    np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-12)


def test_a_context_takes_the_place_of_the_mean():
    layer = SelectiveKernel(6, (3, 3), dilations=(1, 2, 3), param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x, context = (
            random_input(3, 6, 5, 4, dtype=np.float64),
            random_input(3, 7, dtype=np.float64),
        )
        variables = filled(layer, x, context, dtype=np.float64)
        y = jax.jit(layer.apply)(variables, x, context)
    want = by_numpy(variables, np.asarray(x), (1, 2, 3), ["SAME"] * 3, np.asarray(context))
    np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-12)


def test_a_mask_hides_weights_of_every_path():
    mask = np.random.default_rng(3).integers(0, 2, (3, 3, 4, 6))
    layer, x = SelectiveKernel(6, (3, 3)), random_input(2, 6, 5, 4)
    variables = filled(layer, x)
    y = jax.jit(layer.copy(mask=jnp.asarray(mask)).apply)(variables, x)
    for path in ("path0_conv", "path1_conv"):
        variables["params"][path]["kernel"] *= mask
    np.testing.assert_allclose(y, jax.jit(layer.apply)(variables, x), rtol=1e-5, atol=1e-6)


def test_parameters_and_multiply_adds():
    layer = SelectiveKernel(64, (3, 3), use_bias=False, split_input=True, multiple_of=16)
    x = jax.ShapeDtypeStruct((2, 8, 8, 32), jnp.float32)
    variables = init_shapes(layer, x)
    assert shapes_of(variables["params"]) == {
        **{f"path{n}_conv/kernel": (3, 3, 16, 64) for n in (0, 1)},
        **{f"path{n}_norm/{leaf}": (64,) for n in (0, 1) for leaf in ("scale", "bias")},
        "attention/squeeze/kernel": (64, 16),
        "attention/norm/scale": (16,),
        "attention/norm/bias": (16,),
        "attention/path/kernel": (16, 128),
    }
    by_hand = 2 * (2 * 64 * 9 * 16 * 64 + 64 * 16 + 16 * 128)
    assert count_macs(layer.apply, variables, x) == by_hand


def test_what_does_not_fit_is_refused():
    x = jnp.ones((2, 5, 5, 3))
    with pytest.raises(ValueError, match="context must be"):
        init_shapes(SelectiveKernel(4, (3, 3)), x, jnp.ones((3, 7)))
    with pytest.raises(ValueError, match="split_input=False"):
        init_shapes(SelectiveKernel(4, (3, 3), split_input=True), x)
