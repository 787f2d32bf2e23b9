"""Norms of inputs far from zero, against float64; `test_norms_matrix` has them inside every layer."""

import functools
import re
import warnings
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from layer_cases import filled, random_input
from sharded_steps import make_mesh

import dyn
from dyn.layers import ODConv
from dyn.layers.norms import BatchNorm, LayerNorm, Reduction, compute_moments
from dyn.models.backbone import make_batch_norm
from dyn.ops import platforms

MEANS, SPREADS = (0.0, 10.0, 293.0, 1e4), (0.05, 0.1, 0.5, 5.0)


def normalise(x, axis):
    """Normalises by definition, in float64."""
    x = np.asarray(x, np.float64)
    return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + 1e-5)


@functools.cache
def compile_norm(name):
    make = {
        "batch": partial(BatchNorm, use_running_average=False),
        "backbone": make_batch_norm(True, None),
        "layer": LayerNorm,
    }[name]

    @jax.jit
    def apply(x):
        return make().init_with_output(jax.random.key(0), x)

    return apply


@pytest.mark.parametrize("name", ["batch", "backbone", "layer"])
def test_a_variance_is_exact_whatever_the_mean(name):
    axis = -1 if name == "layer" else 0
    for mean in MEANS:
        for spread in SPREADS:
            x = np.random.default_rng(0).standard_normal((32, 16))
            x = (mean + spread * x).astype(np.float32)
            y, variables = compile_norm(name)(x)
            # Float32 leaves this much of the mean itself.
            allowed = 1e-5 + 2**-22 * mean / spread
            np.testing.assert_allclose(y, normalise(x, axis), rtol=0, atol=allowed)
            assert ("batch_stats" in variables) == (name != "layer")


@pytest.mark.parametrize("name", ["batch", "layer"])
def test_half_precision_is_normalised_in_float32(name):
    axis = -1 if name == "layer" else 0
    for dtype in (jnp.float16, jnp.bfloat16):
        for size in (1e-6, 1.0, 6e4):
            x = np.clip(size * np.random.default_rng(0).standard_normal((32, 16)), -6e4, 6e4)
            x = jnp.asarray(x, dtype)
            y = np.asarray(compile_norm(name)(x)[0], np.float64)
            np.testing.assert_allclose(y, normalise(x, axis), rtol=0, atol=1e-5)


# ---------------------------------------------------------------- one pass, and a centre

SHAPE = (2, 64, 3, 4)  # the slice is a sixteenth of the second axis
# A platform for which the program is traced, and a guess of the mean.
WAYS = [("cpu", 0.0), ("tpu", 0.0), ("tpu", 1e4), ("tpu", np.nan)]


@functools.cache
def compile_moments(platform, dtype):
    def compute(x, guess):
        return compute_moments(Reduction((0, 1, 2)), jnp.float32, x, guess)

    with platforms.plan_for_platform(platform):
        shapes = jax.ShapeDtypeStruct(SHAPE, dtype), jax.ShapeDtypeStruct(SHAPE[-1:], jnp.float32)
        return jax.jit(compute).lower(*shapes).compile()


def list_adversaries(rng):
    """Yields inputs for which a mean of a part, or of nothing, is no mean of the rest."""
    noise = rng.standard_normal(SHAPE)
    yield 1e4 + noise
    yield np.where(np.arange(SHAPE[-1]) == 1, 1e4, 0.0) + noise  # one channel
    yield np.full(SHAPE, 293.7)
    for rows in ([0], [30, 31, 32, 33], [63], [5, 40]):
        for inside in (0.0, 1e4, -3.0):
            for outside in (0.0, 1e4):
                x = outside + noise
                x[:, rows] = inside
                yield x
                yield x - noise  # the rest is constant


@pytest.mark.parametrize(("platform", "guess"), WAYS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_one_pass_is_exact_for_every_input(rng, platform, guess, dtype):
    for x in list_adversaries(rng):
        x = jnp.asarray(x, dtype)
        wide = np.asarray(x, np.float64)
        want = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
        got = compile_moments(platform, dtype)(x, np.full(SHAPE[-1:], guess, np.float32))
        size = np.abs(wide).max()
        # A sum of 384 numbers in float32 has an error of some 4e-6, and the variance up to 16 times that.
        np.testing.assert_allclose(got[0], want[0], rtol=0, atol=4e-6 * size)
        np.testing.assert_allclose(got[1], want[1], rtol=1e-4, atol=(4e-6 * size) ** 2)


def differentiate_norm(make, dtype, x, cotangent):
    """Returns outputs, statistics and gradients of a batch norm in training."""
    layer = make(dtype=dtype, use_running_average=False)

    def apply(params, x):
        stats = {"mean": jnp.zeros(x.shape[-1:]), "var": jnp.ones(x.shape[-1:])}
        return layer.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])

    @jax.jit
    def compute(params, x, cotangent):
        y, pull, state = jax.vjp(apply, params, x, has_aux=True)
        return y, state, pull(cotangent)

    params = {"scale": jnp.linspace(0.5, 2.0, x.shape[-1]), "bias": jnp.ones(x.shape[-1:])}
    return compute(params, jnp.asarray(x, dtype), jnp.asarray(cotangent, dtype))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_gradients_are_those_of_two_passes_in_float64(rng, platform, mean):
    x, cotangent = rng.standard_normal((2, *SHAPE))
    x = (mean + x).astype(np.float32)
    x[:, 30:34] = 0.0 if mean else 100.0
    with platforms.plan_for_platform(platform):
        got = differentiate_norm(BatchNorm, jnp.float32, x, cotangent)
    two_passes = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5, use_fast_variance=False)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        want = differentiate_norm(two_passes, jnp.float64, x, cotangent)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * np.abs(b).max())


FIELDS = {
    "channels first": {"axis": 1},
    "two feature axes": {"axis": (1, -1)},
    "no parameters": {"use_scale": False, "use_bias": False},
    "half parameters": {"param_dtype": jnp.bfloat16},
    "half": {"dtype": jnp.bfloat16},
    "half sums": {"force_float32_reductions": False, "param_dtype": jnp.float16},
    "masked": {},
    "running": {"use_running_average": True},
}


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("case", FIELDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_fields_and_arguments_are_those_of_flax(rng, case, dtype, platform):
    x = rng.standard_normal((2, 6, 5, 4)) + (1j if dtype == "complex64" else 1)
    x = jnp.asarray(x, dtype)
    mask = jnp.asarray(rng.random((2, 6, 5, 1)) < 0.7) if case == "masked" else None
    fields = {"use_running_average": False, **FIELDS[case]}

    def compute(layer, x):
        def run(layer, x):
            y, variables = layer.init_with_output(jax.random.key(0), x)
            return variables, y, layer.apply(variables, x, mask=mask, mutable=["batch_stats"])

        return jax.jit(run, static_argnums=0)(layer, x)

    with platforms.plan_for_platform(platform):
        got = compute(BatchNorm(**fields), x)
    with jax.numpy_dtype_promotion("standard"):
        want = compute(nn.BatchNorm(momentum=0.9, use_fast_variance=False, **fields), x)
    assert jax.tree.map(jnp.result_type, got) == jax.tree.map(jnp.result_type, want)
    half = "half" in case or dtype == "bfloat16"
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        kind = jnp.complex64 if jnp.iscomplexobj(b) else jnp.float32
        close = {"rtol": 2e-2, "atol": 2e-2} if half else {"rtol": 1e-5, "atol": 1e-5}
        np.testing.assert_allclose(a.astype(kind), b.astype(kind), **close)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_named_axes_and_ensembles(rng, platform):
    """A named axis belongs to the batch; a norm for each member of an ensemble has its own statistics."""
    x = jnp.asarray(rng.standard_normal((4, 2, 6, 3)), jnp.float32).at[1].add(1e3)
    together, alone = BatchNorm(use_running_average=False, axis_name="devices"), BatchNorm()
    variables = together.init(jax.random.key(0), x[0])
    apply = partial(together.apply, mutable=["batch_stats"])
    with platforms.plan_for_platform(platform):
        y, _ = jax.jit(jax.vmap(partial(apply, variables), axis_name="devices"))(x)
        want, _ = alone.apply(
            variables, x.reshape(8, 6, 3), use_running_average=False, mutable=["batch_stats"]
        )
        np.testing.assert_allclose(y, want.reshape(x.shape), rtol=1e-5, atol=1e-5)
        paired = together.copy(axis_index_groups=[[0, 1], [2, 3]])
        # Groups are for `pmap`; `vmap` has none.
        with pytest.raises(NotImplementedError, match="axis_index_groups"):
            jax.vmap(
                partial(paired.apply, variables, mutable=["batch_stats"]), axis_name="devices"
            )(x)
        members, _ = jax.jit(
            jax.vmap(
                partial(alone.apply, variables, use_running_average=False, mutable=["batch_stats"])
            )
        )(x)
    for member, one in zip(members, x, strict=True):
        want, allowed = normalise(one, (0, 1)), 1e-5 + 2**-22 * np.abs(one).max()
        np.testing.assert_allclose(member, want, rtol=0, atol=allowed)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("kind", ["explicit", "auto"])
@pytest.mark.parametrize(
    "axes", [["data"], ["data", "model"], [None, "data", "model"], ["data", None, None, "model"]]
)
def test_sharded_inputs_have_the_same_statistics(rng, platform, kind, axes):
    """Also if space lies on several devices."""
    x = np.asarray(100 + rng.standard_normal((4, 4, 6, 2)), np.float32)
    x[:, 1:3] = 0
    cotangent = np.asarray(rng.standard_normal(x.shape), np.float32)
    mesh = make_mesh((2, 2), kind)
    placed = jax.device_put((x, cotangent), NamedSharding(mesh, PartitionSpec(*axes)))
    with platforms.plan_for_platform(platform):
        with jax.set_mesh(mesh):
            got = differentiate_norm(BatchNorm, jnp.float32, *placed)
        want = differentiate_norm(BatchNorm, jnp.float32, x, cotangent)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)
    if kind == "explicit":
        assert got[0].sharding.is_equivalent_to(placed[0].sharding, 4)


def test_attention_far_from_zero():
    """Mean 293 (kelvin, for example) and spread 0.5, where E[x^2] - E[x]^2 was off by 0.02."""
    layer = ODConv(6, (1, 1), num_kernels=2, attention_norm="batch")
    x, context = random_input(32, 1, 1, 4), 293 + 0.5 * random_input(32, 4, seed=2)
    variables = filled(layer, x, context)

    def compute_weights(variables, x, context):
        _, state = layer.apply(variables, x, context, mutable=["batch_stats", "intermediates"])
        return state["intermediates"]["attention"]["weights"][0]

    got = jax.jit(compute_weights)(variables, x, context)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (variables, x, context))
        want = jax.jit(compute_weights)(*wide)
    for name in got:
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-3)


def test_every_norm_of_the_library_is_one_of_these():
    """Flax's own have the fast variance."""
    for path in Path(dyn.__file__).parent.rglob("*.py"):
        found = re.findall(r"\bnn\.\w*Norm\(", path.read_text(encoding="utf-8"))
        assert not found or path.name == "norms.py", (path, found)


# ---------------------------------------------------------------- statistics that nobody updates


def find_warnings(function, *args):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        jax.eval_shape(function, *args)
    return [str(warning.message) for warning in found if "attention" in str(warning.message)]


def test_training_without_updated_statistics_warns():
    layer, x = ODConv(4, (1, 1), attention_norm="batch"), random_input(4, 3, 3, 3)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)

    def loss(params, x, layer=layer, **options):
        y = layer.apply({**variables, "params": params}, x, **options)
        return jnp.sum(y[0] if options else y)

    params = variables["params"]
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), variables)
    for gradient in (jax.grad(loss), jax.grad(jax.jit(loss))):
        (message,) = find_warnings(gradient, params, x)
        assert "mutable=['batch_stats']" in message and "attention_norm='layer'" in message
    # Evaluation, a saliency map, training as it should be, and statistics kept on purpose.
    assert not find_warnings(loss, params, x)
    assert not find_warnings(jax.grad(loss, argnums=1), params, x)
    assert not find_warnings(jax.grad(partial(loss, mutable=["batch_stats"])), params, x)
    kept = layer.copy(use_running_average=True)
    assert not find_warnings(jax.grad(partial(loss, layer=kept)), params, x)


def test_a_layer_norm_of_one_number_is_refused():
    """It is zero for every input."""
    layer = ODConv(4, (3, 3), min_squeeze=1)
    with pytest.raises(ValueError, match="min_squeeze=2"):
        jax.eval_shape(layer.init, jax.random.key(0), random_input(2, 5, 5, 3))
