"""Dynamic convolution by definition: a Python loop over samples, and over output positions."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def convolve(x, kernel, **window):
    """One sample `[*spatial, I]` with one kernel `[*k, i, O]`, by flax's own convolution."""
    conv = nn.Conv(kernel.shape[-1], kernel.shape[:-2], use_bias=False, **window)
    return conv.apply({"params": {"kernel": kernel}}, x)


def dynamic_conv(inputs, kernels, mix=None, taps=None, **window):
    """y_b = conv(x_b, sum_k mix[b, k] taps[b] W_k), with nothing shared with the library."""
    samples = []
    for b, x in enumerate(inputs):
        weighed = [w if taps is None else w * taps[b][..., None, None] for w in kernels]
        if mix is None:
            samples.append(convolve(x, weighed[0], **window))
        elif mix.ndim == 2:
            kernel = sum(mix[b, k] * w for k, w in enumerate(weighed))
            samples.append(convolve(x, kernel, **window))
        else:
            each = [convolve(x, w, **window) for w in weighed]
            positions = jnp.stack([y.reshape(-1, y.shape[-1]) for y in each])
            weights = mix[b].reshape(-1, len(kernels))
            rows = [
                sum(weights[p, k] * positions[k, p] for k in range(len(kernels)))
                for p in range(weights.shape[0])
            ]
            samples.append(jnp.stack(rows).reshape(each[0].shape))
    return jnp.stack(samples)


def random_case(
    key, dtype, *, spatial, size, i, o, k, groups=1, batch=3, taps=False, mix="image", **window
):
    """Random arguments for `dynamic_conv`: (inputs, kernels, mix, taps), the missing ones None."""
    keys = jax.random.split(key, 4)
    inputs = jax.random.normal(keys[0], (batch, *spatial, i), dtype)
    kernels = jax.random.normal(keys[1], (k, *size, i // groups, o), dtype)
    weights = None
    if mix == "image":
        weights = jax.random.normal(keys[2], (batch, k), dtype)
    elif mix == "pixel":
        out = jax.eval_shape(
            lambda x, w: convolve(x, w, feature_group_count=groups, **window), inputs[0], kernels[0]
        ).shape[:-1]
        weights = jax.random.normal(keys[2], (batch, *out, k), dtype)
    scale = jax.random.uniform(keys[3], (batch, *size), dtype) if taps else None
    return inputs, kernels, weights, scale
