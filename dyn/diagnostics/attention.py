"""Statistics of a model's attention and of its candidate kernels."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from dyn.ops.dtypes import float32_or_wider

Array = jax.Array


def sown_weights(intermediates: Mapping[str, Any]) -> dict[str, dict[str, Array]]:
    """Collects the attention weights that the layers of this library have sown, by layer and kind.

    Args:
        intermediates: the collection, from `model.apply(..., mutable=["intermediates"])`.

    Returns:
        `{layer: {kind: weights [B, ...]}}`. A layer is named by its path; kinds are `kernel`, `pixel`,
        `channel`, `filter`, `spatial`, ... For a layer that is applied several times, the first weights.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.diagnostics import sown_weights
        >>> from dyn.layers import DynamicConv
        >>> layer, x = DynamicConv(8, (3, 3), num_kernels=4), jnp.ones((2, 6, 6, 3))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> _, state = layer.apply(variables, x, mutable=["intermediates"])
        >>> {k: v["kernel"].shape for k, v in sown_weights(state["intermediates"]).items()}
        {'': (2, 4)}
    """
    layers: dict[str, dict[str, Array]] = {}
    # A layer sows a dictionary; Flax wraps it in a tuple.
    sown: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(dict(intermediates))
    for path, values in sown.items():
        if path[-1] == "weights" and isinstance(values[0], Mapping):
            # The weights of a convolution are sown by its submodule `attention`.
            parents = path[:-2] if path[-2:-1] == ("attention",) else path[:-1]
            layers.setdefault("/".join(parents), {}).update(values[0])
    return layers


def attention_statistics(weights: Array, dead_below: float = 0.01) -> dict[str, Array]:
    """Summarises a layer's attention over its kernels: how selective it is, and which kernels are unused.

        share_nk = |a_nk| / sum_j |a_nj|

    Args:
        weights: a, `[N, K]` or `[N, *positions, K]`, which the layer has sown for N inputs. Each position
            counts as an input. Weights need not sum to one, and may be gates or negative.
        dead_below: a kernel is dead if its share is below this for every input.

    Returns:
        `mean [K]`: mean of a over the inputs. `spread`: standard deviation of a over the inputs, averaged
        over the kernels; 0 if every input has the same mixture. `entropy`: entropy of the shares, averaged
        over the inputs, from 0 (one kernel) to 1 (equal shares). `dead [K]`: booleans. In float32 or wider.

    Raises:
        ValueError: if there is no input, or no axis of kernels.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.diagnostics import attention_statistics
        >>> statistics = attention_statistics(jnp.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
        >>> statistics["dead"].tolist(), round(float(statistics["entropy"]), 3)  # (log 2 + 0) / 2 / log 3
        ([False, False, True], 0.315)
    """
    if weights.ndim < 2 or weights.size == 0:
        raise ValueError(
            f"weights must be [N, K] or [N, *positions, K]; got shape {weights.shape}."
        )
    kernels = weights.shape[-1]
    a = weights.reshape(-1, kernels).astype(float32_or_wider(weights))
    total = jnp.sum(jnp.abs(a), axis=-1, keepdims=True)
    # If all gates are off, all shares are zero.
    shares = jnp.abs(a) / jnp.where(total > 0, total, jnp.ones_like(total))
    entropy = jnp.mean(jnp.sum(jax.scipy.special.entr(shares), axis=-1))
    return {
        "mean": jnp.mean(a, axis=0),
        "spread": jnp.mean(jnp.std(a, axis=0)),
        "entropy": entropy / math.log(kernels) if kernels > 1 else entropy,
        "dead": jnp.max(shares, axis=0) < dead_below,
    }


def kernel_similarity(kernels: Array) -> Array:
    """Returns the cosine similarity of each pair of candidate kernels of a layer.

        s_jk = <W_j, W_k> / (|W_j| |W_k|)

    Args:
        kernels: `[K, *k, I, O]`, the parameter `kernel` of a dynamic layer.

    Returns:
        `[K, K]`, 1 on the diagonal (0 for a kernel of zeros), in float32 or wider. Values near 1 everywhere
        mean that candidates which started as copies have not diverged.

    Raises:
        ValueError: if there is no axis of candidates.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.diagnostics import kernel_similarity
        >>> w = jnp.array([[1.0, 0.0], [1.0, 1.0], [-2.0, 0.0]]).reshape(3, 1, 1, 1, 2)
        >>> kernel_similarity(w).round(2).tolist()[0]
        [1.0, 0.7099999785423279, -1.0]
    """
    if kernels.ndim < 2:
        raise ValueError(f"kernels must be [K, *k, I, O]; got shape {kernels.shape}.")
    w = kernels.reshape(len(kernels), -1).astype(float32_or_wider(kernels))
    norm = jnp.linalg.norm(w, axis=1, keepdims=True)
    w = w / jnp.where(norm > 0, norm, jnp.ones_like(norm))
    return jnp.matmul(w, w.T, precision=jax.lax.Precision.HIGHEST)
