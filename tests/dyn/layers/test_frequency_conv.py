"""FrequencyDynamicConv against PixelDynamicConv, loops, and the authors' numbers."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from layer_cases import assert_published, filled, init_shapes, random_input, sines
from numpy_oracle import axis_reads

from dyn.diagnostics import count_macs, count_parameters
from dyn.interop import warm_start
from dyn.layers import Conv, FrequencyDynamicConv, PartialFrequencyDynamicConv, PixelDynamicConv
from dyn.schedules import set_temperature

DILATIONS = ((1, 1), (1, 2), (1, 3), (1, 3))  # of time and frequency, as published


@pytest.mark.parametrize(
    ("fields", "temperature", "sums", "entries", "mixture"),
    [
        (
            {},
            31.0,
            (-0.0906600371, 46.0985897744),
            (-0.06326809, -0.09835744, -0.09297902, -0.08217296, -0.05478211),
            (0.26350657, 0.25429551, 0.23915448, 0.24304344),
        ),
        (
            {},
            1.0,
            (1.0835136533, 256.6379096205),
            (-0.24589042, -0.3518334, -0.18780584, 0.01315434, -0.57465837),
            (0.68355008, 0.22684784, 0.03382747, 0.05577461),
        ),
        (
            dict(axis="time"),
            31.0,
            (-5.3200740557, 105.4104553697),
            (-0.14004874, -0.16989178, -0.11728999, -0.05851087, -0.29530722),
            (0.41631845, 0.26156475, 0.13428763, 0.18782916),
        ),
        (
            dict(dilations=DILATIONS),
            1.0,
            (0.911475285, 255.7871505394),
            (-0.23261266, -0.36485641, -0.18791507, 0.01848978, -0.57219592),
            (0.68355008, 0.22684784, 0.03382747, 0.05577461),
        ),
    ],
    ids=["frequency", "frequency T 1", "time", "dilated"],
)
def test_published_numbers(fields, temperature, sums, entries, mixture):
    """Their spectrograms are [time, frequency]."""
    layer = FrequencyDynamicConv(
        6,
        (3, 3),
        padding=1,
        frequency_axis=1,
        use_bias=False,
        attention_norm="batch",
        param_dtype=jnp.float64,
        **fields,
    )
    attention = {
        "squeeze": {"kernel": sines((4, 4, 3), 0.1, 1.5).transpose(2, 1, 0).reshape(12, 4)},
        "norm": {"scale": 1 + sines((4,), 0.2, 0.1), "bias": sines((4,), 0.3, 0.1)},
        "kernel": {"kernel": sines((4, 4), 1, 3).T, "bias": sines((4,), 2)},
    }
    statistics = {"mean": sines((4,), 0.4, 0.1), "var": 1 + sines((4,), 0.5, 0.2)}
    variables = {
        "params": {
            "kernel": sines((4, 6, 4, 3, 3), 0.7).transpose(0, 3, 4, 2, 1),
            "attention": attention,
        },
        "batch_stats": {"attention": {"norm": statistics}},
        "attention": {"attention": {"temperature": np.array(temperature)}},
    }
    x = sines((2, 4, 5, 6), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)
    sown = assert_published(layer, variables, x, sums, entries)
    (weights,) = sown["attention"]["weights"]
    np.testing.assert_allclose(weights["pixel"][0].reshape(-1, 4)[0], mixture, rtol=0, atol=6e-9)


CASES = {
    "usual": dict(kernel_size=(3, 3)),
    "strided": dict(kernel_size=(3, 3), strides=(2, 1), padding=1),
    "valid, dilated": dict(kernel_size=(3, 2), padding="VALID", kernel_dilation=(1, 2)),
    "time": dict(kernel_size=(3, 3), axis="time", strides=2, padding=[(0, 2), (1, 1)]),
    "circular, groups": dict(kernel_size=(3, 3), padding="CIRCULAR", feature_group_count=2),
}


def make_windows(x, fields):
    """Returns the mean over the other axis, and the window of each output along the axis."""
    axis = int(fields.get("axis") == "time")
    usual = dict(strides=1, padding="SAME", input_dilation=1, kernel_dilation=1)
    values = [(usual | fields)[name] for name in usual]
    one = [v if isinstance(v, int | str) else v[axis] for v in values]
    names = ("stride", "padding", "input_dilation", "kernel_dilation")
    mean = x.mean(2 - axis)  # [B, n, C]
    reads = axis_reads(
        mean.shape[1], fields["kernel_size"][axis], **dict(zip(names, one, strict=True))
    )
    zero = np.zeros(mean.shape[-1])
    return np.stack(
        [
            np.stack([np.concatenate([zero if i is None else c[i] for i in row]) for row in reads])
            for c in mean
        ]
    )


@pytest.mark.parametrize("name", CASES)
def test_is_pixel_wise_with_a_mixture_constant_along_the_other_axis(name):
    fields = CASES[name]
    layer = FrequencyDynamicConv(6, **fields, num_kernels=3, param_dtype=jnp.float64)
    pixel_fields = {k: v for k, v in fields.items() if k != "axis"}
    pixel = PixelDynamicConv(
        6,
        **pixel_fields,
        num_kernels=3,
        min_squeeze=4,
        attention_norm="layer",
        param_dtype=jnp.float64,
    )
    x = np.random.default_rng(1).standard_normal((2, 6, 5, 4))
    with jax.enable_x64(True):
        variables = set_temperature(filled(layer, jnp.asarray(x), dtype=np.float64), 1.7)
        variables["params"]["bias"] = np.zeros((3, 6))
        y = jax.jit(layer.apply)(variables, x)
        windows = make_windows(x, fields)
        context = np.expand_dims(windows, 1 if fields.get("axis") == "time" else 2)
        context = np.broadcast_to(context, (*y.shape[:-1], context.shape[-1]))
        same = {**variables, "params": {**variables["params"], "bias": np.zeros(6)}}
        want = jax.jit(pixel.apply)(same, x, context)
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-12)


def test_biases_are_mixed_like_kernels():
    x = random_input(2, 6, 5, 4)
    layer = FrequencyDynamicConv(6, (3, 3))
    variables = filled(layer, x)
    y, state = jax.jit(partial(layer.apply, mutable=["intermediates"]))(variables, x)
    (weights,) = state["intermediates"]["attention"]["weights"]
    params = variables["params"]
    mix = np.broadcast_to(weights["pixel"], (2, 6, 5, 4))
    want = numpy_oracle.convolve(x, params["kernel"], mix) + mix @ params["bias"]
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", ((2, 1), (0, 3))])
def test_each_candidate_has_its_dilation_and_its_padding(padding):
    """A mixture of one candidate alone is that candidate's convolution of an input that is padded more."""
    x, dilations = random_input(2, 8, 7, 2), (1, (2, 1), 3)
    layer = FrequencyDynamicConv(
        3, (3, 3), num_kernels=3, padding=padding, dilations=dilations, use_bias=False
    )
    variables = filled(layer, x)
    head = variables["params"]["attention"]["kernel"]
    head["kernel"] *= 0
    shape = jax.eval_shape(layer.copy(dilations=None).apply, variables, x).shape
    before, after = [(1, 1)] * 2, [(0, 0)] * 2
    if isinstance(padding, tuple):
        before = padding
    elif padding == "VALID":
        before = after
    for k, dilation in enumerate([(1, 1), (2, 1), (3, 3)]):
        head["bias"] = np.float32(100 * (np.arange(3) == k))
        y = jax.jit(layer.apply)(variables, x)
        assert y.shape == shape
        pairs = [(a + d - 1, b + d - 1) for (a, b), d in zip(before, dilation, strict=True)]
        mode = {"mode": "wrap"} if padding == "CIRCULAR" else {}
        padded = np.pad(x, [(0, 0), *pairs, (0, 0)], **mode)
        kernel = variables["params"]["kernel"][k : k + 1]
        want = numpy_oracle.convolve(padded, kernel, padding="VALID", kernel_dilation=dilation)
        np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)


def test_a_vector_is_one_mixture_for_the_whole_input():
    x, vector = random_input(2, 6, 5, 4), random_input(2, 7, seed=2)
    layer = FrequencyDynamicConv(6, (3, 3), num_kernels=2, dilations=(1, (2, 1)))
    variables = filled(layer, x, vector)
    y = jax.jit(layer.apply)(variables, x, vector)
    # Far from the ends of the axis, the mixture of a context that is the same everywhere.
    same = jnp.broadcast_to(vector[:, None, None], (2, 6, 5, 7))
    want = jax.jit(layer.apply)(variables, x, same)
    np.testing.assert_allclose(y[:, 1:-1], want[:, 1:-1], rtol=1e-4, atol=1e-5)
    assert np.abs(y[:, 0] - want[:, 0]).max() > 1e-3


def test_the_other_layout_is_the_transpose():
    x = random_input(2, 6, 5, 4)
    layer = FrequencyDynamicConv(6, (3, 3), (1, 2))
    turned = layer.copy(strides=(2, 1), frequency_axis=1)
    variables = filled(layer, x)
    kernel = variables["params"]["kernel"].swapaxes(1, 2)
    other = {**variables, "params": {**variables["params"], "kernel": kernel}}
    want = jax.jit(layer.apply)(variables, x)
    got = jax.jit(turned.apply)(other, x.swapaxes(1, 2))
    np.testing.assert_allclose(got.swapaxes(1, 2), want, rtol=1e-4, atol=1e-5)


def test_starts_as_a_static_layer():
    x = random_input(2, 6, 5, 4)
    static, layer = Conv(6, (3, 3)), FrequencyDynamicConv(6, (3, 3))
    trained, fresh = filled(static, x), filled(layer, x, seed=3)
    variables = warm_start(fresh, trained, noise=0.3, key=jax.random.key(0))
    # The fresh bias of the head makes the mixture uneven; initialised it is zero.
    variables["params"]["attention"]["kernel"]["bias"] *= 0
    want = jax.jit(static.apply)(trained, x)
    for t in (1.0, 30.0):
        got = jax.jit(layer.apply)(set_temperature(variables, t), x)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_costs():
    """Four convolutions; for each of 6 frequencies attention, [24, 4] and [4, 4], and a bias, [4, 16]."""
    x = jax.ShapeDtypeStruct((2, 6, 5, 8), jnp.float32)
    layer = FrequencyDynamicConv(16, (3, 3))
    macs = count_macs(layer.apply, init_shapes(layer, x), x)
    assert macs == 4 * 2 * 30 * 9 * 8 * 16 + 2 * 6 * (24 * 4 + 4 * 4 + 4 * 16)


# The partial form.


def test_static_features_come_first_within_each_group():
    x = random_input(2, 6, 5, 4)
    mask = np.random.default_rng(3).integers(0, 2, (3, 3, 2, 16))
    branches = (None, (1, 1, (2, 1), (3, 1)))
    layer = PartialFrequencyDynamicConv(
        16, (3, 3), feature_group_count=2, dynamic_share=1 / 4, branches=branches, mask=mask
    )
    variables = set_temperature(filled(layer, x), 1.0)
    params = variables["params"]
    sizes = {"static": 8, "branch1": 4, "branch2": 4}
    assert {name: p["kernel"].shape[-1] for name, p in params.items()} == sizes
    y = jax.jit(layer.apply)(variables, x).reshape(2, 6, 5, 2, 8)
    parts = [
        mask.reshape(3, 3, 2, 2, 8)[..., a:b].reshape(3, 3, 2, -1)
        for a, b in ((0, 4), (4, 6), (6, 8))
    ]
    fields = {"kernel_size": (3, 3), "feature_group_count": 2}
    static = Conv(8, **fields, mask=parts[0]).apply({"params": params["static"]}, x)
    wants = [static]
    for n, dilations in enumerate(branches):
        branch = FrequencyDynamicConv(4, **fields, dilations=dilations, mask=parts[n + 1])
        wants.append(branch.apply({"params": params[f"branch{n + 1}"]}, x))
    for want, (a, b) in zip(wants, ((0, 4), (4, 6), (6, 8)), strict=True):
        want = want.reshape(2, 6, 5, 2, -1)
        np.testing.assert_allclose(y[..., a:b], want, rtol=1e-4, atol=1e-5)


def test_impossible_fields_are_refused():
    x = jax.ShapeDtypeStruct((2, 6, 5, 4), jnp.float32)
    full = partial(FrequencyDynamicConv, 6, (3, 3))
    part = partial(PartialFrequencyDynamicConv, 6, (3, 3))
    for layer, message in (
        (full(axis="both"), "axis='both' is unknown: write 'frequency' or 'time'"),
        (full(frequency_axis=2), "frequency_axis=2 must be one of the inputs' 2 spatial axes"),
        (full(dilations=(1, 2)), r"dilations=\(1, 2\) must have one for each of num_kernels=4"),
        (full(dilations=(1, 2, 3, 0)), "dilations=0 must be a positive number"),
        (part(dynamic_share=0.5, branches=(None,) * 3), "not more features than all"),
        (part(branches=()), "there must be a branch"),
    ):
        with pytest.raises(ValueError, match=message):
            init_shapes(layer, x)


class SoundEvents(nn.Module):
    """The authors' network but its recurrent layer: `convs` make its seven convolutions."""

    convs: tuple
    filters: tuple = (32, 64, 128, 256, 256, 256, 256)

    @nn.compact
    def __call__(self, x):
        for conv, features in zip(self.convs, self.filters, strict=True):
            x = nn.BatchNorm(use_running_average=True)(conv(features, (3, 3))(x))
            x = nn.avg_pool(x * nn.sigmoid(nn.Dense(features)(x)), (2, 1), (2, 1))
        x = jnp.repeat(x.mean(1), 512 // x.shape[-1] + 1, axis=-1)[..., :512]
        return nn.Dense(10)(x), nn.Dense(10)(x)


def count_recurrent(features, hidden=256):
    """Counts torch's parameters of two recurrent layers in both directions."""
    return 2 * sum(3 * hidden * (n + hidden + 2) for n in (features, 2 * hidden))


FULL = partial(FrequencyDynamicConv, use_bias=False)
PARTIAL = partial(PartialFrequencyDynamicConv, use_bias=False)
DILATED = ((1, 1), (2, 1), (3, 1), (3, 1))
ONE_TO_THREE = [(1, 1, 2, 3), (1, 2, 2, 3), (1, 2, 3, 3)]
EIGHT = (*[None] * 5, *ONE_TO_THREE)


@pytest.mark.parametrize(
    ("convs", "filters", "channels", "parameters"),
    [
        ((Conv,) * 7, 32, 1, 4_427_956),
        ((Conv, *[FULL] * 6), 32, 1, 11_061_468),
        ((Conv, *[partial(FULL, dilations=DILATED)] * 5, FULL), 32, 1, 11_061_468),
        ((PARTIAL,) * 7, 32, 16, 5_406_936),
        ((partial(PARTIAL, dynamic_share=1 / 11, branches=EIGHT),) * 7, 44, 16, 18_157_168),
    ],
    ids=["static", "full", "dilated", "partial", "multi-dilated"],
)
def test_published_number_of_parameters(convs, filters, channels, parameters):
    filters = tuple(filters * n for n in (1, 2, 4, 8, 8, 8, 8))
    net = SoundEvents(convs, filters)
    x = jax.ShapeDtypeStruct((1, 128, 2, channels), jnp.float32)
    number = count_parameters(init_shapes(net, x)["params"]) + count_recurrent(filters[-1])
    number += 9 * 16 + 16 if channels == 16 else 0  # the convolution before all
    assert number == parameters
