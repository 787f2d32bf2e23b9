"""Kernels for TPUs with a kernel per sample, in Pallas's interpreter; all cases are in the matrix."""

import jax.numpy as jnp
import numpy as np
import pytest
from sample_cases import assert_assembly_agrees, assert_convolution_agrees

from dyn.ops import assemble_tpu, lowerings, planner
from dyn.ops.geometry import Problem, resolve_geometry


def make_problem(batch=8, spatial=(7, 7), size=(3, 3), features=64, **geometry):
    i = features // geometry.get("groups", 1)
    one = resolve_geometry(spatial, size, **geometry)
    kernels = (1, *size, i, features)
    return Problem(batch, kernels, one, tap_attention=True, per_sample=True, itemsize=2)


def test_the_convolution_and_its_gradients_are_those_of_each_sample():
    assert_convolution_agrees("1d causal, strided", jnp.bfloat16)


def test_assembled_kernels_and_their_gradients_are_those_of_the_products():
    assert_assembly_agrees("taps", jnp.bfloat16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(groups=2), "groups"),
        (dict(kernel_dilation=2), "dilation"),
        (dict(size=(2, 2)), "odd"),
        (dict(features=1), "one input feature"),
        (dict(batch="b"), "known size"),
        (dict(spatial=(400, 400)), "VMEM"),
    ],
)
def test_what_the_kernel_cannot_do_is_refused(changes, message):
    assert message in lowerings.why_unsupported("fused", make_problem(**changes))


@pytest.mark.parametrize(("side", "features"), [(56, 64), (28, 128), (14, 256), (7, 512)])
def test_a_tpu_gives_each_sample_its_kernel_without_patches(side, features):
    problem = make_problem(128, (side, side), features=features)
    plan = planner.plan(problem, "tpu")
    assert plan.choice == "fused"
    assert planner.plan(problem, "cpu").choice != "fused"
    assert any(e.lowering == "shared" and "no candidates" in e.why_not for e in plan.estimates)


@pytest.mark.parametrize(
    ("mix", "cells", "message"),
    [
        ((6, 9, 1, 1, 4), (4, 16, 16), "eight"),
        ((8, 9, 1, 1, 4), (4, 3, 16), "sixteen"),
        ((8, 9, 2, 1, 4), (4, 16, 16), "lanes"),
        ((128, 900, 1, 1, 60), (60, 512, 512), "VMEM"),
    ],
)
def test_what_cannot_be_assembled_is_refused(mix, cells, message):
    assert message in assemble_tpu.why_unsupported(mix, cells, jnp.bfloat16)


@pytest.mark.parametrize("batches", [1, 3])
def test_kernels_are_made_for_a_part_of_the_batch(monkeypatch, batches):
    x, w = jnp.arange(12.0).reshape(6, 2), jnp.arange(6.0)
    monkeypatch.setattr(lowerings, "KERNEL_BYTES", 6 // batches * 4 * 4)
    sizes = []

    def scale(x, w):
        sizes.append(len(x))
        return x * w[:, None]

    y = lowerings.map_with_kernels(scale, (x, w), (2, 1, 2))
    np.testing.assert_array_equal(y, x * w[:, None])
    assert set(sizes) == {6 // batches}
