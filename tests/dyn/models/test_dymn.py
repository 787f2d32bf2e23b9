"""DyMN's blocks against published numbers and the formulas in loops, and what its fields do."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from jax.test_util import check_grads
from layer_cases import assert_learns, assert_published, filled, init_shapes, shapes_of, sines
from named_order import fill_in_order

from dyn.diagnostics import count_parameters
from dyn.layers import Conv, DynamicConv
from dyn.layers.norms import BatchNorm
from dyn.models import DyMN, MobileNetV3, mobilenet_v3
from dyn.models.dymn import DynamicBlock, average_threes
from dyn.models.inverted_residual import BlockShape

CONTEXT, INPUTS, KERNELS = 8, 8, 4
X = sines((2, INPUTS, 6, 5), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)
# Kernel, expanded, features, stride, activation, temperature; sums; entries.
PUBLISHED = {
    "hard swish": (
        *((3, 16, 8, 1, nn.hard_swish, 1.0), (-17.5914923576, 334.1311111617)),
        (0.63490043, 0.86154966, 1.06929816, 1.25150449, -0.88195515),
    ),
    "strided": (
        *((5, 16, 16, 2, nn.relu, 30.0), (-11.6187104443, 112.4047337015)),
        (0.64298904, 0.66757164, 0.65812076, 0.65899142, 0.53223105),
    ),
    "without expansion": (
        *((3, 8, 8, 1, nn.relu, 1.0), (47.8943458405, 322.9534761287)),
        (0.50476133, 0.73057215, 0.94237612, 1.12855969, -0.62990204),
    ),
}


def make_block(kernel, expanded, features, strides, activation, temperature):
    """Returns the block and its variables, in the order of the published numbers."""
    conv = partial(DynamicConv, num_kernels=KERNELS, reduction=None, use_bias=False)
    norm = partial(BatchNorm, use_running_average=True, epsilon=1e-3)
    shape = BlockShape(kernel, expanded, features, strides, activation)
    block = DynamicBlock(shape, CONTEXT, conv, conv, norm)

    def list_conv(name, outputs, inputs, size):
        head = f"{name}/attention/mixture/"
        return [
            (f"{name}/kernel", (KERNELS, outputs, inputs, size, size)),
            *((head + "kernel", (KERNELS, CONTEXT)), (head + "bias", (KERNELS,))),
            (f"{name}_norm", (outputs,)),
        ]

    entries = list_conv("expand", expanded, INPUTS, 1) if expanded != INPUTS else []
    entries += [
        *list_conv("depthwise", expanded, 1, kernel),
        ("dynamic_relu/kernel", (4 * expanded, CONTEXT)),
        ("dynamic_relu/bias", (4 * expanded,)),
        *list_conv("project", features, expanded, 1),
        ("context/joint/kernel", (CONTEXT, INPUTS)),
        ("context/joint_norm", (CONTEXT,)),
        ("context/gate1/kernel", (expanded, CONTEXT)),
        ("context/gate1/bias", (expanded,)),
        ("context/gate2/kernel", (expanded, CONTEXT)),
        ("context/gate2/bias", (expanded,)),
    ]
    names = [
        path.partition("/")[0] for path, _ in entries if path.endswith("attention/mixture/bias")
    ]
    temperatures = {
        name: {"attention": {"temperature": np.asarray(temperature, np.float32)}} for name in names
    }
    return block, {**fill_in_order(entries, 0.5), "attention": temperatures}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parity_vectors(name):
    sizes, sums, entries = PUBLISHED[name]
    assert_published(*make_block(*sizes), X, sums, entries)


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def hard_swish(v):
    return v * np.clip(v + 3, 0, 6) / 6


def dense(params, v):
    return v @ params["kernel"] + params.get("bias", 0)


def block_by_numpy(variables, x, strides, temperature):
    """Computes a strided block, whose features differ from its input's, in loops."""
    params = variables["params"]

    def norm(name, y, params=params, statistics=variables["batch_stats"]):
        mean, var = statistics[name]["mean"], statistics[name]["var"]
        scale, bias = params[name]["scale"], params[name]["bias"]
        return (y - mean) / np.sqrt(var + 1e-3) * scale + bias

    context = params["context"]
    rows, columns = x.mean(2), x.mean(1)
    q = dense(context["joint"], np.concatenate([rows, columns], 1))
    q = hard_swish(norm("joint_norm", q, context, variables["batch_stats"]["context"]))
    h = q.mean(1)
    gates = []
    for number, part in ((1, q[:, : rows.shape[1]]), (2, q[:, rows.shape[1] :])):
        pooled = []
        for centre in range(0, part.shape[1], strides):
            window = [n for n in (centre - 1, centre, centre + 1) if 0 <= n < part.shape[1]]
            pooled.append(part[:, window].sum(1) / 3)
        gates.append(sigmoid(dense(context[f"gate{number}"], np.stack(pooled, 1))))

    def conv(name, y, **geometry):
        logits = dense(params[name]["attention"]["mixture"], h) / temperature
        mix = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return norm(
            f"{name}_norm", numpy_oracle.convolve(y, params[name]["kernel"], mix, **geometry)
        )

    y = np.maximum(conv("expand", x), 0)
    geometry = {"strides": strides, "padding": (params["depthwise"]["kernel"].shape[1] - 1) // 2}
    y = conv("depthwise", y, **geometry, feature_group_count=y.shape[-1])
    theta = 2 * sigmoid(dense(params["dynamic_relu"], h)) - 1
    for sample, channel in np.ndindex(len(y), y.shape[-1]):
        t1, t2, t3, t4 = theta[sample, 4 * channel : 4 * channel + 4]
        u = y[sample, ..., channel]
        y[sample, ..., channel] = np.maximum(u * (1 + t1) + t3 / 2, u * t2 + t4 / 2)
    return conv("project", y * gates[0][:, :, None] * gates[1][:, None])


def test_a_block_is_its_formulas_in_plain_loops():
    block, variables = make_block(5, 16, 16, 2, nn.relu, 3.0)
    want = block_by_numpy(variables, X, 2, 3.0)
    with jax.enable_x64(True):
        got, _ = jax.jit(block.apply)(*jax.tree.map(jnp.asarray, (variables, X)))
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)


def test_the_gradient_of_a_block_is_that_of_finite_differences():
    block, variables = make_block(*PUBLISHED["strided"][0])
    with jax.enable_x64(True):
        variables, x = jax.tree.map(jnp.asarray, (variables, X[:, :3, :4]))

        @jax.jit
        def compute(params, x):
            return jnp.sum(jnp.sin(block.apply({**variables, "params": params}, x)[0]))

        check_grads(compute, (variables["params"], x), order=1, modes=["rev"], eps=1e-7, rtol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 5, 6])
def test_windows_of_three_count_zeros_around(length):
    z = np.random.default_rng(0).standard_normal((2, length, 3))
    padded = np.pad(z, ((0, 0), (1, 1), (0, 0)))
    want = [padded[:, n : n + 3].sum(1) / 3 for n in range(0, length, 2)]
    np.testing.assert_allclose(
        average_threes(jnp.asarray(z), 2), np.stack(want, 1), rtol=0, atol=1e-6
    )
    assert average_threes(z, 1) is z


@pytest.fixture
def few_stages(monkeypatch):
    stages = (
        ((3, 16, 16, 1, False, False),),
        ((5, 72, 40, 2, False, True), (5, 96, 40, 1, True, True)),
    )
    monkeypatch.setattr(mobilenet_v3, "STAGES", stages)


def spectrogram(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_published_number_of_parameters():
    shapes = init_shapes(DyMN(527, width=0.4), spectrogram(2, 32, 32, 1))
    assert count_parameters(shapes["params"]) == 1_961_239


def test_blocks_are_dynamic_everywhere_or_in_place_of_squeeze_and_excitation(few_stages):
    small = partial(DyMN, 3, width=0.25, dynamic_stages=(1, 2))
    for kind, blocks in (("all", 3), ("replace_se", 2)):
        shapes = shapes_of(init_shapes(small(dynamic_blocks=kind), spectrogram(2, 16, 12, 1)))
        assert len({path for path in shapes if "context/joint/kernel" in path}) == blocks
        assert not any("squeeze_excite" in path for path in shapes)
    static = small(conv=Conv, depthwise=Conv, dynamic_stages=())
    shapes = shapes_of(init_shapes(static, spectrogram(2, 16, 12, 1)))
    plain = MobileNetV3(3, width=0.25)
    assert shapes == shapes_of(init_shapes(plain, spectrogram(2, 16, 12, 1)))
    with pytest.raises(ValueError, match="write 'all' or 'replace_se'"):
        init_shapes(small(dynamic_blocks="some"), spectrogram(2, 16, 12, 1))


def test_dynamic_blocks_may_have_static_depthwise_convolutions(few_stages):
    net = DyMN(3, width=0.25, dynamic_stages=(1, 2), depthwise=None)
    params = init_shapes(net, spectrogram(2, 16, 12, 1))["params"]
    assert set(params["stage2_block1"]["depthwise"]) == {"kernel"}
    assert "attention" in params["stage2_block1"]["project"]
    assert "context" in params["stage2_block1"]


def test_gradients_reach_all_parameters(few_stages):
    net = DyMN(3, width=0.25, dynamic_stages=(1, 2), dropout=0.0)
    x = np.abs(np.random.default_rng(0).standard_normal((4, 12, 10, 1))).astype(np.float32)
    variables = filled(net, x)

    @jax.jit
    @jax.grad
    def gradient(params):
        seen = {**variables, "params": params}
        return jnp.sum(jnp.sin(net.apply(seen, x, train=True, mutable=["batch_stats"])[0]))

    assert_learns(gradient(variables["params"]))


def test_a_series_has_one_axis(few_stages):
    net = DyMN(3, width=0.25, dynamic_stages=(1, 2), spatial_axes=1, stem="small")
    logits, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), spectrogram(2, 16, 1))
    assert logits.shape == (2, 3)
