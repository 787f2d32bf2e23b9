"""FDConv: its spectrum, its start as a static convolution, and its formulas by numpy."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from fd_numbers import IN, OUT, make_torch_weights
from layer_cases import (
    EVERYWHERE,
    assert_published,
    filled,
    init_shapes,
    random_input,
    shapes_of,
    sines,
)

from dyn.diagnostics import count_macs, count_parameters
from dyn.interop import from_torch, warm_start
from dyn.layers.fd_conv import (
    FDConv,
    disjoint_kernels,
    frequency_groups,
    frequency_order,
    kernel_to_spectrum,
    spectrum_shape,
    spectrum_to_kernel,
    transform_by_products,
)
from dyn.ops import platforms
from dyn.schedules import set_temperature

SHAPES = [
    (3, 4, 6),
    (4, 5, 3),
    (3, 3, 4, 6),
    (3, 2, 5, 7),
    (1, 1, 4, 6),
    (1, 1, 1, 1),
    (2, 3, 2, 3, 4),
]


# The spectrum.


def test_fourier_weights_round_trip():
    @jax.jit
    def there_and_back(kernels):
        spectra = [kernel_to_spectrum(kernel) for kernel in kernels]
        # Any number of spectra at once.
        stacks = [jnp.stack([spectrum, 2 * spectrum]) for spectrum in spectra]
        return spectra, [spectrum_to_kernel(*pair) for pair in zip(stacks, SHAPES, strict=True)]

    with jax.enable_x64(True):
        kernels = [random_input(*shape, dtype=np.float64) for shape in SHAPES]
        for kernel, spectrum, back in zip(kernels, *there_and_back(kernels), strict=True):
            assert spectrum.shape == spectrum_shape(kernel.shape)
            np.testing.assert_allclose(back, [kernel, 2 * kernel], rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_groups", [1, 3, 5])
def test_groups_partition_the_spectrum_from_low_to_high(shape, num_groups):
    rows, half, _ = spectrum_shape(shape)
    if num_groups > rows * half:
        pytest.skip("there are fewer frequencies")
    groups = frequency_groups(shape, num_groups)
    assert groups.shape == (rows, half)
    sizes = np.bincount(groups.ravel(), minlength=num_groups)
    assert sizes.sum() == rows * half and sizes.min() >= 1 and sizes.max() - sizes.min() <= 1
    columns = shape[-2] * int(np.prod(shape[:-2])) * shape[-1] // rows
    radius = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns))
    for number in range(num_groups - 1):
        assert radius[groups == number].max() <= radius[groups == number + 1].min()
    assert groups[0, 0] == 0  # the mean


def test_the_candidates_add_up_to_the_kernel():
    kernel = random_input(3, 3, 4, 6)
    kernels = disjoint_kernels(kernel_to_spectrum(kernel), kernel.shape, 5)
    assert kernels.shape == (5, 3, 3, 4, 6)
    np.testing.assert_allclose(kernels.sum(0), kernel, atol=1e-5)
    groups = frequency_groups((3, 3, 4, 6), 5)
    # A kernel has no weights outside its group, except those that a real kernel has twice
    # (columns 0 and C/2), which two groups may share.
    for number, kernel in enumerate(kernels):
        spectrum = np.asarray(kernel_to_spectrum(kernel))[:, 1:-1]
        elsewhere = groups[:, 1:-1] != number
        np.testing.assert_allclose(spectrum[elsewhere], 0, atol=1e-5)


def test_a_kernel_has_as_many_parameters_as_the_paper_s():
    x = jax.ShapeDtypeStruct((2, 8, 8, 32), jnp.float32)
    for num_kernels in (4, 64):
        layer = FDConv(32, (3, 3), num_kernels=num_kernels)
        params = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
        assert params["spectrum"].size == 9_408


def test_ties_of_frequencies_are_broken_as_by_torch():
    """The groups differ from those of exact numbers by as many frequencies as the authors' do."""
    for shape, num_groups, moved in (((1, 1, 64, 64), 64, (0, 0)), ((3, 3, 64, 64), 64, (12, 40))):
        rows, half, _ = spectrum_shape(shape)
        assert rows == 2 * half - 2  # so squares of frequencies are whole numbers
        squares = np.round(np.fft.fftfreq(rows, 1 / rows))[:, None] ** 2 + np.arange(half) ** 2
        exact = np.empty(squares.size, int)
        order = np.argsort(squares, axis=None, kind="stable")
        exact[order] = np.arange(squares.size) // (squares.size // num_groups)
        groups = frequency_groups(shape, num_groups)
        number = (groups.ravel() != exact).sum()
        assert moved[0] <= number <= moved[1]


def test_kept_frequencies_are_the_lowest():
    shape = (3, 3, 4, 6)
    groups = frequency_groups(shape, 5, kept=0.5)
    assert (groups >= 0).sum() == 63 and (np.bincount(groups[groups >= 0]) >= 12).all()
    rows, half, _ = spectrum_shape(shape)
    radius = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(12))
    assert radius[groups >= 0].max() <= radius[groups < 0].min()

    layer = FDConv(6, (3, 3), num_kernels=5, kept_frequencies=0.5, num_spectra=2, **EVERYWHERE)
    x = random_input(2, 4, 5, 4)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    spectra = variables["params"]["spectrum"]
    assert spectra.shape == (2, 63, 2)
    # It starts as the static convolution with the sum of both, of the usual size.
    full = np.zeros((rows * half, 2), np.float32)
    order = frequency_order(shape)[:63]
    full[order] = spectra.sum(0)
    kernel = spectrum_to_kernel(full.reshape(rows, half, 2), shape)
    want = nn.Conv(6, (3, 3)).apply(
        {"params": {"kernel": kernel, "bias": variables["params"]["bias"]}}, x
    )
    for lowering in ("samples", "patches"):
        y = jax.jit(layer.copy(lowering=lowering).apply)(variables, x)
        np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)


# Cases in which it is the plain convolution.


@pytest.mark.parametrize(
    ("channels", "features", "size", "plain"),
    [
        (16, 64, (3, 3), True),
        (64, 16, (1, 1), True),
        (17, 17, (1, 1), False),
        (17, 17, (3, 3), False),
        (32, 32, (7, 7), True),
        (32, 32, (3, 1), False),
        (32, 32, (3, 5), True),
        (32, 32, (3,), False),
        (32, 32, (3, 3, 3), False),
    ],
)
def test_it_is_plain_where_its_authors_do_not_use_it(channels, features, size, plain):
    x = jnp.ones((2, *(4,) * len(size), channels))
    layer = FDConv(features, size)
    names = set(init_shapes(layer, x)["params"])
    bands = all(k == 3 for k in size)
    dynamic = {"spectrum", "attention", "local", *(("bands",) if bands else ())}
    assert names == {"bias", *({"kernel"} if plain else dynamic)}
    if plain:
        variables = filled(layer, x)
        want = nn.Conv(features, size).apply(variables, x)
        np.testing.assert_allclose(layer.apply(variables, x), want, rtol=1e-4, atol=1e-4)


def test_bands_of_strided_layers():
    """The authors modulate them for 3x3 kernels; for others if asked to."""
    x = jnp.ones((2, 4, 4, 20))
    for size, fields, bands in (
        ((3, 3), {}, True),
        ((1, 1), {}, False),
        ((1, 1), {"strided_bands": True}, True),
        ((3, 3), {"bands": False}, False),
    ):
        params = init_shapes(FDConv(20, size, strides=2, **fields), x)["params"]
        assert ("bands" in params) == bands


@pytest.mark.parametrize(
    ("channels", "features", "size", "parameters"),
    [(64, 64, (3, 3), 46_462), (64, 64, (1, 1), 8_994), (512, 512, (3, 3), 2_452_910)],
)
def test_a_layer_has_the_published_number_of_parameters(channels, features, size, parameters):
    layer = FDConv(features, size, use_bias=False)
    x = jax.ShapeDtypeStruct((2, 8, 8, channels), jnp.float32)
    assert count_parameters(init_shapes(layer, x)["params"]) == parameters


def test_multiply_adds():
    """By hand: the convolution, the branches, and three low-passes of 14 x 14 pixels."""
    layer = FDConv(32, (3, 3), num_kernels=8, lowering="samples")
    x = jax.ShapeDtypeStruct((2, 14, 14, 32), jnp.float32)
    convolution = 14 * 14 * 9 * 32 * 32
    branch = 32 * 16 + 16 * (32 + 32 + 9 + 8)
    local = 3 * 9 * 32 * 32
    maps = 14 * 14 * 9 * 32 * 3
    # The low-passes keep the frequencies -3..3 x 0..3, -1..1 x 0..2 and 0..1 x 0..1; numbers are pairs.
    rows, columns = (7, 3, 2), (4, 3, 2)
    there = 14 * 14 * 2 * columns[0] + 4 * 14 * rows[0] * columns[0]
    back = sum(4 * r * c * 14 + 2 * 14 * c * 14 for r, c in zip(rows, columns, strict=True))
    macs = count_macs(layer.apply, init_shapes(layer, x), x)
    assert macs == 2 * (convolution + branch + local + maps + 32 * (there + back))


# At the start it is the static convolution.

START = {
    "usual": dict(features=6, kernel_size=(3, 3), strides=2, padding=1),
    "groups": dict(features=6, kernel_size=(3, 2), feature_group_count=2, padding="VALID"),
    "depthwise": dict(features=4, kernel_size=(3, 3), feature_group_count=4, padding="CIRCULAR"),
    "pointwise": dict(features=6, kernel_size=(1, 1)),
}


@pytest.mark.parametrize(("name", "local"), [("usual", True), ("groups", False)])
def test_equals_the_static_convolution_at_initialisation(name, local):
    x = 3 * random_input(3, 6, 5, 4)
    layer = FDConv(**START[name], **EVERYWHERE, num_kernels=3, local=local)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    i = 4 // layer.feature_group_count
    kernel = spectrum_to_kernel(
        variables["params"]["spectrum"], (*layer.kernel_size, i, layer.features)
    )
    static = {"kernel": kernel}
    if layer.use_bias:
        static["bias"] = variables["params"]["bias"]
    want = jax.jit(nn.Conv(**START[name]).apply)({"params": static}, x)

    @jax.jit
    def compute(variables):
        training, _ = layer.apply(variables, x, mutable=["batch_stats"])
        return training, layer.apply(variables, x)

    for got in compute(variables):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-4)


def test_the_kernel_is_initialised_as_a_static_one():
    x = jnp.ones((1, 4, 4, 64))
    layer = FDConv(64, (3, 3), num_kernels=1, local=False)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    kernel = spectrum_to_kernel(variables["params"]["spectrum"], (3, 3, 64, 64))
    np.testing.assert_allclose(kernel.var(), 2 / (9 * 64), rtol=0.05)
    np.testing.assert_allclose(variables["params"]["spectrum"].var(), 1 / (9 * 64), rtol=0.05)


# The formulas in numpy.


def sigmoid2(v):
    return 2 / (1 + np.exp(-v))


@pytest.mark.parametrize(
    ("name", "local", "lowering"),
    [
        ("usual", True, "samples"),
        ("groups", True, "patches"),
        ("depthwise", False, "patches"),
        ("pointwise", False, "samples"),
    ],
)
def test_follows_the_formulas(name, local, lowering):
    fields = START[name]
    own = dict(
        EVERYWHERE,
        num_kernels=3,
        local=local,
        bands=False,
        attention_norm="batch",
        lowering=lowering,
    )
    layer = FDConv(**fields, **own, param_dtype=jnp.float64)
    size, o, groups = layer.kernel_size, layer.features, layer.feature_group_count
    with jax.enable_x64(True):
        x = random_input(3, 5, 4, 4, dtype=np.float64)
        variables = set_temperature(filled(layer, x, dtype=np.float64), 1.7)
        with jax.numpy_dtype_promotion("standard" if local else "strict"):
            y = np.asarray(jax.jit(layer.apply)(variables, x))
        params = jax.tree.map(np.asarray, variables["params"])
        running = jax.tree.map(np.asarray, variables["batch_stats"]["attention"]["norm"])
        attention = params["attention"]
        pooled = np.asarray(x).mean((1, 2))
        z = pooled @ attention["squeeze"]["kernel"]
        z = (z - running["mean"]) / np.sqrt(running["var"] + 1e-5)
        z = np.maximum(z * attention["norm"]["scale"] + attention["norm"]["bias"], 0)
        z = attention["scale"] * z**2 + attention["shift"]

        def weights(name):
            head = attention[name]
            return sigmoid2((z @ head["kernel"] + head["bias"]) / 1.7)

        depthwise, pointwise = name == "depthwise", name == "pointwise"
        assert ("filter" in attention) == (not depthwise)
        assert ("spatial" in attention) == (not pointwise)

        # The mixture in the spectrum, and then one inverse transform.
        i = 4 // groups
        spectrum = params["spectrum"][..., 0] + 1j * params["spectrum"][..., 1]
        of_group = frequency_groups((*size, i, o), 3)
        want = []
        for b in range(3):
            f = spectrum * weights("kernel")[b][of_group]
            rows, columns = o * size[0], i * size[1]
            matrix = np.fft.irfft2(f, s=(rows, columns)) * np.sqrt(rows * columns)
            kernel = matrix.reshape(o, size[0], i, size[1]).transpose(1, 3, 2, 0).copy()
            if not pointwise:
                kernel *= weights("spatial")[b].reshape(*size, 1, 1)
            if local:
                v = pooled[b]
                v = (v - v.mean()) / np.sqrt(v.var() + 1e-5)
                v = v * params["local"]["norm"]["scale"] + params["local"]["norm"]["bias"]
                conv = params["local"]["conv"]["kernel"][:, 0]  # [reach, taps * O]
                half = conv.shape[0] // 2
                v = np.pad(v, half)
                maps = np.stack([v[c : c + 2 * half + 1] @ conv for c in range(4)])
                maps = sigmoid2(maps).reshape(4, *size, o)
                for out in range(o):
                    first = out // (o // groups) * i
                    kernel[..., out] *= np.moveaxis(maps[first : first + i, ..., out], 0, -1)
            sample = np.asarray(x)[b] * weights("channel")[b]
            geometry = {k: v for k, v in fields.items() if k not in ("features", "kernel_size")}
            (out,) = numpy_oracle.convolve(sample[None], kernel[None], **geometry)
            out = out if depthwise else out * weights("filter")[b]
            want.append(out + params["bias"])
    np.testing.assert_allclose(y, np.stack(want), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("shape", [(3, 3, 4, 6), (3, 3, 5, 3), (3, 4, 5), (3, 2, 2, 4, 4)])
def test_products_transform_like_the_fourier_transform(shape):
    spectrum = jax.random.normal(jax.random.key(0), spectrum_shape(shape))
    got = transform_by_products(spectrum, shape, 5, jnp.dtype(jnp.float32))
    want = disjoint_kernels(spectrum, shape, 5)
    np.testing.assert_allclose(got, want, atol=3e-6)


# Published numbers.


class Block(nn.Module):
    """The second convolution of a network's first block, alone."""

    conv: partial

    @nn.compact
    def __call__(self, x):
        return Inner(self.conv, name="stage1_block1")(x)


class Inner(nn.Module):
    conv: partial

    @nn.compact
    def __call__(self, x):
        return self.conv(name="conv2")(x)


PUBLISHED = {
    "A": (6, {}, {}, (-7.6372109270, 1379.2598960700),
          (-0.72564321, -1.3504629, -1.29633177, -0.99505921, 0.10361650)),
    "B": (10, {}, {}, (70.4157108467, 7909.2370617541),
          (1.20738769, 2.62462512, 3.16316374, 3.77609033, 1.85901548)),
    "C": (6, {"size": 1}, {}, (7.8677438074, 297.4221748646),
          (0.3429803, 0.34356897, 0.32606281, 0.29138384, 0.27406476)),
    "A, tanh": (6, {}, {"activation": "tanh", "local_activation": "tanh"},
                (-5.3352298321, 1097.3225255003),
                (-0.46585187, -0.87776788, -0.86108008, -0.64606247, 0.02897317)),
    "A, no local": (6, {"local": False}, {"local": False}, (-10.3236082023, 1374.1081679469),
                    (-0.66938858, -1.18783906, -1.10258713, -0.81338698, 0.13328631)),
    "A, two spectra": (6, {"num_spectra": 2}, {"num_spectra": 2}, (-18.1593191778, 3238.3789351958),
                       (-1.71977683, -3.18049675, -3.05107058, -2.34099414, 0.23888714)),
    "A, softmax": (6, {"only_groups": True}, {"only_groups": True, "activation": "softmax"},
                   (-7.9445672173, 1375.5851778025),
                   (-0.81203428, -1.55389999, -1.50918686, -1.19031302, 0.12382127)),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name):
    """With weights that are read from the names and layouts of the authors' code."""
    side, of_weights, fields, sums, entries = PUBLISHED[name]
    size = of_weights.get("size", 3)
    fields = {"use_bias": False, "attention_norm": "batch", "param_dtype": jnp.float64, **fields}
    net = Block(partial(FDConv, OUT, (size, size), num_kernels=4, **fields))
    x = sines((2, IN, side, side), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)
    with jax.enable_x64(True):
        # Statistics, too, in float64.
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float64), init_shapes(net, x)
        )
        imported = from_torch(shapes, make_torch_weights(**of_weights))
        variables = jax.tree.map(np.asarray, set_temperature(imported.variables, np.float32(1)))
    assert imported.left_out == imported.kept == ()
    assert_published(net, variables, x, sums, entries)


@pytest.mark.parametrize("lowering", ["taps", "onnx"])
def test_all_ways_compute_the_same(lowering):
    fields = dict(num_spectra=2, num_kernels=3, activation="tanh", largest_weight=3.0)
    layer = FDConv(OUT, (3, 3), kernel_temperature=2.0, kept_frequencies=0.6, **fields)
    x = random_input(3, 5, 4, IN)
    variables = filled(layer, x)
    want = jax.jit(layer.copy(lowering="samples").apply)(variables, x)
    if lowering == "onnx":
        with platforms.plan_for_platform("onnx"):
            program = jax.make_jaxpr(layer.apply)(variables, x)
            got = jax.jit(lambda *args: layer.apply(*args))(variables, x)
        assert "fft" not in str(program) and "complex" not in str(program)
    else:
        got = jax.jit(layer.copy(lowering=lowering).apply)(variables, x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(activation="relu"), "activation='relu'"),
        (dict(activation="softmax"), "only_groups=True"),
        (dict(local_activation="softmax"), "local_activation='softmax'"),
        (dict(band_activation="relu"), "activation='relu' of bands"),
        (dict(band_groups=7), "groups=7 of bands"),
        (dict(num_spectra=0), "num_spectra=0"),
        (dict(kept_frequencies=0.0), "kept_frequencies=0.0"),
        (dict(kept_frequencies=0.01), "num_kernels=64 must be from 1 to 16"),
    ],
)
def test_wrong_fields_are_explained(fields, message):
    x = jax.ShapeDtypeStruct((2, 5, 4, IN), jnp.float32)
    with pytest.raises(ValueError, match=message):
        init_shapes(FDConv(OUT, (3, 3), **{"num_kernels": 64, **fields}), x)


def test_a_single_group_has_no_weights():
    x = random_input(2, 3, 3, IN)
    layer = FDConv(OUT, (1, 1), num_kernels=1)
    variables = filled(layer, x)
    assert "kernel" not in variables["params"]["attention"]
    want = jax.jit(layer.apply)(variables, x)
    for lowering in ("patches", "samples"):
        y = jax.jit(layer.copy(lowering=lowering).apply)(variables, x)
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)


def test_a_converted_static_network_starts_a_dynamic_one():
    """The authors' script replaces `weight` by `dft_weight`, and adds nothing."""
    weights = {k: v for k, v in make_torch_weights().items() if k.endswith("dft_weight")}
    x = random_input(2, 6, 6, IN)
    nets = [
        Block(partial(conv, OUT, (3, 3), use_bias=False))
        for conv in (nn.Conv, partial(FDConv, num_kernels=4))
    ]
    twin = from_torch(init_shapes(nets[0], x), weights).variables
    kernel = sines((OUT, IN, 3, 3), 0.7).transpose(2, 3, 1, 0)
    got = twin["params"]["stage1_block1"]["conv2"]["kernel"]
    np.testing.assert_allclose(got, kernel, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="warm_start"):
        from_torch(init_shapes(nets[1], x), weights)
    fresh = jax.jit(nets[1].init)(jax.random.key(0), x)
    variables = warm_start(fresh, twin, noise=0)
    want = jax.jit(nets[0].apply)(twin, x)
    np.testing.assert_allclose(jax.jit(nets[1].apply)(variables, x), want, rtol=1e-4, atol=1e-4)
    assert shapes_of(variables) == shapes_of(fresh)
