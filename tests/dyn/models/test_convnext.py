"""ConvNeXt against its definition in NumPy; its dynamic convolutions."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
from layer_cases import filled, init_shapes, random_input, shapes_of

from dyn.layers import Conv, DynamicConv, DynamicDense
from dyn.layers.norms import LayerNorm
from dyn.models import ConvNeXt
from dyn.models.convnext import ConvNeXtBlock


def layer_norm(x, params):
    centred = x - x.mean(-1, keepdims=True)
    std = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return centred / std * params["scale"] + params["bias"]


def convolve(x, params, **geometry):
    kernels = np.broadcast_to(params["kernel"], (len(x), *params["kernel"].shape))
    return numpy_oracle.convolve(x, kernels, np.eye(len(x)), **geometry) + params["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def test_follows_its_definition():
    net = ConvNeXt(num_classes=3, width=4, stage_sizes=(1, 1))
    x = random_input(2, 16, 8, 3)
    variables = filled(net, x)
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    y = np.asarray(x, np.float64)
    y = layer_norm(convolve(y, params["stem_conv"], strides=4, padding=0), params["stem_norm"])
    for stage in (1, 2):
        if stage > 1:
            y = layer_norm(y, params["stage2_norm"])
            y = convolve(y, params["stage2_conv"], strides=2, padding=0)
        block = params[f"stage{stage}_block1"]
        features = y.shape[-1]
        z = convolve(y, block["depthwise"], strides=1, padding=3, feature_group_count=features)
        z = gelu(convolve(layer_norm(z, block["norm"]), block["expand"], strides=1, padding=0))
        y = y + block["scale"] * convolve(z, block["project"], strides=1, padding=0)
    want = layer_norm(y.mean((1, 2)), params["last_norm"])
    want = want @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(jax.jit(net.apply)(variables, x), want, rtol=1e-4, atol=1e-4)


def test_takes_other_layers_in_each_place():
    net = ConvNeXt(
        *(3, DynamicConv, DynamicConv, DynamicConv, DynamicDense),
        width=4,
        stage_sizes=(1, 1),
        stem="small",
        spatial_axes=1,
    )
    shapes = shapes_of(init_shapes(net, jax.ShapeDtypeStruct((2, 8, 1), jnp.float32))["params"])
    assert shapes["stem_conv/kernel"] == (4, 3, 1, 4)
    assert shapes["stage2_conv/kernel"] == (4, 2, 4, 8)
    assert shapes["stage2_block1/depthwise/kernel"] == (4, 7, 1, 8)
    assert shapes["stage2_block1/expand/kernel"] == (4, 1, 8, 32)
    assert shapes["head/kernel"] == (4, 1, 8, 3)


def test_the_scale_s_gradient_in_bfloat16_adds_up_all_positions():
    x = random_input(1, 48, 48, 4)

    def differentiate(dtype):
        conv, norm = partial(Conv, dtype=dtype), partial(LayerNorm, dtype=dtype)
        block = ConvNeXtBlock(conv, conv, norm)
        params = filled(block, x)["params"]
        params["project"]["bias"] = np.ones(4, np.float32)  # so that the mean is not near zero

        def loss(params):
            return jnp.sum(block.apply({"params": params}, x.astype(dtype)).astype(jnp.float32))

        return jax.jit(jax.grad(loss))(params)["scale"]

    np.testing.assert_allclose(
        differentiate(jnp.bfloat16), differentiate(jnp.float32), rtol=0.02, atol=20
    )
