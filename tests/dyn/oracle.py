"""Dynamic convolution by definition: a Python loop over samples."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def convolve(x, kernel, **geometry):
    """Convolves one sample `[*spatial, I]` with one kernel `[*k, i, O]` by `nn.Conv`."""
    conv = nn.Conv(kernel.shape[-1], kernel.shape[:-2], use_bias=False, **geometry)
    return conv.apply({"params": {"kernel": kernel}}, x)


def dynamic_conv(inputs, kernels, mix=None, taps=None, **geometry):
    """Computes y_b = conv(x_b, sum_k mix[b, k] taps[b] W_k), with nothing shared with the library."""
    samples = []
    for b, x in enumerate(inputs):
        weighted = [w if taps is None else w * taps[b][..., None, None] for w in kernels]
        if mix is None:
            samples.append(convolve(x, weighted[0], **geometry))
        elif mix.ndim == 2:
            kernel = sum(mix[b, k] * w for k, w in enumerate(weighted))
            samples.append(convolve(x, kernel, **geometry))
        else:
            outputs = jnp.stack([convolve(x, w, **geometry) for w in weighted])
            samples.append(jnp.einsum("...k,k...o->...o", mix[b], outputs))
    return jnp.stack(samples)


def random_case(
    key, dtype, *, spatial, size, i, o, k, groups=1, batch=3, taps=False, mix="image", **geometry
):
    """Returns random `(inputs, kernels, mix, taps)`, None for those that the case lacks."""
    keys = jax.random.split(key, 4)
    inputs = jax.random.normal(keys[0], (batch, *spatial, i), dtype)
    kernels = jax.random.normal(keys[1], (k, *size, i // groups, o), dtype)
    weights = None
    if mix == "image":
        weights = jax.random.normal(keys[2], (batch, k), dtype)
    elif mix == "pixel":
        out = jax.eval_shape(
            lambda x, w: convolve(x, w, feature_group_count=groups, **geometry),
            inputs[0],
            kernels[0],
        ).shape[:-1]
        weights = jax.random.normal(keys[2], (batch, *out, k), dtype)
    scale = jax.random.uniform(keys[3], (batch, *size), dtype) if taps else None
    return inputs, kernels, weights, scale
