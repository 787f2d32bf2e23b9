"""The CRNN against a plain loop over frames, and its sizes against the paper's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from dyn.diagnostics import count_parameters
from dyn.models import CRNN


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def run_gru(p, x):
    """A GRU over `[T, C]` from the first moment to the last."""
    state, states = np.zeros(p["hn"]["kernel"].shape[1]), []
    for now in x:
        gates = {g: now @ p[f"i{g}"]["kernel"] + p[f"i{g}"]["bias"] for g in "rzn"}
        reset = sigmoid(gates["r"] + state @ p["hr"]["kernel"])
        update = sigmoid(gates["z"] + state @ p["hz"]["kernel"])
        new = np.tanh(gates["n"] + reset * (state @ p["hn"]["kernel"] + p["hn"]["bias"]))
        state = (1 - update) * new + update * state
        states.append(state)
    return np.array(states)


def run_network(variables, x, convs=2):
    p, stats = variables["params"], variables["batch_stats"]
    for n in range(1, convs + 1):
        kernel, norm = p[f"conv{n}"]["kernel"], p[f"norm{n}"]
        y = np.stack(
            [
                sum(
                    correlate2d(x[..., i], kernel[..., i, o], mode="same")
                    for i in range(x.shape[-1])
                )
                for o in range(kernel.shape[-1])
            ],
            axis=-1,
        )
        y = (y - stats[f"norm{n}"]["mean"]) / np.sqrt(stats[f"norm{n}"]["var"] + 1e-3)
        y = y * norm["scale"] + norm["bias"]
        x = y * sigmoid(y @ p[f"gate{n}"]["kernel"] + p[f"gate{n}"]["bias"])
        wide = 2 if n == 1 else 1
        rows, columns = x.shape[0] // 2, x.shape[1] // wide
        x = x[: 2 * rows, : wide * columns]
        x = x.reshape(rows, 2, columns, wide, -1).mean(axis=(1, 3))
    x = x.mean(axis=0)
    for n in (1, 2):
        there, back = run_gru(p[f"forward{n}"], x), run_gru(p[f"backward{n}"], x[::-1])[::-1]
        x = np.concatenate([there, back], axis=-1)
    return x @ p["head"]["kernel"] + p["head"]["bias"]


def test_it_is_the_loop(rng):
    net = CRNN(3, nn.Conv, features=(4, 6), recurrent=5, time_pools=1)
    x = rng.normal(size=(2, 6, 9, 1)).astype(np.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda s: rng.uniform(0.2, 0.8, s.shape).astype(np.float32), shapes)
    found = jax.jit(net.apply)(variables, x)
    expected = [run_network(jax.tree.map(np.float64, variables), np.float64(one)) for one in x]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "published", "redundant"),
    [
        # Biases before norms, one of two biases of each gate of the GRUs, the labels of clips.
        ({"conv": nn.Conv}, 4_427_956, 1248 + 2048 + 5130),
        ({}, 11_061_468, 32 + 2048 + 5130),
    ],
    ids=["static", "FDY"],
)
def test_it_has_the_parameters_of_the_paper(fields, published, redundant):
    x = jax.ShapeDtypeStruct((1, 128, 626, 1), jnp.float32)
    logits, variables = jax.eval_shape(CRNN(10, **fields).init_with_output, jax.random.key(0), x)
    assert logits.shape == (1, 156, 10)
    assert count_parameters(variables["params"]) == published - redundant


def test_inputs_that_do_not_fit_are_named():
    for shape, says in (((1, 8, 8), "B, F, T, C"), ((1, 8, 3, 1), "too short")):
        with pytest.raises(ValueError, match=says):
            jax.eval_shape(CRNN(2).init, jax.random.key(0), jnp.zeros(shape))
