"""The fused kernel in Pallas's interpreter, with all its gradients; all cases are in the matrix."""

import jax
import jax.numpy as jnp
import pytest
from fused_cases import assert_fused_agrees

from dyn.ops import dynamic_conv, platforms
from dyn.ops.fused_tpu import choose_columns, transpose_geometry
from dyn.ops.geometry import resolve_geometry


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("1d causal, strided", jnp.bfloat16), ("pixels 1d causal, strided", jnp.bfloat16)],
)
def test_the_kernel_and_its_gradients_are_the_definition(name, dtype):
    assert_fused_agrees(name, dtype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(feature_group_count=2), "groups"),
        (dict(kernel_dilation=2), "dilation"),
        (dict(padding=3), "wider"),
        (dict(padding=-1), "crops"),
        (dict(kernels=jnp.ones((2, 2, 2, 4, 4))), "odd"),
        (dict(inputs=jnp.ones((2, 400, 400, 4))), "VMEM"),
        (dict(mix=jnp.ones((2, 8, 8, 2)), taps=jnp.ones((2, 3, 3))), "tap attention"),
        (dict(inputs=jnp.ones((2, 1, 9000, 4)), mix=jnp.ones((2, 1, 9000, 2))), "VMEM"),
    ],
)
def test_what_the_kernel_cannot_do_is_refused(changes, message):
    arguments = dict(
        inputs=jnp.ones((2, 8, 8, 4)), kernels=jnp.ones((2, 3, 3, 4, 4)), mix=jnp.ones((2, 2))
    )
    arguments |= changes
    groups = arguments.get("feature_group_count", 1)
    arguments["kernels"] = arguments["kernels"][..., : 4 // groups, :]

    def convolve():
        return dynamic_conv(**arguments, lowering="fused")

    with platforms.plan_for_platform("tpu"), pytest.raises(ValueError, match=message):
        jax.eval_shape(convolve)


def test_other_platforms_are_refused():
    with pytest.raises(ValueError, match="for TPUs"):
        dynamic_conv(jnp.ones((1, 2, 2, 8)), jnp.ones((1, 1, 1, 8, 8)), lowering="fused")


def test_blocks_of_output_features_fill_the_lanes():
    assert choose_columns(512) == [512, 256, 128]
    assert choose_columns(384) == [384, 128]
    assert [choose_columns(n) for n in (64, 128, 320)] == [[64], [128], [320]]


@pytest.mark.parametrize(("size", "stride", "n"), [(3, 1, 7), (3, 2, 8), (1, 2, 5), (5, 3, 11)])
def test_the_transposed_geometry_leads_back_to_the_inputs(size, stride, n):
    geometry = resolve_geometry((n,), (size,), stride)
    assert transpose_geometry(geometry).out == (n,)
