"""Cases of the fused kernel for TPUs, computed in Pallas's interpreter and by the plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
from jax.experimental.pallas import tpu as pltpu

from dyn.ops import dynamic_conv, platforms

# Two samples, two kernels 3x3, eight features; K = 16 and large features in the matrix.
USUAL = dict(spatial=(4, 3), size=(3, 3), i=8, o=8, k=2, batch=2, taps=True)
CHANGES = {
    "2d": {},
    "2d without taps": dict(taps=False),
    "2d one kernel, taps": dict(k=1, mix=None, batch=3),
    "2d one kernel, few positions": dict(spatial=(2, 2), k=1, mix=None, i=128, o=128),
    "2d strided": dict(spatial=(6, 5), strides=2),
    "2d strided, even": dict(spatial=(6, 6), strides=2, padding="VALID"),
    "2d strided along one axis": dict(spatial=(5, 4), strides=(1, 2), padding=[(2, 0), (1, 1)]),
    "2d pointwise": dict(size=(1, 1), o=16),
    "2d pointwise, strided": dict(spatial=(5, 4), size=(1, 1), strides=2),
    "2d 3x5": dict(spatial=(4, 6), size=(3, 5), k=3),
    "2d 7x7, strided": dict(spatial=(8, 9), size=(7, 7), strides=2, k=1),
    "2d 16 kernels": dict(k=16, size=(1, 3)),
    "2d 64 features": dict(i=64, o=24),
    "2d several tiles of lanes": dict(i=192, o=256, k=1, size=(3, 1)),
    "2d three positions in the lanes": dict(spatial=(3, 5), i=20, o=42, scales=True),
    "2d reflect": dict(padding="REFLECT"),
    "2d one picture": dict(batch=1),
    "2d weighted features": dict(scales=True),
    "2d weighted features, strided": dict(spatial=(6, 5), strides=2, batch=4, scales=True),
    "2d weighted features, several tiles": dict(i=192, o=256, size=(3, 1), scales=True),
    "2d weighted features, one kernel": dict(k=1, mix=None, o=24, scales=True),
    "1d": dict(spatial=(9,), size=(3,)),
    "1d weighted features": dict(spatial=(9,), size=(3,), i=64, o=24, scales=True),
    "1d causal, strided": dict(spatial=(9,), size=(5,), strides=2, padding="CAUSAL"),
}
# A mixture at each position.
PIXELS = dict(mix="pixel", taps=False)
PIXEL_CHANGES = {
    "pixels 2d": {},
    "pixels 2d two blocks of samples": dict(spatial=(2, 3), batch=130),
    "pixels 2d one kernel": dict(k=1, batch=1),
    "pixels 2d strided": dict(spatial=(6, 5), strides=2, k=3, o=24),
    "pixels 2d strided, even": dict(spatial=(6, 6), strides=2, padding="VALID", i=3),
    "pixels 2d strided along one axis": dict(
        spatial=(5, 4), strides=(1, 2), padding=[(2, 0), (1, 1)], k=4
    ),
    "pixels 2d pointwise": dict(size=(1, 1), i=16, o=24),
    "pixels 2d pointwise, strided": dict(spatial=(5, 4), size=(1, 1), strides=2),
    "pixels 2d 3x5": dict(spatial=(4, 6), size=(3, 5), i=20, o=40),
    "pixels 2d 7x7, strided": dict(spatial=(8, 9), size=(7, 7), strides=2),
    "pixels 2d 16 kernels": dict(k=16, size=(1, 3)),
    "pixels 2d one row": dict(spatial=(1, 5)),
    "pixels 2d reflect": dict(padding="REFLECT"),
    "pixels 1d": dict(spatial=(9,), size=(3,)),
    "pixels 1d causal, strided": dict(spatial=(9,), size=(5,), strides=2, padding="CAUSAL"),
}
CASES = {name: USUAL | changes for name, changes in CHANGES.items()}
PIXEL_CASES = {name: USUAL | PIXELS | changes for name, changes in PIXEL_CHANGES.items()}
CASES |= PIXEL_CASES
DESCRIPTION = ("spatial", "size", "i", "o", "k", "batch", "taps", "mix", "scales")


def make_arrays(name):
    """Returns random `(inputs, kernels, mix, taps, channels, filters)` in float32, None for some."""
    case = CASES[name].copy()
    keys = jax.random.split(jax.random.key(3))
    scales = (None, None)
    if case.pop("scales", False):
        shapes = ((case["batch"], case["i"]), (case["batch"], case["o"]))
        scales = map(jax.random.normal, keys, shapes)
    return *oracle.random_case(jax.random.key(2), jnp.float32, **case), *scales


def compute_with_gradients(name, dtype, lowering, arrays):
    """Computes a case and its gradients for all arrays that it has."""
    geometry = {k: v for k, v in CASES[name].items() if k not in DESCRIPTION}
    x, *others = arrays

    def loss(arrays):
        x, w, mix, taps, channels, filters = arrays
        weights = dict(taps=taps, channels=channels, filters=filters)
        options = dict(lowering=lowering, precision="highest")
        y = dynamic_conv(x, w, mix, **weights, **geometry, **options)
        weights = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return jnp.sum(y.astype(jnp.float32) * weights), y

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    return gradient((x.astype(dtype), *others))


def compute_fused(name, dtype, arrays, params=None):
    """Computes a case by the kernel, in the interpreter, as if this were a TPU."""
    with (
        platforms.plan_for_platform("tpu"),
        pltpu.force_tpu_interpret_mode(params or pltpu.InterpretParams()),
    ):
        return compute_with_gradients(name, dtype, "fused", arrays)


def assert_fused_agrees(name, dtype, params=None):
    """Compares the kernel and its gradients with those of the lowering that is the definition."""
    arrays = make_arrays(name)
    # The definition sees the inputs that were rounded, so that only its sums are more precise.
    rounded = (arrays[0].astype(dtype).astype(jnp.float32), *arrays[1:])
    got = compute_fused(name, dtype, arrays, params)
    definition = "outputs" if name in PIXEL_CASES else "reference"
    want = compute_with_gradients(name, jnp.float32, definition, rounded)
    (gradients, y), (expected, z) = got, want
    assert y.dtype == gradients[0].dtype == dtype
    assert all(g is None or g.dtype == jnp.float32 for g in gradients[1:])
    tolerance = 2e-5 if dtype == jnp.float32 else 2e-2
    pairs = zip(jax.tree.leaves((y, gradients)), jax.tree.leaves((z, expected)), strict=True)
    for a, b in pairs:
        scale = np.abs(b).max()
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0, atol=tolerance * scale)
