"""DCDConv and DCDDense against published numbers, the formulas, and the kernel they stand for."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from layer_cases import assert_published, filled, init_shapes, random_input, shapes_of, sines
from named_order import fill_in_order

from dyn.layers.dcd_conv import DCDConv, DCDDense, bin_averages

# Parity with the authors' code, by numbers published with the formulas: all arrays are sines.


def test_published_parity_vector():
    i, o, latent, squeezed = 8, 6, 5, 4
    x = sines((2, i, 6, 6), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)
    # Parameters in torch's order and layout, each with its own phase.
    conv = sines((o, i, 3, 3), 0.3, 0.3)
    q, p = sines((latent, i), 0.6, 0.3), sines((o, latent), 0.9, 0.3)
    norms = [
        {"scale": 1 + sines((latent,), phase, 0.1), "bias": sines((latent,), phase + 0.3, 0.3)}
        for phase in (1.2, 1.8)
    ]
    statistics = {"mean": sines((latent,), 0.4, 0.1), "var": 1 + sines((latent,), 0.5, 0.2)}
    variables = {
        "params": {
            "kernel": conv.transpose(2, 3, 1, 0)[None],
            "compress": {"kernel": q.T},
            "compress_norm": norms[0],
            "latent_norm": norms[1],
            "expand": {"kernel": p.T},
            "attention": {
                "squeeze": {"kernel": sines((squeezed, 4 * i), 2.4, 0.3).T},
                "excite": {"kernel": sines((squeezed, squeezed), 2.7, 0.3).T},
                "latent": {"kernel": sines((latent**2, squeezed), 3.0, 0.3).T},
                "filter": {"kernel": sines((o, squeezed), 3.3, 0.3).T},
            },
        },
        "batch_stats": {"compress_norm": statistics, "latent_norm": statistics},
    }
    layer = DCDConv(o, (3, 3), padding=1, use_bias=False, param_dtype=jnp.float64)
    sums = (12.4530941216, 364.3866098101)
    entries = (-0.33449565, -0.58163794, -0.49247271, -0.36782591, 0.27986239)
    assert_published(layer, variables, x, sums, entries)


MOBILE = {
    "wider": (
        *(8, 48, 4, 4, 4),
        (15.7739974476, 415.2017630429),
        (0.37019634, 0.37489279, 0.38015569, 0.38570785, 0.46567204),
    ),
    "narrower": (
        *(48, 8, 1, 4, 6),
        (-1.2398890072, 81.3254835482),
        (0.50662958, 0.52557844, 0.53897324, 0.5461085, -0.29524166),
    ),
}


@pytest.mark.parametrize("name", MOBILE)
def test_published_parity_vectors_of_the_layers_of_mobilenet(name):
    inputs, features, bins, latent, squeezed, sums, entries = MOBILE[name]
    variables = fill_in_order(
        [
            ("kernel", (1, features, inputs, 1, 1)),
            ("compress/kernel", (latent, inputs)),
            ("attention/squeeze/kernel", (squeezed, inputs * bins)),
            ("attention/excite/kernel", (squeezed, squeezed)),
            ("attention/latent/kernel", (latent**2, squeezed)),
            ("attention/filter/kernel", (features, squeezed)),
            ("expand/kernel", (features, latent)),
            ("compress_norm", (latent,)),
            ("latent_norm", (latent,)),
        ],
        0.3,
    )
    x = sines((2, inputs, 4, 4), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)
    layer = DCDConv(features, (1, 1), use_bias=False, pool=None, reduction=1 / 8)
    assert_published(layer.clone(param_dtype=jnp.float64), variables, x, sums, entries)


# The formulas in numpy.


def gate(v):
    return np.clip(v + 3, 0, 6) / 3


def attention_by_numpy(params, context):
    """Returns `(filters, latent)`."""
    params = {name: np.asarray(p["kernel"]) for name, p in params["attention"].items()}
    s = context @ params["squeeze"]
    s = s * gate(s @ params["excite"])
    latent = math.isqrt(params["latent"].shape[1])
    return gate(s @ params["filter"]), (s @ params["latent"]).reshape(-1, latent, latent)


def pooled_by_numpy(x, bins):
    """Computes torch's adaptive average, one bin after another."""
    spatial = x.shape[1:-1]
    out = np.zeros((len(x), x.shape[-1], *(bins,) * len(spatial)))
    for at in np.ndindex(*(bins,) * len(spatial)):
        box = tuple(
            slice(math.floor(i * n / bins), math.ceil((i + 1) * n / bins))
            for i, n in zip(at, spatial, strict=True)
        )
        part = x[(slice(None), *box)]
        out[(slice(None), slice(None), *at)] = part.mean(tuple(range(1, x.ndim - 1)))
    return out.reshape(len(x), -1)


@pytest.mark.parametrize(("spatial", "bins"), [((7, 6), 1), ((7,), 2), ((5, 1), 2), ((3, 4, 5), 3)])
def test_bins_are_those_of_torch(spatial, bins):
    x = random_input(2, *spatial, 3)
    got = bin_averages(x, bins, jnp.float32)
    np.testing.assert_allclose(got, pooled_by_numpy(np.asarray(x), bins), rtol=1e-5, atol=1e-6)


def without_norms(variables):
    """Returns variables whose norms change nothing."""
    params = dict(variables["params"])
    statistics = {}
    for name in ("compress_norm", "latent_norm"):
        zeros = np.zeros_like(params[name]["bias"])
        params[name] = {"scale": zeros + 1, "bias": zeros}
        statistics[name] = {"mean": zeros, "var": zeros + (1 - 1e-5)}
    return {"params": params, "batch_stats": statistics}


# The central position is found in a different way for each of these.
CASES = {
    "1d causal": ((3, 9, 4), dict(kernel_size=(3,), padding="CAUSAL", kernel_dilation=2)),
    "2d same, strided": ((3, 7, 6, 4), dict(kernel_size=(4, 2), strides=2)),
    "2d reflect": ((3, 7, 6, 4), dict(kernel_size=(5, 3), padding="REFLECT", strides=2)),
    "2d input dilated": (
        (3, 4, 3, 4),
        dict(kernel_size=(3, 3), padding=[(3, 0), (0, 4)], input_dilation=(2, 3), strides=2),
    ),
    "one bin, no bias": ((3, 7, 6, 9), dict(kernel_size=(1, 1), pool=1, use_bias=False)),
}


@pytest.mark.parametrize("name", CASES)
def test_without_norms_it_is_a_convolution_with_the_decomposed_kernel(name):
    """Its kernel is a_f W plus P (F + 1) Q at the central position, for each sample."""
    shape, fields = CASES[name]
    layer = DCDConv(6, **fields, param_dtype=jnp.float64)
    geometry = {k: v for k, v in fields.items() if k not in ("kernel_size", "use_bias", "pool")}
    with jax.enable_x64(True):
        x = random_input(*shape, dtype=np.float64)
        variables = without_norms(filled(layer, x, dtype=np.float64))
        y = jax.jit(layer.apply)(variables, x)
        params = variables["params"]
        context = pooled_by_numpy(np.asarray(x), layer.pool)
        filters, latent = attention_by_numpy(params, context)
        assert latent.shape[-1] == math.isqrt(context.shape[-1])
        q, p = params["compress"]["kernel"], params["expand"]["kernel"]
        centre = tuple((k - 1) // 2 for k in layer.kernel_size)
        kernels = []
        for a, f in zip(filters, latent, strict=True):
            kernel = params["kernel"][0] * a
            kernel[centre] += q @ (f + np.eye(len(f))).T @ p
            kernels.append(kernel)
        own = np.eye(len(x))  # sample b has kernel b
        want = numpy_oracle.convolve(x, np.stack(kernels), own, **geometry)
        want = want + (params["bias"] if layer.use_bias else 0)
    np.testing.assert_allclose(y, want, rtol=1e-10, atol=1e-12)


def batch_norm(z, params, statistics=None):
    if statistics is None:
        axes = tuple(range(z.ndim - 1))
        statistics = {"mean": z.mean(axes), "var": z.var(axes)}
    z = (z - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5)
    return z * params["scale"] + params["bias"]


def dense_by_numpy(variables, x, context, training):
    params, running = variables["params"], variables["batch_stats"]
    filters, latent = attention_by_numpy(params, context)

    def norm(name, z):
        return batch_norm(z, params[name], None if training else running[name])

    q = norm("compress_norm", x @ params["compress"]["kernel"])
    mixed = np.stack([f @ v for f, v in zip(latent, q, strict=True)])
    dynamic = (norm("latent_norm", mixed) + q) @ params["expand"]["kernel"]
    return filters * (x @ params["kernel"] + params["bias"]) + dynamic


@pytest.mark.parametrize(("training", "with_context"), [(False, True), (True, False)])
def test_dense_follows_the_formulas(training, with_context):
    x = random_input(2, 3, 7)
    context = random_input(2, 3, 5, seed=2) if with_context else None
    layer = DCDDense(4, latent=3, squeezed=5)
    args = (x, context) if with_context else (x,)
    variables = filled(layer, *args)
    mutable = ["batch_stats"] if training else []
    y, _ = jax.jit(partial(layer.apply, mutable=mutable))(variables, *args)
    flat = np.asarray(x).reshape(6, 7)
    looked_at = np.asarray(context).reshape(6, 5) if with_context else flat
    want = dense_by_numpy(variables, flat, looked_at, training)
    np.testing.assert_allclose(y, want.reshape(2, 3, 4), rtol=1e-4, atol=1e-5)


def test_pointwise_convolution_of_one_position_is_the_dense_layer():
    """Ties the layer with its norms, in training too, to the formulas of the dense one."""
    x = random_input(5, 7)
    conv = DCDConv(4, (1, 1), pool=1, latent=3)
    dense = DCDDense(4, latent=3, squeezed=4)
    variables = filled(dense, x)
    as_conv = {
        "params": {
            **variables["params"],
            "kernel": variables["params"]["kernel"][None, None, None],
            # The bias stands outside the weighting of filters in the one, and inside in the other.
            "bias": 0 * variables["params"]["bias"],
        },
        "batch_stats": variables["batch_stats"],
    }
    variables = {**variables, "params": {**variables["params"], "bias": as_conv["params"]["bias"]}}
    got, state = jax.jit(partial(conv.apply, mutable=["batch_stats"]))(
        as_conv, x.reshape(5, 1, 1, 7)
    )
    want, moved = jax.jit(partial(dense.apply, mutable=["batch_stats"]))(variables, x)
    np.testing.assert_allclose(got.reshape(5, 4), want, rtol=1e-4, atol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), state, moved)
    before = variables["batch_stats"]["latent_norm"]["mean"]
    assert not np.array_equal(moved["batch_stats"]["latent_norm"]["mean"], before)
    frozen = dense.clone(use_running_average=True)
    _, kept = jax.jit(partial(frozen.apply, mutable=["batch_stats"]))(variables, x)
    jax.tree.map(np.testing.assert_array_equal, kept["batch_stats"], variables["batch_stats"])


# Parameters.


@pytest.mark.parametrize(("channels", "latent", "squeezed"), [(64, 16, 16), (512, 45, 128)])
def test_sizes_are_those_of_the_authors_resnet18(channels, latent, squeezed):
    x = jax.ShapeDtypeStruct((2, 5, 5, channels), jnp.float32)
    layer = DCDConv(96, (3, 3), use_bias=False)
    assert shapes_of(init_shapes(layer, x)["params"]) == {
        "kernel": (1, 3, 3, channels, 96),
        "compress/kernel": (channels, latent),
        "compress_norm/scale": (latent,),
        "compress_norm/bias": (latent,),
        "latent_norm/scale": (latent,),
        "latent_norm/bias": (latent,),
        "expand/kernel": (latent, 96),
        "attention/squeeze/kernel": (4 * channels, squeezed),
        "attention/excite/kernel": (squeezed, squeezed),
        "attention/filter/kernel": (squeezed, 96),
        "attention/latent/kernel": (squeezed, latent**2),
    }


def test_starts_as_the_authors_networks_do():
    variables = jax.jit(DCDConv(96, (3, 3)).init)(jax.random.key(0), jnp.ones((2, 5, 5, 64)))
    params = variables["params"]
    assert np.std(params["kernel"]) == pytest.approx(np.sqrt(2 / (9 * 96)), rel=0.05)
    assert np.std(params["expand"]["kernel"]) == pytest.approx(np.sqrt(2 / 96), rel=0.1)
    assert np.std(params["compress"]["kernel"]) == pytest.approx(np.sqrt(2 / 16), rel=0.1)
    for linear in params["attention"].values():
        bound = linear["kernel"].shape[0] ** -0.5
        assert 0.9 * bound < np.abs(linear["kernel"]).max() <= bound


def test_the_dense_bias_s_gradient_in_bfloat16_adds_up_all_tokens():
    layer, x = DCDDense(4, token_axes=2), random_input(1, 64, 64, 8)
    variables = filled(layer, x)

    def differentiate(layer):
        def loss(params):
            y = layer.apply({**variables, "params": params}, x, mutable=["batch_stats"])[0]
            return jnp.sum(y.astype(jnp.float32))

        return jax.jit(jax.grad(loss))(variables["params"])["bias"]

    low, want = differentiate(layer.copy(dtype=jnp.bfloat16)), differentiate(layer)
    np.testing.assert_allclose(low, want, rtol=0.02)


# Errors.


def test_batch_statistics_of_one_position_are_refused():
    x = random_input(1, 9)
    variables = filled(DCDDense(4), x)
    with pytest.raises(ValueError, match="batch of size 1"):
        DCDDense(4).apply(variables, x, mutable=["batch_stats"])
    jax.jit(DCDDense(4).apply)(variables, x)
