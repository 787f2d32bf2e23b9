"""Names of published networks of inverted residual blocks have their places, and values go there."""

import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import init_shapes, sines
from mobile_names import assert_every_name_has_its_place, list_lite0

from dyn.interop import from_torch, read_weights
from dyn.models import EfficientNetLite0


def test_every_name_of_a_published_file_has_its_place():
    assert_every_name_has_its_place("efficientnet, 4 experts")


def test_flattened_experts_become_kernels():
    shapes = {
        "stage5_block1": {
            "depthwise": {"kernel": jax.ShapeDtypeStruct((4, 5, 5, 1, 480), jnp.float32)},
            "routing": {"kernel": jax.ShapeDtypeStruct((80, 4), jnp.float32)},
        }
    }
    weights = {
        "blocks.4.0.conv_dw.weight": sines((4, 12000), 0.3).astype(np.float32),
        "blocks.4.0.routing_fn.weight": sines((4, 80), 0.5).astype(np.float32),
    }
    block = from_torch({"params": shapes}, weights).variables["params"]["stage5_block1"]
    stack = weights["blocks.4.0.conv_dw.weight"].reshape(4, 480, 1, 5, 5)
    np.testing.assert_array_equal(block["depthwise"]["kernel"], stack.transpose(0, 3, 4, 2, 1))
    routing = weights["blocks.4.0.routing_fn.weight"].T
    np.testing.assert_array_equal(block["routing"]["kernel"], routing)


def test_kernels_of_dymn_lose_two_axes_and_its_constants_must_be_as_published():
    path = {"stage2_block1": {"expand": {"kernel": jax.ShapeDtypeStruct((4, 1, 1, 16, 64), "f4")}}}
    kernels = sines((1, 1, 4, 1024), 0.3).astype(np.float32)
    weights = {"layers.1.exp_conv.weight": kernels}
    weights["layers.1.depth_act.lambdas"] = np.float32([1, 1, 0.5, 0.5])
    imported = from_torch({"params": path}, weights)
    assert imported.left_out == ("layers.1.depth_act.lambdas",)
    stack = kernels.reshape(4, 64, 16, 1, 1).transpose(0, 3, 4, 2, 1)
    got = imported.variables["params"]["stage2_block1"]["expand"]["kernel"]
    np.testing.assert_array_equal(got, stack)
    weights["layers.1.depth_act.lambdas"] = np.float32([1, 1, 1, 1])
    with pytest.raises(
        ValueError, match=r"1 without a counterpart .* layers\.1\.depth_act\.lambdas"
    ):
        from_torch({"params": path}, weights)


# The file is not part of the repository: docs/weights.md says where it comes from.
LITE0 = Path(os.environ.get("DYN_LITE0_WEIGHTS", ""))
# Rows: the first five classes, their logits, logits 0 and 999, the sum of all and of their absolute values.
LITE0_LOGITS = (
    (
        (905, 753, 904, 858, 807),
        (6.821895, 5.059974, 4.584544, 4.292883, 4.043729, -1.201092, 2.206198),
        (-71.889638, 892.752355),
    ),
    (
        (418, 767, 696, 644, 902),
        (10.984424, 7.863434, 7.852146, 6.144951, 6.028154, 0.438362, -1.465165),
        (-89.435566, 1306.658850),
    ),
    (
        (794, 904, 906, 905, 443),
        (7.200672, 5.583892, 4.918058, 4.881597, 4.756839, -1.256265, 1.625675),
        (-73.670318, 1064.698890),
    ),
)


@pytest.mark.skipif(not LITE0.is_file(), reason="DYN_LITE0_WEIGHTS names no file")
def test_the_published_lite0_has_the_logits_of_its_authors_code():
    weights = read_weights(LITE0)
    assert {key: value.shape for key, value in weights.items()} == list_lite0()
    channel, row, column = np.indices((3, 224, 224))
    pictures = np.stack(
        [
            sines((3, 224, 224), 0.05, 1.0, 0.23),
            np.sin(0.05 * row + 0.03 * column + channel),
            (2 * ((row // 16 + column // 16) % 2) - 1) * (0.25 + 0.25 * channel),
        ]
    ).transpose(0, 2, 3, 1)
    net = EfficientNetLite0(num_classes=1000)
    with jax.enable_x64(True):
        x = jnp.asarray(pictures)
        wide = partial(jax.tree.map, lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float64))
        variables = from_torch(wide(init_shapes(net, x)), weights).variables
        logits = np.asarray(jax.jit(net.apply)(variables, x))
    for y, (classes, values, sums) in zip(logits, LITE0_LOGITS, strict=True):
        assert tuple(np.argsort(-y)[:5]) == classes
        np.testing.assert_allclose(y[[*classes, 0, 999]], values, rtol=0, atol=1e-6)
        np.testing.assert_allclose((y.sum(), np.abs(y).sum()), sums, rtol=0, atol=1e-6)
