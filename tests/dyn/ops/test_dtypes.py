"""The precision of a TPU's matrix unit, and the memory that its kernels take."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from dyn.ops import dynamic_conv
from dyn.ops.dtypes import choose_matrix_precision, count_kernel_bytes
from dyn.ops.dynamic_conv import check_arguments
from dyn.ops.geometry import resolve_geometry
from dyn.ops.platforms import plan_for_platform

LOW, HIGH = lax.Precision.DEFAULT, lax.Precision.HIGHEST


@pytest.mark.parametrize(
    ("precision", "chosen"),
    [
        (None, LOW), ("default", LOW), ("bfloat16", LOW), (lax.Precision.DEFAULT, LOW),
        ("high", HIGH), ("highest", HIGH), (("default", "highest"), HIGH), ("float32", HIGH),
    ],
)  # fmt: skip
def test_a_matrix_unit_has_two_precisions_for_float32(precision, chosen):
    assert choose_matrix_precision(jnp.dtype("float32"), precision) == chosen
    assert choose_matrix_precision(jnp.dtype("bfloat16"), precision) is None
    if isinstance(precision, str):  # None stands for the usual one
        with jax.default_matmul_precision(precision):
            assert choose_matrix_precision(jnp.dtype("float32"), None) == chosen


@pytest.mark.parametrize("precision", ["high", "highest", "default"])
def test_the_kernels_and_their_gradients_take_the_usual_precision(precision):
    shapes = [(8, 14, 14, 128), (2, 3, 3, 128, 128), (8, 2)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def loss(x, w, mix):
        return jnp.sum(dynamic_conv(x, w, mix, lowering="fused") ** 2)

    with plan_for_platform("tpu"), jax.default_matmul_precision(precision):
        traced = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*arguments))
    found = set(re.findall(r"precision=\(?(?:Precision\.)?(\w+)", traced))
    # Sums over positions are always precise.
    assert found == ({"DEFAULT", "HIGHEST"} if precision == "default" else {"HIGHEST"})


def test_float16_takes_the_memory_of_float32():
    assert [count_kernel_bytes(jnp.dtype(name)) for name in ("float16", "bfloat16", "float32")] == [
        4, 2, 4,
    ]  # fmt: skip
    x, w = (jax.ShapeDtypeStruct(s, jnp.float16) for s in ((8, 5, 5, 4), (1, 3, 3, 4, 4)))
    assert check_arguments(x, w, None, None, resolve_geometry((5, 5), (3, 3))).itemsize == 4
