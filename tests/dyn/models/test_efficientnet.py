"""EfficientNet's blocks against published numbers and plain loops, its sizes, and what its fields do."""

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
from dyn.layers import CondConv, Conv, ODConv
from dyn.layers.norms import BatchNorm
from dyn.models import EfficientNet, EfficientNetB0, EfficientNetLite0, efficientnet
from dyn.models.efficientnet import TENSORFLOW, make_condconv_fields
from dyn.models.inverted_residual import BlockShape, InvertedResidual

PICTURE = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


def block(kernel, features, strides, experts):
    """Returns the published block: 8 input features, three times as many inside, squeezed to 2."""
    conv, router = Conv, None
    if experts:
        conv = partial(CondConv, num_kernels=experts)
        router = partial(nn.Dense, experts)
    conv = partial(conv, use_bias=False)
    return InvertedResidual(
        BlockShape(kernel, 24, features, strides, nn.silu, 2),
        conv=conv,
        depthwise=conv,
        norm=partial(BatchNorm, use_running_average=True, epsilon=1e-3),
        padding="same",
        router=router,
        squeeze_activation=nn.silu,
    )


def block_variables(kernel, features, experts):
    stack = (experts,) if experts else ()
    entries = [
        ("expand/kernel", (*stack, 24, 8, 1, 1)),
        ("expand_norm", (24,)),
        ("depthwise/kernel", (*stack, 24, 1, kernel, kernel)),
        ("depthwise_norm", (24,)),
        ("squeeze_excite/reduce/kernel", (2, 24)),
        ("squeeze_excite/reduce/bias", (2,)),
        ("squeeze_excite/expand/kernel", (24, 2)),
        ("squeeze_excite/expand/bias", (24,)),
        ("project/kernel", (*stack, features, 24, 1, 1)),
        ("project_norm", (features,)),
    ]
    if experts:
        entries += [("routing/kernel", (experts, 8)), ("routing/bias", (experts,))]
    return fill_in_order(entries, 0.3)


X = sines((2, 8, 7, 6), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)
PUBLISHED = {
    "experts with a shortcut": (
        *((3, 8, 1, 4), (17.2158792369, 438.7863372506)),
        (0.40423362, 0.6299399, 0.84151985, 1.02745448, -0.60934096),
    ),
    "experts, strided": (
        *((5, 6, 2, 4), (11.8505474214, 19.6773253296)),
        (0.26296505, 0.26209875, 0.26368434, 0.26857042, -0.14850107),
    ),
    "static": (
        *((5, 6, 2, 0), (16.4673880874, 23.9615978300)),
        (0.47400673, 0.48436934, 0.48771504, 0.46281191, 0.00714363),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parity_vectors(name):
    (kernel, features, strides, experts), sums, entries = PUBLISHED[name]
    variables = block_variables(kernel, features, experts)
    made = block(kernel, features, strides, experts)
    sown = assert_published(made, variables, X, sums, entries)
    if experts:  # one routing for three layers
        mixes = [sown[n]["attention"]["weights"][0]["kernel"] for n in ("expand", "project")]
        np.testing.assert_array_equal(*mixes)


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def norm(variables, name, y):
    scale, bias = (variables["params"][name][leaf] for leaf in ("scale", "bias"))
    mean, var = (variables["batch_stats"][name][leaf] for leaf in ("mean", "var"))
    return (y - mean) / np.sqrt(var + 1e-3) * scale + bias


def test_a_block_of_experts_is_its_formulas_in_plain_loops():
    variables, params = block_variables(5, 6, 4), block_variables(5, 6, 4)["params"]
    routing = X.mean((1, 2)) @ params["routing"]["kernel"] + params["routing"]["bias"]
    mix = sigmoid(routing)

    def conv(x, name, **geometry):
        return numpy_oracle.convolve(x, params[name]["kernel"], mix, **geometry)

    y = norm(variables, "expand_norm", conv(X, "expand"))
    y = conv(y * sigmoid(y), "depthwise", strides=2, feature_group_count=24)
    y = norm(variables, "depthwise_norm", y)
    y = y * sigmoid(y)
    squeezed = params["squeeze_excite"]
    z = y.mean((1, 2)) @ squeezed["reduce"]["kernel"] + squeezed["reduce"]["bias"]
    gates = sigmoid(z * sigmoid(z) @ squeezed["expand"]["kernel"] + squeezed["expand"]["bias"])
    y = norm(variables, "project_norm", conv(y * gates[:, None, None], "project"))
    with jax.enable_x64(True):
        got, _ = jax.jit(block(5, 6, 2, 4).apply)(*jax.tree.map(jnp.asarray, (variables, X)))
    np.testing.assert_allclose(got, y, rtol=1e-11, atol=1e-12)


def test_the_gradient_of_a_block_is_that_of_finite_differences():
    variables = block_variables(3, 8, 4)
    with jax.enable_x64(True):
        variables, x = jax.tree.map(jnp.asarray, (variables, X[:, :3, :4]))

        @jax.jit
        def compute(params, x):
            y, _ = block(3, 8, 1, 4).apply({**variables, "params": params}, x)
            return jnp.sum(jnp.sin(y))

        check_grads(compute, (variables["params"], x), order=1, modes=["rev"], rtol=1e-6)


def test_published_number_of_parameters():
    shapes = init_shapes(EfficientNetB0(num_classes=1000, **make_condconv_fields(4)), PICTURE)
    assert count_parameters(shapes["params"]) == 13_314_116


@pytest.fixture
def few_stages(monkeypatch):
    stages = ((1, 3, 16, 1, 1), (6, 5, 16, 2, 2), (6, 3, 24, 1, 1))
    monkeypatch.setattr(efficientnet, "STAGES", stages)


Small = partial(EfficientNet, num_classes=3, width=0.25)


def test_depth_width_and_stages_are_those_asked_for(few_stages):
    odconv = partial(ODConv, num_kernels=2)
    net = Small(conv=odconv, depthwise=odconv, depth=1.1, dynamic_stages=(2,))
    shapes = shapes_of(init_shapes(net, PICTURE)["params"])
    blocks = {path.split("/")[0] for path in shapes if path.startswith("stage")}
    assert blocks == {"stage1_block1", "stage1_block2", "stage3_block1", "stage3_block2"} | {
        f"stage2_block{n}" for n in (1, 2, 3)
    }
    dynamic = {path.split("/")[0] for path in shapes if "/attention/" in path}
    assert dynamic == {f"stage2_block{n}" for n in (1, 2, 3)}
    assert shapes["stage2_block1/depthwise/kernel"] == (2, 5, 5, 1, 48)
    lite = shapes_of(init_shapes(EfficientNetLite0(3, width=2.0, depth=2.0), PICTURE)["params"])
    assert lite["stem_conv/kernel"][-1] == 32 and lite["last_conv/kernel"][-1] == 1280
    assert "stage3_block2/project/kernel" not in lite and "stage2_block4/project/kernel" in lite
    with pytest.raises(ValueError, match=r"has 5: .* stages 1 to 4"):
        init_shapes(Small(dynamic_stages=(5,)), PICTURE)
    with pytest.raises(ValueError, match="write 'torch' or 'same'"):
        init_shapes(Small(padding="SAME"), PICTURE)


def test_gradients_reach_all_parameters_and_drop_connect_drops_samples(few_stages):
    net = Small(**make_condconv_fields(2) | {"dynamic_stages": (2,)}, **TENSORFLOW, dropout=0.0)
    x = np.abs(np.random.default_rng(0).standard_normal((4, 16, 16, 3))).astype(np.float32)
    variables = filled(net, x)

    @jax.jit
    def compute(params, rng):
        seen = {**variables, "params": params}
        y, changed = net.apply(seen, x, train=True, mutable=["batch_stats"], rngs={"dropout": rng})
        return jnp.sum(jnp.sin(y)), (y, changed["batch_stats"])

    rngs = jax.random.key(0), jax.random.key(7)
    (_, (y, changed)), gradient = jax.jit(jax.value_and_grad(compute, has_aux=True))(
        variables["params"], rngs[0]
    )
    assert_learns(gradient)
    assert not np.allclose(y, compute(variables["params"], rngs[1])[1][0])
    old, new = (tree["stem_norm"]["mean"] for tree in (variables["batch_stats"], changed))
    assert np.abs(new - old).max() > 0


def test_a_series_has_one_axis(few_stages):
    net = Small(spatial_axes=1, stem="small", **make_condconv_fields(2))
    net = net.clone(dynamic_stages=(2, 3, 4), router=None)
    x = jax.ShapeDtypeStruct((2, 32, 1), jnp.float32)
    logits, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
    assert logits.shape == (2, 3)
