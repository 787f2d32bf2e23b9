"""SpectralNormConv against singular value decompositions and its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from layer_cases import filled, random_input

from dyn.layers.spectral_norm import SpectralNormConv, SpectralNormDense, spectral_norms
from dyn.schedules import set_temperature


def largest_singular_values(kernel):
    """Returns the largest singular value of each candidate `[*k, i, O]`, by SVD."""
    return [np.linalg.svd(np.reshape(w, (-1, w.shape[-1])), compute_uv=False)[0] for w in kernel]


FIELDS = {
    "one kernel": dict(features=6, kernel_size=(3, 3)),
    "groups": dict(features=6, kernel_size=(3, 2), num_kernels=3, feature_group_count=2),
}


@pytest.mark.parametrize("name", ["one kernel", "groups"])
def test_sigma_of_each_candidate_is_the_svd_s_after_fifty_steps(name):
    layer = SpectralNormConv(**FIELDS[name])
    x = random_input(2, 5, 5, 4)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    # Candidates of very different norms: the stack's would be wrong for all but the largest.
    scale = 10.0 ** np.arange(layer.num_kernels).reshape(-1, 1, 1, 1, 1)
    variables["params"]["kernel"] *= scale.astype(np.float32)

    @jax.jit
    def step(variables):
        _, kept = layer.apply(variables, x, mutable=["batch_stats", "intermediates"])
        batch_stats = {**variables["batch_stats"], **kept["batch_stats"]}
        return {**variables, "batch_stats": batch_stats}, kept["intermediates"]["sigma"][0]

    for _ in range(50):
        variables, sigma = step(variables)
    want = largest_singular_values(np.asarray(variables["params"]["kernel"], np.float64))
    np.testing.assert_allclose(sigma, want, rtol=1e-3)


@pytest.mark.parametrize("name", ["one kernel", "groups"])
def test_follows_the_formula(name):
    layer = SpectralNormConv(**FIELDS[name], strides=2)
    x = random_input(3, 5, 4, 4)
    variables = filled(layer, x)
    variables = set_temperature(variables, 1.7)
    params = jax.tree.map(np.asarray, variables["params"])
    u = np.asarray(variables["batch_stats"]["u"])
    kernel, mix = [], None
    for w, u_k in zip(params["kernel"], u, strict=True):
        m = w.reshape(-1, w.shape[-1])
        v = m @ u_k / np.linalg.norm(m @ u_k)
        kernel.append(w / np.linalg.norm(m.T @ v))
    if layer.num_kernels > 1:
        attention = params["attention"]
        z = np.maximum(np.asarray(x).mean((1, 2)) @ attention["squeeze"]["kernel"], 0)
        logits = z @ attention["kernel"]["kernel"] + attention["kernel"]["bias"]
        mix = np.exp(logits / 1.7)
        mix = mix / mix.sum(1, keepdims=True)
    geometry = dict(strides=2, feature_group_count=layer.feature_group_count)
    want = numpy_oracle.convolve(x, np.stack(kernel), mix, **geometry) + params["bias"]
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), want, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_the_paper_s():
    """d sigma / d W = u v^T, with u and v constant."""
    matrices, u = random_input(2, 5, 3), random_input(2, 3, seed=1)

    def total(matrices):
        return spectral_norms(matrices, u, 1)[1].sum()

    after, _ = spectral_norms(matrices, u, 1)
    v = jnp.einsum("kno,ko->kn", matrices, u)
    v = v / jnp.linalg.norm(v, axis=1, keepdims=True)
    want = jnp.einsum("kn,ko->kno", v, after)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(matrices), want, rtol=1e-5, atol=1e-6)


def test_gradients_are_finite_for_kernels_of_zeros():
    layer = SpectralNormConv(6, (3, 3), num_kernels=2)
    x = random_input(2, 5, 5, 4)
    variables = filled(layer, x)
    variables["params"]["kernel"] *= 0
    loss = jax.jit(jax.grad(lambda v: jnp.sum(layer.apply(v, x) ** 2)))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(loss(variables)))


def test_the_bias_s_gradient_in_bfloat16_adds_up_all_vectors():
    layer, x = SpectralNormDense(4, dtype=jnp.bfloat16), random_input(1, 64, 64, 8)
    variables = filled(layer, x)

    def loss(params):
        return jnp.sum(layer.apply({**variables, "params": params}, x).astype(jnp.float32))

    gradient = jax.jit(jax.grad(loss))(variables["params"])["bias"]
    np.testing.assert_allclose(gradient, 4096.0, rtol=0.01)
