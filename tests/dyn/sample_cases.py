"""Cases of the kernels for TPUs that give each sample its own kernel, and their plain form by sample."""

import jax
import jax.numpy as jnp
import numpy as np
from fused_cases import CASES as MIXTURES
from jax.experimental.pallas import tpu as pltpu

from dyn.ops.assemble import assemble_plainly
from dyn.ops.assemble_tpu import assemble_kernels
from dyn.ops.fused_samples_tpu import convolve_with_sample_kernels
from dyn.ops.geometry import resolve_geometry

CASES = {name: case for name, case in MIXTURES.items() if "16 kernels" not in name} | {
    "2d 256 features, several samples": dict(spatial=(4, 3), size=(3, 3), i=256, o=384, batch=8),
}
# Shapes of the weights [B, T, p, q, n] and of the cells [n, i, o].
ASSEMBLIES = {
    "taps": ((8, 9, 1, 1, 9), (9, 16, 24)),
    "blocks of features": ((8, 3, 2, 2, 5), (5, 16, 128)),
    "other cells at each tap": ((8, 2, 1, 1, 5), (5, 2, 32, 256)),
    "several steps": ((16, 1, 1, 2, 20), (20, 64, 256)),
    "several blocks of samples": ((256, 1, 1, 1, 3), (3, 16, 16)),
}


def make_geometry(name):
    """Returns the geometry of a case."""
    case = CASES[name]
    return resolve_geometry(
        case["spatial"], case["size"], case.get("strides", 1), case.get("padding", "SAME")
    )


def make_arrays(name, dtype):
    """Returns random inputs, kernels and gradients of the outputs."""
    case, geometry, rng = CASES[name], make_geometry(name), np.random.default_rng(0)
    batch, features, filters = case["batch"], case["i"], case["o"]
    shapes = (
        (batch, *case["spatial"], features),
        (batch, *case["size"], features, filters),
        (batch, *geometry.out, filters),
    )
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def convolve_one_by_one(inputs, kernels, geometry):
    """Convolves each sample with its own kernel, one after another."""
    pairs = zip(geometry.pad_edges(inputs), kernels, strict=True)
    return jnp.concatenate([geometry.convolve(x[None], w, "highest") for x, w in pairs])


def assert_convolution_agrees(name, dtype, params=None):
    """Compares the kernel, and its gradients, with a loop over samples in float32."""
    x, w, dy = make_arrays(name, dtype)
    geometry = make_geometry(name)

    def convolve(x, w):
        return convolve_with_sample_kernels(geometry.pad_edges(x), w, geometry, "highest")

    def compare(convolve, x, w, dy):
        y, back = jax.vjp(convolve, x, w)
        return y, *back(dy)

    with pltpu.force_tpu_interpret_mode(params or pltpu.InterpretParams()):
        got = jax.jit(compare, static_argnums=0)(convolve, x, w, dy)
    wide = [a.astype(jnp.float32) for a in (x, w, dy)]
    want = compare(lambda x, w: convolve_one_by_one(x, w, geometry), *wide)
    assert_close(got, want, dtype)


def assert_assembly_agrees(name, dtype, params=None, terms=0):
    """Compares assembled kernels, and the gradients, with the plain form in float32."""
    rng = np.random.default_rng(0)
    of_mix, of_cells = ASSEMBLIES[name]
    shapes = [of_mix, of_cells]
    if terms:
        (batch, taps, *_), (*_, i, o) = ASSEMBLIES[name]
        shapes += [(batch, i, terms), (terms, taps, o)]
    mix, cells, *scales = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    arrays = (mix, cells, tuple(scales) or None)
    dw = jnp.asarray(rng.normal(size=assemble_plainly(mix, cells, dtype).shape), dtype)
    with pltpu.force_tpu_interpret_mode(params or pltpu.InterpretParams()):
        w, back = jax.vjp(
            lambda mix, cells, scales: assemble_kernels(mix, cells, dtype, scales), *arrays
        )
        got = (w, *jax.tree.leaves(back(dw)))
    w, back = jax.vjp(
        lambda mix, cells, scales: assemble_plainly(mix, cells, jnp.float32, scales), *arrays
    )
    want = (w, *jax.tree.leaves(back(dw.astype(jnp.float32))))
    assert got[0].dtype == dtype
    assert_close(got[:1], want[:1], dtype)
    # Gradients are not rounded to bfloat16, but for those of scaled numbers.
    assert_close(got[1:], want[1:], dtype if terms else jnp.float32)


def assert_close(got, want, dtype):
    """Compares arrays, relative to the largest number of each."""
    tolerance = 2e-5 if dtype == jnp.float32 else 1e-2
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape and np.isfinite(a.astype(jnp.float32)).all()
        scale = np.abs(b).max()
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0, atol=tolerance * scale)
