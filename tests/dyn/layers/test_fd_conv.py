"""FDConv: its spectrum, its start as a static convolution, and its formulas by numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from layer_cases import EVERYWHERE, filled, random_input

from dyn.layers.fd_conv import (
    FDConv,
    disjoint_kernels,
    frequency_groups,
    kernel_to_spectrum,
    spectrum_shape,
    spectrum_to_kernel,
    transform_by_products,
)
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
        band_sizes=(),
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
