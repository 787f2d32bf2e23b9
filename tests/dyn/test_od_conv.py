"""ODConv against published numbers, an independent computation, and `nn.Conv`."""

import dataclasses
import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import nnx
from jax.test_util import check_grads

from dyn.layers import ODConv
from dyn.ops import LOWERINGS
from dyn.schedules import set_temperature


def filled(layer, x, context=None, seed=0, dtype=np.float32):
    """Variables of a layer with a random number everywhere: nothing is zero or one by initialisation.

    They come from the shapes alone, so that no initialiser has to be compiled.
    """
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        values = 0.3 * rng.standard_normal(leaf.shape)
        name = path[-1].key
        if name in ("var", "scale", "temperature"):
            values = 1 + np.abs(values)
        return np.asarray(values, dtype)

    args = (x,) if context is None else (x, context)
    # flax's own norms cannot compute statistics in float64 or bfloat16 under strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        shapes = jax.eval_shape(layer.init, jax.random.key(0), *args)
    return jax.tree_util.tree_map_with_path(fill, shapes)


def random_input(*shape, seed=1, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def shapes_of(tree):
    """`{"attention/squeeze/kernel": (4, 16), ...}`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(k.key for k in path): leaf.shape for path, leaf in leaves}


# Parity with the authors' code, through numbers published with the formulas: all arrays are sines.


def sines(shape, phase, amplitude=0.5, frequency=0.37):
    return amplitude * np.sin(frequency * np.arange(math.prod(shape)) + phase).reshape(shape)


PARITY = {
    "OD-A": (
        dict(features=6, num_kernels=4, strides=1),
        1.0,
        (-0.2474104704, 5.6565939282),
        (-0.02704542, -0.03228635, -0.02701181, -0.02031463, -0.01024262),
    ),
    "OD-B": (
        dict(features=6, num_kernels=4, strides=2, feature_group_count=2),
        30.0,
        (-0.0171739103, 2.1733143118),
        (0.0055553, 0.02314239, 0.01993977, 0.01918275, 0.01387998),
    ),
    "OD-C": (
        dict(features=4, num_kernels=2, feature_group_count=4),
        1.0,
        (1.6865131677, 50.9333978097),
        (-0.19255884, -0.19619766, -0.15400308, -0.10369758, -0.12592383),
    ),
    "OD-D": (
        dict(features=6, num_kernels=1, kernel_size=(1, 1), padding=0),
        1.0,
        (1.0922175351, 53.6946449472),
        (-0.30296597, -0.22755278, -0.14015502, -0.04537569, 0.04802693),
    ),
}


@pytest.mark.parametrize("name", PARITY)
def test_published_parity_vector(name):
    fields, temperature, sums, entries = PARITY[name]
    fields = {"kernel_size": (3, 3), "padding": 1, **fields}
    layer = ODConv(**fields, use_bias=False, param_dtype=jnp.float64)
    channels, squeezed = 4, 16
    k, o, groups = layer.num_kernels, layer.features, layer.feature_group_count

    # Everything is made in torch's layout and then transposed to ours.
    x = sines((2, channels, 5, 5), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)
    kernel = sines((k, o, channels // groups, *layer.kernel_size), 0.7).transpose(0, 3, 4, 2, 1)

    def head(size, phase):
        return {"kernel": sines((size, squeezed), phase).T, "bias": sines((size,), phase + 1)}

    heads = {"channel": head(channels, 1.0)}
    if not groups == channels == o:
        heads["filter"] = head(o, 2.0)
    if layer.kernel_size != (1, 1):
        heads["spatial"] = head(math.prod(layer.kernel_size), 3.0)
    if k > 1:
        heads["kernel"] = head(k, 4.0)
    vector = (squeezed,)
    variables = {
        "params": {
            "kernel": kernel,
            "attention": {
                "squeeze": {"kernel": sines((squeezed, channels), 0.1).T},
                "norm": {"scale": 1 + sines(vector, 0.2, 0.1), "bias": sines(vector, 0.3, 0.1)},
                **heads,
            },
        },
        "batch_stats": {
            "attention": {
                "norm": {"mean": sines(vector, 0.4, 0.1), "var": 1 + sines(vector, 0.5, 0.2)}
            }
        },
        "attention": {"attention": {"temperature": np.asarray(temperature)}},
    }
    with jax.enable_x64(True):
        variables = jax.tree.map(jnp.asarray, variables)
        x = jnp.asarray(x)
        assert shapes_of(variables) == shapes_of(filled(layer, x))
        y = np.asarray(jax.jit(layer.apply)(variables, x))
    assert y.dtype == np.float64
    y = y.transpose(0, 3, 1, 2).ravel()
    # Sums are printed with ten digits after the point, entries with eight.
    np.testing.assert_allclose((y.sum(), np.abs(y).sum()), sums, rtol=0, atol=1e-10)
    np.testing.assert_allclose((*y[:4], y[-1]), entries, rtol=0, atol=6e-9)


# The formulas, once more and with nothing shared with the library.


def attention_by_numpy(variables, context, kernel_size, norm="batch", statistics=None):
    """(channel, filter, spatial, kernel) of section 3.2, None for a head that is not there."""
    params = variables["params"]["attention"]
    t = float(variables["attention"]["attention"]["temperature"])
    z = np.asarray(context) @ np.asarray(params["squeeze"]["kernel"])
    if norm != "none":
        if norm == "layer":
            mean, var = z.mean(1, keepdims=True), z.var(1, keepdims=True)
        elif statistics == "batch":
            mean, var = z.mean(0), z.var(0)
        else:
            running = variables["batch_stats"]["attention"]["norm"]
            mean, var = np.asarray(running["mean"]), np.asarray(running["var"])
        z = (z - mean) / np.sqrt(var + 1e-5)
        z = z * np.asarray(params["norm"]["scale"]) + np.asarray(params["norm"]["bias"])
    z = np.maximum(z, 0)

    def logits(name):
        return (z @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])) / t

    def sigmoid(name):
        return 1 / (1 + np.exp(-logits(name))) if name in params else None

    spatial, kernel = sigmoid("spatial"), None
    if spatial is not None:
        spatial = spatial.reshape(-1, *kernel_size)
    if "kernel" in params:
        kernel = np.exp(logits("kernel"))
        kernel = kernel / kernel.sum(1, keepdims=True)
    return sigmoid("channel"), sigmoid("filter"), spatial, kernel


def od_conv_by_definition(variables, x, weights, **window):
    """One sample after another, with flax's own convolution."""
    channel, filters, spatial, mix = weights
    params = variables["params"]
    everywhere = (slice(None), *(None,) * (x.ndim - 2))
    # Compiled because that is quicker than one operation after another.
    convolve = jax.jit(partial(oracle.dynamic_conv, **window))
    y = convolve(np.asarray(x) * channel[everywhere], params["kernel"], mix, spatial)
    y = np.asarray(y) if filters is None else np.asarray(y) * filters[everywhere]
    return y + np.asarray(params["bias"])


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("case", ["usual", "depthwise", "pointwise"])
def test_follows_the_formulas(case, norm):
    fields = {
        "usual": dict(features=6, kernel_size=(3, 2), strides=2, num_kernels=3),
        "depthwise": dict(features=4, kernel_size=(3, 3), feature_group_count=4, num_kernels=1),
        "pointwise": dict(features=6, kernel_size=(1, 1), num_kernels=2),
    }[case]
    layer = ODConv(**fields, attention_norm=norm, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = random_input(3, 5, 4, 4, dtype=np.float64)
        variables = set_temperature(filled(layer, x, dtype=np.float64), 1.7)
        # LayerNorm is one of flax's norms that promote by themselves (see `filled`).
        with jax.numpy_dtype_promotion("standard" if norm == "layer" else "strict"):
            y = jax.jit(layer.apply)(variables, x)
        weights = attention_by_numpy(variables, np.asarray(x).mean((1, 2)), layer.kernel_size, norm)
        window = dict(strides=layer.strides, feature_group_count=layer.feature_group_count)
        want = od_conv_by_definition(variables, x, weights, **window)
    np.testing.assert_allclose(y, want, rtol=1e-10, atol=1e-12)


# Drop-in for `nn.Conv`: the same fields, and the same numbers once attention no longer looks.


def test_fields_begin_with_those_of_flax_conv():
    """A layer written for `nn.Conv`, with positions or names, is one for ODConv.

    Not compared: `promote_dtype`, `conv_general_dilated` and `conv_general_dilated_cls`, hooks with which
    flax lets its own products be replaced (the last two are deprecated); a dynamic convolution has none
    of those products. `kernel_init` differs on purpose: the paper initialises for the fan out, and
    `nn.Conv` for the fan in.
    """
    hooks = {"promote_dtype", "conv_general_dilated", "conv_general_dilated_cls", "parent", "name"}

    def own_fields(layer):
        return [f for f in dataclasses.fields(layer) if f.name not in hooks]

    theirs, ours = own_fields(nn.Conv), own_fields(ODConv)
    names = [f.name for f in theirs]
    assert names[0] == "features" and names[-1] == "bias_init"
    assert [f.name for f in ours[: len(names)]] == names
    for their, our in zip(theirs, ours, strict=False):
        if their.name in ("kernel_init", "bias_init"):
            continue  # functions; compared by what they make, in the tests of initialisation
        assert our.default is their.default or our.default == their.default, their.name
    # What follows is the method's, and each has a default, so that two arguments are enough.
    assert all(f.default is not dataclasses.MISSING for f in ours[2:])


GEOMETRY = {
    "1d": dict(x=(3, 9, 4), kernel_size=(3,)),
    "1d, a bare number": dict(x=(3, 9, 4), kernel_size=3),
    "1d causal": dict(x=(3, 9, 4), kernel_size=(3,), padding="CAUSAL", kernel_dilation=2),
    "1d, two batch axes": dict(x=(3, 2, 9, 4), kernel_size=(3,), strides=2),
    "2d": dict(x=(3, 6, 5, 4), kernel_size=(3, 3)),
    "2d without batch": dict(x=(6, 5, 4), kernel_size=(3, 3)),
    "2d, two batch axes": dict(x=(3, 2, 6, 5, 4), kernel_size=(3, 3)),
    "2d not square, strided": dict(x=(3, 7, 6, 4), kernel_size=(3, 2), strides=(2, 3)),
    "2d same lower": dict(x=(3, 6, 5, 4), kernel_size=(2, 2), padding="SAME_LOWER", strides=2),
    "2d valid, dilated": dict(
        x=(3, 7, 6, 4), kernel_size=(3, 2), padding="VALID", kernel_dilation=(2, 1)
    ),
    "2d circular": dict(x=(3, 6, 5, 4), kernel_size=(3, 2), padding="CIRCULAR", strides=2),
    "2d reflect": dict(x=(3, 6, 5, 4), kernel_size=(3, 3), padding="REFLECT"),
    "2d number": dict(x=(3, 6, 5, 4), kernel_size=(3, 3), padding=2, strides=None),
    "2d numbers": dict(x=(3, 6, 5, 4), kernel_size=(3, 3), padding=(2, 0)),
    "2d pairs": dict(x=(3, 6, 5, 4), kernel_size=(3, 3), padding=[(0, 2), (3, 1)], strides=2),
    "2d input dilated": dict(
        x=(3, 4, 3, 4), kernel_size=(3, 3), padding=[(1, 1), (0, 3)], input_dilation=(2, 3)
    ),
    "2d groups": dict(x=(3, 6, 5, 4), kernel_size=(3, 3), feature_group_count=2),
    "2d depthwise": dict(x=(3, 6, 5, 6), kernel_size=(3, 3), feature_group_count=6),
    "2d depthwise, multiplied": dict(x=(3, 6, 5, 3), kernel_size=(3, 3), feature_group_count=3),
    "2d pointwise": dict(x=(3, 6, 5, 4), kernel_size=(1, 1), strides=2),
    "2d, one kernel": dict(x=(3, 6, 5, 4), kernel_size=(3, 3), num_kernels=1),
    "2d, no bias": dict(x=(3, 6, 5, 4), kernel_size=(3, 3), use_bias=False),
    "3d": dict(x=(2, 4, 3, 3, 4), kernel_size=(2, 3, 2), strides=(2, 1, 1)),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_is_flax_conv_once_attention_is_constant(name):
    """With zero head kernels attention is sigmoid(b / T) or softmax(b / T), whatever the input.

    The layer is then a convolution with the kernel a_f a_s a_c sum_k a_w[k] W_k.
    """
    fields = dict(GEOMETRY[name])
    x = random_input(*fields.pop("x"))
    num_kernels = fields.pop("num_kernels", 2)
    conv = nn.Conv(6, **fields)
    layer = ODConv(6, **fields, num_kernels=num_kernels)
    variables = set_temperature(filled(layer, x), 2.0)
    params = variables["params"]
    heads = [n for n in params["attention"] if n in ("channel", "filter", "spatial", "kernel")]
    for head in heads:
        params["attention"][head]["kernel"] *= 0.0

    bias = {head: np.asarray(params["attention"][head]["bias"]) / 2.0 for head in heads}
    weight = {head: 1 / (1 + np.exp(-b)) for head, b in bias.items()}
    kernels = np.asarray(params["kernel"])
    size, (i, o) = kernels.shape[1:-2], kernels.shape[-2:]
    groups = fields.get("feature_group_count", 1)
    mix = np.exp(bias["kernel"]) / np.exp(bias["kernel"]).sum() if num_kernels > 1 else np.ones(1)
    kernel = np.einsum("k,k...->...", mix, kernels)
    if "spatial" in weight:
        kernel = kernel * weight["spatial"].reshape(*size, 1, 1)
    if "filter" in weight:
        kernel = kernel * weight["filter"]
    # Output o belongs to group o // (O / G), whose inputs are the I / G channels from there.
    of_output = np.repeat(weight["channel"].reshape(groups, i), o // groups, axis=0)
    kernel = kernel * of_output.T

    static = {"kernel": jnp.asarray(kernel, jnp.float32)}
    if layer.use_bias:
        static["bias"] = params["bias"]
    got, want = jax.jit(lambda v, s: (layer.apply(v, x), conv.apply(s, x)))(
        variables, {"params": static}
    )
    assert got.shape == want.shape and got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_mask_hides_the_same_weights_of_every_candidate():
    x = random_input(2, 6, 5, 4)
    mask = np.random.default_rng(3).integers(0, 2, (3, 3, 4, 6))
    open_layer = ODConv(6, (3, 3), num_kernels=2)
    masked = ODConv(6, (3, 3), num_kernels=2, mask=jnp.asarray(mask))
    variables = filled(open_layer, x)
    hidden = variables["params"]["kernel"] * mask.astype(np.float32)
    params = {**variables["params"], "kernel": hidden}
    want, got = jax.jit(lambda v, m: (open_layer.apply(v, x), masked.apply(m, x)))(
        {**variables, "params": params}, variables
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"mask must have the shape of one kernel, \(3, 3, 4, 6\)"):
        ODConv(6, (3, 3), mask=jnp.asarray(mask[..., :5])).init(jax.random.key(0), x)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
def test_takes_whole_numbers_as_flax_conv_does(dtype):
    """`nn.Conv(..., dtype=float32)` convolves a picture of bytes; so must its stand-in."""
    picture = jnp.asarray(np.random.default_rng(0).integers(0, 9, (2, 5, 5, 3)), dtype)
    fields = dict(features=4, kernel_size=(3, 3), dtype=jnp.float32)
    assert jax.eval_shape(nn.Conv(**fields).init_with_output, jax.random.key(0), picture)
    layer = ODConv(**fields)
    variables = filled(layer, picture.astype(jnp.float32))
    got, want = jax.jit(
        lambda x: (layer.apply(variables, x), layer.apply(variables, x.astype(jnp.float32)))
    )(picture)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


# Parameters: names, shapes, and how they start.


def test_parameters_of_the_usual_case():
    x = jax.ShapeDtypeStruct((2, 6, 5, 8), jnp.float32)
    layer = ODConv(6, (3, 2), feature_group_count=2, num_kernels=4)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    assert shapes_of(variables) == {
        "params/kernel": (4, 3, 2, 4, 6),
        "params/bias": (6,),
        "params/attention/squeeze/kernel": (8, 16),  # max(int(8 / 16), 16)
        "params/attention/norm/scale": (16,),
        "params/attention/norm/bias": (16,),
        "params/attention/channel/kernel": (16, 8),
        "params/attention/channel/bias": (8,),
        "params/attention/filter/kernel": (16, 6),
        "params/attention/filter/bias": (6,),
        "params/attention/spatial/kernel": (16, 6),
        "params/attention/spatial/bias": (6,),
        "params/attention/kernel/kernel": (16, 4),
        "params/attention/kernel/bias": (4,),
        "batch_stats/attention/norm/mean": (16,),
        "batch_stats/attention/norm/var": (16,),
        "attention/attention/temperature": (),
    }


@pytest.mark.parametrize(
    ("fields", "heads"),
    [
        (dict(features=8, kernel_size=(3, 3), feature_group_count=8), "channel spatial kernel"),
        # Depthwise with a multiplier has more filters than channels, and keeps their head.
        (
            dict(features=16, kernel_size=(3, 3), feature_group_count=8),
            "channel filter spatial kernel",
        ),
        (dict(features=6, kernel_size=(1, 1)), "channel filter kernel"),
        (dict(features=6, kernel_size=(3, 3), num_kernels=1), "channel filter spatial"),
        (dict(features=6, kernel_size=(1, 1), num_kernels=1), "channel filter"),
        # Only a kernel with a single position has nothing to choose between.
        (dict(features=6, kernel_size=(1, 3)), "channel filter spatial kernel"),
    ],
)
def test_heads_that_have_nothing_to_choose_are_not_there(fields, heads):
    x = jax.ShapeDtypeStruct((2, 5, 5, 8), jnp.float32)
    shapes = jax.eval_shape(ODConv(**fields, use_bias=False).init, jax.random.key(0), x)["params"]
    assert set(shapes) == {"kernel", "attention"}
    assert set(shapes["attention"]) == {"squeeze", "norm", *heads.split()}


@pytest.mark.parametrize(
    ("norm", "params", "collections"),
    [
        ("batch", {"norm"}, {"params", "batch_stats", "attention"}),
        ("layer", {"norm"}, {"params", "attention"}),
        ("none", set(), {"params", "attention"}),
    ],
)
def test_only_the_batch_norm_has_statistics(norm, params, collections):
    x = jax.ShapeDtypeStruct((2, 5, 5, 8), jnp.float32)
    layer = ODConv(6, (3, 3), attention_norm=norm)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    assert set(variables) == collections
    heads = {"squeeze", "channel", "filter", "spatial", "kernel"}
    assert set(variables["params"]["attention"]) == heads | params


@pytest.mark.parametrize(
    ("channels", "reduction", "least", "squeezed"),
    [(4, 1 / 16, 16, 16), (512, 1 / 16, 16, 32), (100, 0.25, 16, 25), (4, 1 / 16, 2, 2)],
)
def test_squeeze_is_a_share_of_the_context_with_a_least_size(channels, reduction, least, squeezed):
    layer = ODConv(2, (1, 1), reduction=reduction, min_squeeze=least)
    x = jax.ShapeDtypeStruct((2, 3, 3, channels), jnp.float32)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    assert params["attention"]["squeeze"]["kernel"].shape == (channels, squeezed)


def test_each_candidate_starts_like_a_kernel_of_its_own():
    x = jnp.ones((2, 3, 3, 32))
    layer = ODConv(64, (3, 3), num_kernels=3, min_squeeze=128)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["kernel"])
    # fan_out is 3 * 3 * 64 = 576 for one candidate; over the stack it would be 3 times that. 18,432
    # samples give the standard deviation to about 0.5 percent.
    for candidate in kernel:
        assert candidate.std() == pytest.approx(math.sqrt(2 / 576), rel=0.03)
        # Not truncated, as torch's normal is not: of so many samples some are beyond 3 deviations.
        assert np.abs(candidate).max() > 3 * candidate.std()
    correlation = np.corrcoef(kernel.reshape(3, -1))
    np.testing.assert_allclose(correlation, np.eye(3), atol=0.05)
    assert not variables["params"]["bias"].any()

    attention = variables["params"]["attention"]
    fan_out = {"squeeze": 128, "channel": 32, "filter": 64, "spatial": 9, "kernel": 3}
    for name, out in fan_out.items():
        # The smallest, [128, 3], has 384 samples: 4 percent for one deviation.
        std = np.asarray(attention[name]["kernel"]).std()
        assert std == pytest.approx(math.sqrt(2 / out), rel=0.15), name
        assert not attention[name].get("bias", np.zeros(1)).any()
    assert (attention["norm"]["scale"] == 1).all() and (attention["norm"]["bias"] == 0).all()
    statistics = variables["batch_stats"]["attention"]["norm"]
    assert (statistics["mean"] == 0).all() and (statistics["var"] == 1).all()
    assert variables["attention"]["attention"]["temperature"] == 1.0


def test_a_given_initialiser_sees_the_shape_of_one_kernel():
    seen = []

    def init(key, shape, dtype):
        seen.append(tuple(shape))
        return jnp.full(shape, len(seen), dtype)

    layer = ODConv(6, (3, 2), num_kernels=3, kernel_init=init, bias_init=nn.initializers.ones)
    params = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((2, 5, 5, 4)))["params"]
    assert params["kernel"].shape == (3, 3, 2, 4, 6)
    assert set(seen) == {(3, 2, 4, 6)}


# Temperature.


def test_temperature_divides_every_logit():
    x = random_input(3, 5, 5, 4)
    layer = ODConv(6, (3, 3), num_kernels=3)
    variables = filled(layer, x)
    apply = jax.jit(partial(layer.apply, mutable=["intermediates"]))
    for t in (1.0, 30.0):
        variables = set_temperature(variables, t)
        _, state = apply(variables, x)
        got = state["intermediates"]["attention"]["weights"][0]
        want = attention_by_numpy(variables, np.asarray(x).mean((1, 2)), (3, 3))
        for name, expected in zip(("channel", "filter", "spatial", "kernel"), want, strict=True):
            np.testing.assert_allclose(got[name], expected, rtol=1e-5)
    # 30 leaves hardly a choice.
    np.testing.assert_allclose(got["kernel"], 1 / 3, atol=0.02)


def test_changing_the_temperature_compiles_nothing_anew():
    x = random_input(2, 5, 5, 4)
    layer = ODConv(6, (3, 3), num_kernels=2)
    variables = filled(layer, x)
    traces = []

    @jax.jit
    def apply(variables, x):
        traces.append(None)
        return layer.apply(variables, x)

    outputs = [apply(set_temperature(variables, t), x) for t in (1.0, 2, np.float32(30.0))]
    assert len(traces) == 1
    assert not np.allclose(outputs[0], outputs[2])

    # Inside the compiled function, where the temperature is traced: the same numbers.
    inside = jax.jit(lambda v, t, x: layer.apply(set_temperature(v, t), x))
    np.testing.assert_allclose(inside(variables, jnp.float32(30), x), outputs[2], rtol=1e-5)


def test_temperature_is_one_without_its_collection():
    x = random_input(2, 5, 5, 4)
    layer = ODConv(6, (3, 3), num_kernels=2)
    variables = set_temperature(filled(layer, x), 1.0)
    apply = jax.jit(layer.apply)
    without = {name: value for name, value in variables.items() if name != "attention"}
    want = apply(variables, x)
    np.testing.assert_allclose(apply(without, x), want, rtol=1e-5, atol=1e-6)
    # Also in training, where other collections are mutable.
    _, state = jax.eval_shape(partial(layer.apply, mutable=["batch_stats"]), without, x)
    assert set(state) == {"batch_stats"}


# Context.


@pytest.mark.parametrize("axes", [(3,), (), (3, 2)])
def test_attention_looks_at_a_given_context(axes):
    x = random_input(*axes, 5, 5, 4)
    context = random_input(*axes, 7, seed=2)
    layer = ODConv(6, (3, 3), num_kernels=2)
    variables = filled(layer, x, context)
    assert variables["params"]["attention"]["squeeze"]["kernel"].shape == (7, 16)
    got = jax.jit(layer.apply)(variables, x, context=context)
    weights = attention_by_numpy(variables, np.asarray(context).reshape(-1, 7), (3, 3))
    want = od_conv_by_definition(variables, x.reshape(-1, 5, 5, 4), weights)
    np.testing.assert_allclose(got, want.reshape(*axes, 5, 5, 6), rtol=1e-4, atol=1e-5)


def test_the_mean_over_space_is_the_context_of_a_layer_that_is_given_none():
    x = random_input(3, 5, 5, 4)
    layer = ODConv(6, (3, 3), num_kernels=2)
    variables = filled(layer, x)
    apply = jax.jit(layer.apply)
    context = np.asarray(x).mean((1, 2))
    want = apply(variables, x)
    np.testing.assert_allclose(apply(variables, x, context), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 5, 5, 7), (2, 7), (7,), (3, 1, 7)])
def test_a_context_that_does_not_fit_is_an_error_that_says_what_does(shape):
    layer = ODConv(6, (3, 3))
    with pytest.raises(ValueError, match=r"context must be \[\*batch, D\].*\(3,\)") as error:
        jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((3, 5, 5, 4)), jnp.ones(shape))
    assert str(shape) in str(error.value)


# Errors.


def test_a_bare_number_on_pictures_is_an_error_that_says_what_to_write():
    with pytest.raises(ValueError, match=r"write kernel_size=\(3, 3\)"):
        jax.eval_shape(ODConv(6, 3).init, jax.random.key(0), jnp.ones((2, 5, 5, 4)))
    with pytest.raises(ValueError, match=r"write kernel_size=\(3, 3, 3\)"):
        jax.eval_shape(ODConv(6, 3).init, jax.random.key(0), jnp.ones((2, 5, 5, 5, 4)))


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        (dict(kernel_size=(3, 3)), (5, 4), r"\[\*batch, \*spatial, features\].*\(5, 4\)"),
        (dict(kernel_size=(3, 3, 3, 3)), (2, 5, 5, 5, 5, 4), "1, 2 or 3"),
        (dict(kernel_size=(3, 3), feature_group_count=3), (2, 5, 5, 4), "must divide the 4 input"),
        (dict(kernel_size=(3, 3), feature_group_count=4), (2, 5, 5, 4), "6 output features"),
        (dict(kernel_size=(3, 3), attention_norm="group"), (2, 5, 5, 4), "'group' is unknown"),
        (dict(kernel_size=(3, 3), lowering="fast"), (2, 5, 5, 4), "'fast' is unknown"),
        (dict(kernel_size=(3, 3), lowering="outputs"), (2, 5, 5, 4), "tap attention"),
        (dict(kernel_size=(3, 3), padding="SAMME"), (2, 5, 5, 4), "'SAMME' is unknown"),
    ],
)
def test_errors_say_what_is_wrong(fields, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(ODConv(6, **fields).init, jax.random.key(0), jnp.ones(shape))


# Training and inference.


def test_statistics_are_the_batch_s_exactly_when_they_can_be_updated():
    x = random_input(5, 5, 5, 4)
    layer = ODConv(6, (3, 3), num_kernels=2)
    variables = filled(layer, x)
    context = np.asarray(x).mean((1, 2))
    running = od_conv_by_definition(
        variables, x, attention_by_numpy(variables, context, (3, 3), statistics="running")
    )
    batch = od_conv_by_definition(
        variables, x, attention_by_numpy(variables, context, (3, 3), statistics="batch")
    )
    assert np.abs(running - batch).max() > 0.01

    def train(layer):
        return jax.jit(partial(layer.apply, mutable=["batch_stats"]))(variables, x)

    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), running, rtol=1e-4, atol=1e-5)
    y, state = train(layer)
    np.testing.assert_allclose(y, batch, rtol=1e-4, atol=1e-5)
    # torch's momentum 0.1 is flax's 0.9.
    z = context @ np.asarray(variables["params"]["attention"]["squeeze"]["kernel"])
    before = variables["batch_stats"]["attention"]["norm"]
    after = state["batch_stats"]["attention"]["norm"]
    for name, now in (("mean", z.mean(0)), ("var", z.var(0))):
        np.testing.assert_allclose(after[name], 0.9 * before[name] + 0.1 * now, rtol=1e-4)

    frozen = ODConv(6, (3, 3), num_kernels=2, use_running_average=True)
    y, state = train(frozen)
    np.testing.assert_allclose(y, running, rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])

    updating = ODConv(6, (3, 3), num_kernels=2, use_running_average=False)
    y, _ = train(updating)
    np.testing.assert_allclose(y, batch, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 5, 5, 4), (5, 5, 4), (1, 1, 5, 5, 4)])
def test_a_batch_of_one_needs_another_norm_to_train(shape):
    x = random_input(*shape)
    layer = ODConv(6, (3, 3), num_kernels=2)
    variables = filled(layer, x)  # initialising is possible
    with pytest.raises(ValueError, match="two or more samples, use attention_norm='layer'"):
        jax.eval_shape(partial(layer.apply, mutable=["batch_stats"]), variables, x)
    out = (*shape[:-1], 6)
    assert jax.eval_shape(layer.apply, variables, x).shape == out  # inference
    for other in (dict(attention_norm="layer"), dict(use_running_average=True)):
        other = ODConv(6, (3, 3), num_kernels=2, **other)
        step = partial(other.apply, mutable=["batch_stats"])
        assert jax.eval_shape(step, filled(other, x), x)[0].shape == out


def test_layer_norm_attention_of_a_sample_is_its_own_and_still_looks_at_it():
    x = random_input(3, 5, 5, 4)
    layer = ODConv(6, (3, 3), num_kernels=3, attention_norm="layer")
    variables = filled(layer, x)
    apply = jax.jit(partial(layer.apply, mutable=["batch_stats", "intermediates"]))
    y, state = apply(variables, x)
    alone, _ = apply(variables, x[1:2])
    np.testing.assert_allclose(alone, y[1:2], rtol=1e-5, atol=1e-6)
    mix = state["intermediates"]["attention"]["weights"][0]["kernel"]
    assert np.abs(mix[0] - mix[1]).max() > 1e-3


def test_what_attention_decided_is_sown():
    x = random_input(3, 6, 5, 4)
    layer = ODConv(6, (3, 2), num_kernels=4)
    _, state = jax.jit(partial(layer.apply, mutable=["intermediates"]))(filled(layer, x), x)
    (weights,) = state["intermediates"]["attention"]["weights"]
    shapes = {name: w.shape for name, w in weights.items()}
    assert shapes == {"channel": (3, 4), "filter": (3, 6), "spatial": (3, 3, 2), "kernel": (3, 4)}
    np.testing.assert_allclose(weights["kernel"].sum(-1), 1.0, rtol=1e-6)
    for w in jax.tree.leaves(weights):
        assert ((w > 0) & (w < 1)).all()


def test_sown_weights_are_only_those_of_the_heads_that_exist():
    x = random_input(3, 5, 5, 4)
    layer = ODConv(4, (1, 1), num_kernels=1)
    step = partial(layer.apply, mutable=["intermediates"])
    _, state = jax.eval_shape(step, filled(layer, x), x)
    assert set(state["intermediates"]["attention"]["weights"][0]) == {"channel", "filter"}


# bfloat16.


def test_parameters_in_bfloat16_are_mixed_in_float32():
    x = random_input(3, 6, 5, 8)
    # Without a norm, for flax's do not take such parameters under strict promotion.
    exact = ODConv(6, (3, 3), num_kernels=3, attention_norm="none")
    layer = exact.copy(param_dtype=jnp.bfloat16, dtype=jnp.float32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(shapes["params"])}
    assert dtypes == {jnp.dtype(jnp.bfloat16)}
    variables = filled(layer, x)
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), variables["params"])
    rounded = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    want = jax.jit(exact.apply)({**variables, "params": rounded}, x)
    got = jax.jit(layer.apply)({**variables, "params": params}, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("input_dtype", [jnp.float32, jnp.bfloat16])
def test_bfloat16_is_for_the_convolution_and_not_for_attention(input_dtype):
    x = random_input(3, 6, 5, 8).astype(input_dtype)
    layer = ODConv(6, (3, 3), num_kernels=3, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}

    exact_x = x.astype(jnp.float32)
    variables = filled(layer, exact_x)
    apply = jax.jit(partial(layer.apply, mutable=["intermediates"]))
    y, state = apply(variables, x)
    assert y.dtype == jnp.bfloat16
    weights = state["intermediates"]["attention"]["weights"][0]
    assert {w.dtype for w in weights.values()} == {jnp.dtype(jnp.float32)}

    exact = ODConv(6, (3, 3), num_kernels=3)
    want, state = jax.jit(partial(exact.apply, mutable=["intermediates"]))(variables, exact_x)
    # The same attention to float32's precision, as it is computed from the same numbers.
    for name, w in state["intermediates"]["attention"]["weights"][0].items():
        np.testing.assert_allclose(weights[name], w, rtol=1e-5)
    # bfloat16 has 8 bits: each of 72 products is off by up to 2^-8 of its size, with signs at random.
    np.testing.assert_allclose(y.astype(jnp.float32), want, atol=0.02 * np.abs(want).max())


def test_bfloat16_inputs_promote_with_float32_parameters_as_in_flax_conv():
    x = jax.ShapeDtypeStruct((2, 5, 5, 4), jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        layers = (nn.Conv(6, (3, 3)), ODConv(6, (3, 3)))
        static, dynamic = (
            jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0] for layer in layers
        )
    assert dynamic.dtype == static.dtype == jnp.float32


# Transformations.


def test_the_same_input_gives_exactly_the_same_output():
    x = random_input(3, 5, 5, 4)
    layer = ODConv(6, (3, 3), num_kernels=2)
    variables = filled(layer, x)
    apply = jax.jit(layer.apply)
    first = apply(variables, x)
    np.testing.assert_array_equal(apply(variables, x), first)


def test_every_parameter_has_a_finite_gradient_that_is_not_zero():
    x = random_input(4, 5, 5, 4)
    layer = ODConv(6, (3, 3), num_kernels=3)
    variables = filled(layer, x)
    params = variables.pop("params")

    @jax.jit
    def gradient(params, x):
        def loss(params):
            y, _ = layer.apply({"params": params, **variables}, x, mutable=["batch_stats"])
            return jnp.sum(y**2)

        return jax.grad(loss)(params)

    for path, g in jax.tree_util.tree_leaves_with_path(gradient(params, x)):
        assert np.isfinite(g).all() and np.abs(g).max() > 0, jax.tree_util.keystr(path)
    # Blank pictures have no variance for the batch norm to divide by.
    for g in jax.tree.leaves(gradient(params, jnp.zeros_like(x))):
        assert np.isfinite(g).all()


def smooth(variables):
    """Keeps every squeezed number far from the kink of ReLU, where finite differences are wrong."""
    norm = variables["params"]["attention"]["norm"]
    norm["bias"] = jnp.full_like(norm["bias"], 8.0)
    return variables


@pytest.mark.parametrize(
    "fields",
    [
        dict(kernel_size=(3, 2), num_kernels=2, strides=2),
        dict(kernel_size=(3, 3), num_kernels=1),
        dict(kernel_size=(1, 1), num_kernels=3),
    ],
)
def test_gradients_by_finite_differences(fields):
    layer = ODConv(3, **fields, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = random_input(2, 4, 3, 2, dtype=np.float64)
        variables = smooth(filled(layer, x, dtype=np.float64))
        params = variables.pop("params")

        @jax.jit
        def function(params, x):
            return layer.apply({"params": params, **variables}, x)

        check_grads(function, (params, x), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_vmap_is_one_more_batch_axis():
    x = random_input(2, 3, 5, 5, 4)
    layer = ODConv(6, (3, 3), num_kernels=2)
    variables = filled(layer, x)
    got = jax.jit(jax.vmap(layer.apply, in_axes=(None, 0)))(variables, x)
    np.testing.assert_allclose(got, jax.jit(layer.apply)(variables, x), rtol=1e-5, atol=1e-6)


def test_vmap_over_parameters_is_an_ensemble():
    x = random_input(3, 5, 5, 4)
    layer = ODConv(6, (3, 3), num_kernels=2)
    members = [filled(layer, x, seed=seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    got = jax.jit(jax.vmap(layer.apply, in_axes=(0, None)))(stacked, x)
    apply = jax.jit(layer.apply)
    for y, variables in zip(got, members, strict=True):
        np.testing.assert_allclose(y, apply(variables, x), rtol=1e-5, atol=1e-6)


def test_remat_changes_neither_names_nor_numbers():
    x = random_input(3, 5, 5, 4)
    plain = ODConv(6, (3, 3), num_kernels=2)
    again = nn.remat(ODConv)(6, (3, 3), num_kernels=2)
    variables = filled(plain, x)
    assert shapes_of(jax.eval_shape(again.init, jax.random.key(0), x)) == shapes_of(variables)

    def value_and_gradient(layer):
        def loss(variables):
            y, state = layer.apply(variables, x, mutable=["batch_stats"])
            return jnp.sum(y**2), state

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        value_and_gradient(again),
        value_and_gradient(plain),
    )


LOWERED = {
    "usual": dict(kernel_size=(3, 2), num_kernels=3, strides=2),
    "one kernel": dict(kernel_size=(3, 3), num_kernels=1),
    "pointwise": dict(kernel_size=(1, 1), num_kernels=3),
}


@functools.cache
def lowered_by_definition(name):
    x = random_input(3, 5, 5, 4)
    layer = ODConv(6, **LOWERED[name])
    variables = filled(layer, x)
    weights = attention_by_numpy(variables, np.asarray(x).mean((1, 2)), layer.kernel_size)
    return variables, x, od_conv_by_definition(variables, x, weights, strides=layer.strides)


# `outputs` cannot do tap attention, and says so: see the errors.
@pytest.mark.parametrize(
    ("name", "lowering"),
    [
        (name, lowering)
        for name in LOWERED
        for lowering in [*LOWERINGS, "auto"]
        if lowering != "outputs" or name == "pointwise"
    ],
)
def test_every_lowering_gives_the_same_numbers(name, lowering):
    variables, x, want = lowered_by_definition(name)
    got = jax.jit(ODConv(6, **LOWERED[name], lowering=lowering).apply)(variables, x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


# Inside other people's models.


def linen_variables(model):
    """The variables of a layer that `ToNNX` made, as linen has them."""
    collections = {nnx.Param: "params", nnx.BatchStat: "batch_stats"}
    variables = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if path[0].startswith("to_nnx"):
            continue  # the streams of random numbers
        at = variables.setdefault(collections.get(type(variable), "attention"), {})
        for key in path[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = variable.get_value()
    return variables


def test_as_a_layer_of_nnx_it_gives_the_same_output_and_trains():
    x = random_input(4, 5, 5, 3)
    layer = ODConv(4, (3, 3), num_kernels=2, lowering="shared")
    model = nnx.bridge.ToNNX(layer, rngs=nnx.Rngs(0)).lazy_init(x)
    variables = linen_variables(model)
    assert shapes_of(variables) == shapes_of(jax.eval_shape(layer.init, jax.random.key(0), x))
    # One is compiled and the other is not.
    want = jax.jit(layer.apply)(variables, x)
    np.testing.assert_allclose(model(x), want, rtol=1e-5, atol=1e-6)

    @nnx.jit
    def train_step(model):
        def loss(model):
            return jnp.mean((model(x, mutable=["batch_stats"]) - 1.0) ** 2)

        value, gradient = nnx.value_and_grad(loss)(model)
        params = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient))
        return value

    first, second = float(train_step(model)), float(train_step(model))
    assert second < first
    after = linen_variables(model)
    assert set(after) == set(variables)
    moved = after["batch_stats"]["attention"]["norm"]["mean"]
    assert np.abs(moved).max() > 0


class ResNetBlock(nn.Module):
    """The block of flax's own ImageNet example, which knows nothing of dynamic convolutions."""

    filters: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x):
        residual = x
        y = self.conv(self.filters, (3, 3), self.strides)(x)
        y = nn.relu(self.norm()(y))
        y = self.conv(self.filters, (3, 3))(y)
        y = self.norm(scale_init=nn.initializers.zeros_init())(y)
        if residual.shape != y.shape:
            residual = self.conv(self.filters, (1, 1), self.strides, name="conv_proj")(residual)
            residual = self.norm(name="norm_proj")(residual)
        return nn.relu(residual + y)


class ResNet(nn.Module):
    """Stem, one block and classifier, in the pattern of flax's ImageNet example."""

    conv: Callable[..., nn.Module] = nn.Conv
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = True):
        conv = partial(self.conv, use_bias=False, dtype=self.dtype)
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        x = conv(8, (3, 3), (2, 2), padding=[(1, 1), (1, 1)], name="conv_init")(x)
        x = nn.relu(norm(name="bn_init")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        x = ResNetBlock(16, strides=(2, 2), conv=conv, norm=norm)(x)
        x = nn.Dense(5, dtype=self.dtype)(jnp.mean(x, axis=(1, 2)))
        return jnp.asarray(x, self.dtype)


def test_trains_inside_flax_s_own_resnet():
    x = random_input(4, 16, 16, 3).astype(jnp.bfloat16)
    # The lowering that compiles quickest.
    conv = partial(ODConv, num_kernels=2, lowering="shared")
    net = ResNet(conv=conv, dtype=jnp.bfloat16)
    variables = filled(net, x)
    convolutions = {"conv_init", "ODConv_0", "ODConv_1", "conv_proj"}
    found = {p.split("/")[-2] for p in shapes_of(variables["params"]) if p.count("attention") == 0}
    assert convolutions < found

    @jax.jit
    def train_step(variables):
        def loss(params):
            logits, state = net.apply(
                {**variables, "params": params}, x, mutable=["batch_stats", "intermediates"]
            )
            return jnp.mean(nn.log_softmax(logits.astype(jnp.float32))[:, 0]), state

        return jax.grad(loss, has_aux=True)(variables["params"])

    # flax's BatchNorm does not run in bfloat16 under strict promotion (see `filled`).
    with jax.numpy_dtype_promotion("standard"):
        gradients, state = train_step(variables)
        logits = jax.eval_shape(partial(net.apply, train=False), variables, x)
    assert logits.dtype == jnp.bfloat16
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    # The layers took batch statistics although nobody told them that this is training.
    after, before = (v["batch_stats"]["conv_init"]["attention"]["norm"] for v in (state, variables))
    assert not np.array_equal(after["mean"], before["mean"])


def test_variables_survive_serialization():
    x = random_input(2, 5, 5, 4)
    layer = ODConv(6, (3, 3), num_kernels=2)
    variables = set_temperature(filled(layer, x), 7.0)
    blank = jax.tree.map(jnp.zeros_like, variables)
    restored = flax.serialization.from_bytes(blank, flax.serialization.to_bytes(variables))
    jax.tree.map(np.testing.assert_array_equal, restored, variables)
    assert restored["attention"]["attention"]["temperature"] == 7.0
