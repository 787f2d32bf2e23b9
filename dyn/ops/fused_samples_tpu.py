"""A convolution with a kernel for each sample, and its gradients, as Pallas kernels for TPUs.

    y_b = sum_t shift_t(x_b) W_b[t]        dW_b[t] = shift_t(x_b)^T dy_b

It is the kernel of `dyn.ops.fused_tpu` without its mixture: no patches are written, and a sample's kernel is
read once for the outputs, and once for the gradient of the inputs, which turns it over in VMEM. The gradient
of the kernels is made like that in `dyn.ops.fused_tpu_gradient`, without a sum over the batch.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp

from dyn.ops.fused_tpu import (
    Blocks,
    call_kernel,
    choose_columns,
    choose_samples,
    count_grouped,
    explain_limits,
    group_kernels,
    reverse_taps,
    transpose_geometry,
)
from dyn.ops.geometry import Array, Geometry, Problem, add_height
from dyn.ops.packing import plan_packing
from dyn.ops.vmem import find_vmem_size


def convolve_with_sample_kernels(inputs, kernels, geometry: Geometry, precision) -> Array:
    """Convolves each sample with its own kernel in one Pallas kernel for TPUs.

    Args:
        inputs: `[B, *spatial, I]`.
        kernels: `[B, *k, I, O]`; they are rounded to the inputs' dtype.
        geometry: of a convolution for which `why_unsupported` returns None.
        precision: of the products of float32 arrays, as in `jax.lax.dot`.

    Returns:
        `[B, *out, O]`.
    """
    x = inputs.astype(jnp.float32) if inputs.dtype == jnp.float16 else inputs  # not a TPU's dtype
    return _convolve(x, kernels.astype(x.dtype), geometry, precision).astype(inputs.dtype)


def why_unsupported(problem: Problem) -> str | None:
    """Explains why the kernel cannot solve a problem with a kernel per sample; None if it can."""
    geometry, batch, itemsize = problem.geometry, problem.batch, problem.itemsize
    if why := explain_limits(geometry, batch, itemsize):
        return why
    *_, features, filters = problem.kernels
    if features == 1:
        return "a product of one input feature is nothing for a matrix unit"
    if (
        choose_blocks(geometry, batch, features, filters, itemsize) is None
        or choose_blocks(transpose_geometry(geometry), batch, filters, features, itemsize, True)
        is None
    ):
        return "a picture and its kernel do not fit into VMEM"
    from dyn.ops.fused_tpu_gradient import choose_sample_blocks  # imports Pallas

    if choose_sample_blocks(geometry, problem.kernels[1:], batch, itemsize) is None:
        return "a picture and its kernel do not fit into VMEM for the gradient"
    return None


def choose_blocks(
    geometry: Geometry,
    batch: int,
    features: int,
    columns: int,
    itemsize: int,
    transposed: bool = False,
) -> Blocks | None:
    """Chooses the blocks with the most samples, then the most output features, that fit into VMEM.

    Args:
        geometry: of the convolution, or of the gradient for its inputs.
        batch: number of samples.
        features, columns: numbers of input and output features.
        itemsize: bytes of a number.
        transposed: whether kernels are those of the convolution whose gradient this is.
    """
    geometry = add_height(geometry)
    packing = plan_packing(geometry, features, columns)
    features, columns = packing.number * features, packing.number * columns
    grouped = count_grouped(packing, features)
    turned = transposed and grouped == packing.number == 1
    for samples, n in itertools.product(choose_samples(geometry, batch), choose_columns(columns)):
        blocks = Blocks(packing, samples, grouped, features, n, True, turned, turned)
        if blocks.count_bytes(2 * samples, itemsize, itemsize) < 0.9 * find_vmem_size():
            return blocks
    return None


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(inputs, kernels, geometry: Geometry, precision) -> Array:
    return _run_kernel(inputs, kernels, geometry, precision)


def _convolve_forward(inputs, kernels, geometry, precision):
    return _convolve(inputs, kernels, geometry, precision), (inputs, kernels)


def _convolve_backward(geometry, precision, saved, dy):
    return _compute_gradients(*saved, dy, geometry, precision)


_convolve.defvjp(_convolve_forward, _convolve_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _compute_gradients(inputs, kernels, dy, geometry: Geometry, precision):
    """Returns the gradients for the inputs and the kernels."""
    from dyn.ops.fused_tpu_gradient import compute_sample_gradients

    dx = _run_kernel(dy, kernels, transpose_geometry(geometry), precision, transposed=True)
    return dx, compute_sample_gradients(inputs, dy, kernels, geometry, precision=precision)


def _gradients_forward(*args):
    return _compute_gradients(*args), args[:3]


def _gradients_backward(geometry, precision, saved, cotangents):
    """Differentiates twice through plain XLA operations: the kernel has no second derivative."""

    def gradients(inputs, kernels, dy):
        convolve = partial(convolve_plainly, geometry=geometry, precision=precision)
        return jax.vjp(convolve, inputs, kernels)[1](dy)

    return jax.vjp(gradients, *saved)[1](cotangents)


_compute_gradients.defvjp(_gradients_forward, _gradients_backward)


def convolve_plainly(inputs, kernels, geometry: Geometry, precision) -> Array:
    """Computes the same in plain XLA operations, with patches."""
    w = kernels.reshape(kernels.shape[0], geometry.taps, *kernels.shape[-2:])
    patches = geometry.extract_patches(inputs)
    y = jnp.einsum("bpti,btio->bpo", patches, w, precision=precision)
    return y.reshape(inputs.shape[0], *geometry.out, kernels.shape[-1])


def _run_kernel(inputs, kernels, geometry: Geometry, precision, transposed: bool = False) -> Array:
    """Runs the kernel; `transposed` takes the kernels of the convolution whose gradient this is."""
    features, columns = kernels.shape[-2:]
    if transposed:
        features, columns = columns, features
    batch, itemsize = inputs.shape[0], inputs.dtype.itemsize
    blocks = choose_blocks(geometry, batch, features, columns, itemsize, transposed)
    assert blocks is not None  # see `why_unsupported`
    if transposed and not blocks.transposed:
        # Few features: the kernels are small, and taps share the lanes.
        kernels = reverse_taps(kernels).swapaxes(-1, -2)
    w, width = group_kernels(kernels, blocks), geometry.out[-1]
    y, _ = call_kernel(inputs, w, None, columns, width, blocks, precision)
    return y.reshape(batch, *geometry.out, columns)
