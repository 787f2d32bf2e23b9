"""Every layer with inputs far from zero, very large and very small ones, against float64."""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import LAYERS, filled, random_input
from products import thin_out

from dyn.layers import CBAM, KernelRepresentation
from dyn.ops.dtypes import float32_or_wider

pytestmark = pytest.mark.matrix

MEANS, SPREADS = (0.0, 10.0, 293.0, 1e4), (0.05, 0.1, 0.5, 5.0)
CONTEXT = (32, 4)  # 32 samples of 4 features


def has_field(name, field):
    return field in {f.name for f in dataclasses.fields(LAYERS[name].layer())}


NORMED = [
    (name, norm)
    for name in LAYERS
    if has_field(name, "attention_norm") and name != "CoordinateAttention"  # takes no context
    for norm in ("batch", "layer")
]


def in_float64(function, *args):
    with jax.enable_x64(True):
        return function(*jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), args))


def largest_error(got, want, of_array=np.max):
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(of_array(np.abs(np.asarray(a, np.float64) - np.asarray(b))) for a, b in pairs)


@pytest.mark.parametrize(("name", "norm"), NORMED)
def test_attention_is_right_whatever_the_mean_of_its_context(name, norm):
    layer = LAYERS[name].layer(attention_norm=norm)
    x = random_input(32, *(1,) * (len(LAYERS[name].shape) - 2), LAYERS[name].shape[-1])
    variables = filled(layer, x, random_input(*CONTEXT))

    def compute_weights(variables, context):
        collections = ["batch_stats", "intermediates"]
        _, state = layer.apply(
            variables, jnp.asarray(x, context.dtype), context, mutable=collections
        )
        return state["intermediates"]["attention"]["weights"][0]

    compute = jax.jit(compute_weights)
    for mean in MEANS:
        for spread in SPREADS:
            context = np.asarray(mean + spread * random_input(*CONTEXT, seed=2), np.float32)
            want = in_float64(compute, variables, context)
            # Gates are 0 or 1, so that the mean error is the share of those that are wrong.
            of_array = np.mean if name.startswith("GatedConv") else np.max
            error = largest_error(compute(variables, jnp.asarray(context)), want, of_array)
            # The matrix before the norm rounds numbers as large as the mean; StarReLU squares them.
            allowed = max(1e-3, 2**-19 * (mean / spread - 600))
            assert error < allowed, (mean, spread, error)


def test_the_carried_state_is_right_whatever_its_mean():
    layer, x = KernelRepresentation(16, spatial_axes=1), random_input(32, 1, 4)
    variables = layer.init(jax.random.key(0), x, random_input(32, 16), layer="conv1")
    update_state = jax.jit(partial(layer.apply, layer="conv1"))
    for mean in MEANS:
        for spread in SPREADS:
            state = np.asarray(mean + spread * random_input(32, 16, seed=2), np.float32)
            update = np.asarray(update_state(variables, x, jnp.asarray(state))) - state
            want = np.asarray(in_float64(update_state, variables, x, state)) - state
            assert np.abs(update - want).max() < max(1e-3, 2**-20 * mean / spread)


# ---------------------------------------------------------------- half precision


SIZES = (1e-6, 1e-3, 1.0, 1e3, 6e4)


@functools.cache
def compile_gradients(name, norm):
    """Compiles outputs of a layer, and the gradients of their mean."""
    layer = LAYERS[name].layer(**({} if norm is None else {"attention_norm": norm}))

    def differentiate(variables, x):
        def loss(params, x):
            collections = ["batch_stats", "intermediates"]
            y, state = layer.apply({**variables, "params": params}, x, mutable=collections)
            return jnp.mean(y.astype(float32_or_wider(y))), (y, state)

        gradient, (y, state) = jax.grad(loss, (0, 1), has_aux=True)(variables["params"], x)
        return y, state, gradient

    return layer, jax.jit(differentiate)


WITHOUT_NORM = [(name, None) for name in LAYERS if not has_field(name, "attention_norm")]


@pytest.mark.parametrize(
    ("form", "dtype"),
    thin_out([*NORMED, *WITHOUT_NORM], [jnp.float16, jnp.bfloat16], step=2),
    ids=str,
)
def test_half_precision_inputs_of_any_size(form, dtype):
    """All is finite, and as in float64 of the same rounded inputs; the layer computes in float32."""
    name, norm = form
    shape = (
        LAYERS[name].shape if len(LAYERS[name].shape) == 2 else (4, 3, 3, LAYERS[name].shape[-1])
    )
    layer, differentiate = compile_gradients(name, norm)
    variables = filled(layer, random_input(*shape))
    for size in SIZES:
        if name.startswith("DynamicReLU") and size == SIZES[-1] and dtype == jnp.float16:
            continue  # its slopes of up to 2 exceed the range
        x = jnp.asarray(np.clip(size * random_input(*shape, seed=3), -6e4, 6e4), dtype)
        y, state, gradient = differentiate(variables, x)
        for leaf in jax.tree.leaves((y, state, gradient)):
            assert np.isfinite(np.asarray(leaf, np.float64)).all(), size
        want, *_ = in_float64(differentiate, variables, x)
        allowed = 1e-4 * np.abs(np.asarray(want)).max()
        if y.dtype == dtype:  # gates keep the dtype of their inputs; the least ones lose digits
            limits = jnp.finfo(dtype)
            allowed = 2 * (float(limits.eps) * np.abs(np.asarray(want)).max())
            allowed += 2 * float(limits.smallest_subnormal)
        assert largest_error(y, want) <= allowed, size


def test_cbam_warns_too_if_its_statistics_are_never_updated():
    layer, x = CBAM(), random_input(4, 3, 3, 3)
    variables = layer.init(jax.random.key(0), x)

    def loss(params):
        return jnp.sum(layer.apply({**variables, "params": params}, x))

    with pytest.warns(UserWarning, match="mutable="):
        jax.eval_shape(jax.grad(jax.checkpoint(loss)), variables["params"])
