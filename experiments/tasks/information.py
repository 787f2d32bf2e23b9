"""A loss that keeps attention from being the same for all inputs: what mixtures of kernels tell about these.

An attention that gives every input the same mixture makes a static convolution with more parameters, and
training on little data tends to end there. Mixtures tell most if each input uses a single kernel, and all
kernels are used equally often.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from ml_collections import ConfigDict

from experiments.core.errors import UserError
from experiments.tasks.task import Array


def mixture_information(mixtures: Array) -> Array:
    """Computes the share of its most that a layer's mixtures tell about the inputs of a batch.

        I = (H(mean of the mixtures) - mean of H(mixture)) / log K,   H(m) = - sum of m log m

    It is the mutual information of input and kernel: 0 if all inputs have the same mixture, 1 if each uses a
    single kernel and all kernels are used equally often.

    Args:
        mixtures: `[B, K]`, probabilities of K > 1 kernels.

    Source:
        As a loss for clusters: Bridle, Heading and MacKay 1991; Krause, Perona and Gomes 2010.
    """
    mixtures = mixtures.astype(jnp.float32)
    used = _entropy(mixtures.mean(axis=0))
    return (used - _entropy(mixtures).mean()) / jnp.log(mixtures.shape[-1])


def information_loss(intermediates: Mapping[str, Any]) -> Array:
    """Computes 1 - I, averaged over the layers that have sown mixtures.

    Raises:
        UserError: if no layer mixes kernels.
    """
    sown = traverse_util.flatten_dict(dict(intermediates))
    mixtures = [
        layer["kernel"]
        for path, calls in sown.items()
        if path[-1] == "weights"
        for layer in calls
        if "kernel" in layer
    ]
    if not mixtures:
        raise UserError(
            "--config.mixture.information: no layer of this network mixes kernels; set it to 0, or choose "
            "--config.conv.num_kernels=4."
        )
    return 1 - jnp.mean(jnp.stack([mixture_information(one) for one in mixtures]))


def read_information(config: ConfigDict) -> float:
    """Returns the weight of the loss in a config: 0 for convolutions that have no such mixtures."""
    return config.mixture.information if "mixture" in config else 0.0


def _entropy(probabilities: Array) -> Array:
    # The derivative at 0, which a softmax may reach, is infinite.
    return jax.scipy.special.entr(jnp.maximum(probabilities, 1e-12)).sum(axis=-1)
