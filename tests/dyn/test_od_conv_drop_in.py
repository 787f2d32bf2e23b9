"""ODConv in the place of `nn.Conv`: fields, numbers, parameters, context, errors."""

import dataclasses
import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import filled, random_input, shapes_of
from od_conv_oracle import attention_by_numpy, od_conv_by_definition

from dyn.layers import ODConv
from dyn.schedules import set_temperature

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
