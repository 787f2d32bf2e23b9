"""Statistics of attention weights and of candidate kernels, against loops and numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import init_shapes

from dyn.diagnostics import attention_statistics, kernel_similarity, sown_weights
from dyn.layers import CBAM, DynamicConv, PixelDynamicConv, SqueezeExcite
from dyn.models import BasicBlock, ResNet


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"conv": PixelDynamicConv},
            {"stage2_block1/conv1": {"kernel": (2, 4), "pixel": (2, 4, 4, 4)}},
        ),
        ({"conv": DynamicConv}, {"stage2_block1/conv2": {"kernel": (2, 4)}}),
        (
            {"conv": nn.Conv, "attention": CBAM},
            {"stage2_block1": {"channel": (2, 8), "spatial": (2, 4, 4)}},
        ),
        ({"conv": nn.Conv, "attention": SqueezeExcite}, {"stage1_block1": {"channel": (2, 4)}}),
    ],
)
def test_sown_weights_are_collected_by_layer_and_kind(fields, expected):
    net = ResNet((1, 1), BasicBlock, num_classes=3, width=4, stem="small", **fields)
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    shapes = jax.eval_shape(
        lambda v, x: sown_weights(net.apply(v, x, mutable=["intermediates"])[1]["intermediates"]),
        init_shapes(net, x),
        x,
    )
    shapes = {layer: {k: w.shape for k, w in kinds.items()} for layer, kinds in shapes.items()}
    assert shapes.items() >= expected.items()
    assert all(layer.startswith("stage") for layer in shapes)


statistics_of = jax.jit(attention_statistics, static_argnames="dead_below")


def statistics_by_loops(weights, dead_below):
    rows = [np.asarray(row, np.float64) for row in np.reshape(weights, (-1, np.shape(weights)[-1]))]
    shares = [np.abs(row) / (np.abs(row).sum() or 1.0) for row in rows]
    number = len(rows[0])
    entropies = [-sum(p * np.log(p) for p in row if p > 0) / np.log(number) for row in shares]
    return {
        "mean": np.mean(rows, axis=0),
        "spread": np.mean([np.std([row[k] for row in rows]) for k in range(number)]),
        "entropy": np.mean(entropies),
        "dead": [max(row[k] for row in shares) < dead_below for k in range(number)],
    }


@pytest.mark.parametrize("shape", [(7, 4), (3, 2, 5, 4)])
@pytest.mark.parametrize("kind", ["mixture", "gates", "signed"])
def test_statistics_equal_a_loop_over_inputs(rng, shape, kind):
    weights = {
        "mixture": lambda: rng.dirichlet([0.1, 1, 1, 1], shape[:-1]),
        "gates": lambda: rng.integers(0, 2, shape) * np.array([1, 1, 0, 1]),
        "signed": lambda: rng.normal(size=shape) * np.array([1, 0.001, 1, 1]),
    }[kind]().astype(np.float32)
    weights[0] = 0.0  # all gates off
    statistics = statistics_of(jnp.asarray(weights), dead_below=0.02)
    for name, expected in statistics_by_loops(weights, 0.02).items():
        np.testing.assert_allclose(statistics[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_statistics_of_the_extremes():
    single = statistics_of(np.ones((3, 1), np.float32), dead_below=0.02)
    assert float(single["entropy"]) == 0 and single["dead"].tolist() == [False]
    for weights in (jnp.ones(4), jnp.ones((0, 4))):
        with pytest.raises(ValueError, match="weights must be"):
            attention_statistics(weights)


def test_similarity_of_kernels_is_their_cosine(rng):
    kernels = jnp.asarray(rng.normal(size=(3, 3, 3, 2, 4)), jnp.float32)
    kernels = jnp.concatenate([kernels, -2 * kernels[:1], jnp.zeros_like(kernels[:1])])
    similarity = np.asarray(kernel_similarity(kernels))
    w = np.asarray(kernels, np.float64).reshape(5, -1)[:4]
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    np.testing.assert_allclose(similarity[:4, :4], w @ w.T, atol=1e-6)
    np.testing.assert_allclose(similarity[3, 0], -1, atol=1e-6)
    assert not similarity[4].any()
    assert kernel_similarity(kernels.astype(jnp.bfloat16)).dtype == jnp.float32
    with pytest.raises(ValueError, match="must be"):
        kernel_similarity(jnp.ones(3))
