"""Dynamic ReLU: a maximum of linear functions whose coefficients are computed from the input.

Chen, Dai, Liu, Chen, Yuan, Liu: Dynamic ReLU. ECCV 2020. https://arxiv.org/abs/2003.10027

Form C is written from the paper's formulas alone, without the authors' code. Deviations: any number of
spatial axes; context from elsewhere; weights start as those of the other attention heads here, normal with
variance 2 / fan_out.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn.layers.attention import apply_head, attention_dtype, squeezed_size
from dyn.layers.convolution import resolve_context
from dyn.layers.fields import CheckedModule
from dyn.layers.squeeze_excite import flatten_features
from dyn.ops.dtypes import broadcast_weights
from dyn.ops.dynamic_conv import expand_over_space
from dyn.ops.sharding import automate_sharding, mesh_axes

Array = jax.Array

FORMS = ("A", "B", "C")


class DynamicReLU(CheckedModule):
    """Computes the largest of M linear functions of each number.

        y = max_m (a_m x + b_m)
        (a_m, b_m) = (1, 0 for m = 0, else 0, 0) + (scale_slopes, scale_intercepts) * theta
        theta = 2 sigmoid(W_2 ReLU(W_1 context + b_1) + b_2) - 1

    with M = `pieces`. Where theta is 0 it is ReLU. In form 'A' the channels share the 2 M coefficients, in
    'B' each has its own. Form 'C' is 'B' with all coefficients multiplied at each position p by

        pi[p] = min(N / 3 softmax over positions(V x[p] / tau), 1),    N positions, tau = `temperature`

    It takes the place of an activation: `DynamicReLU()(x)` for `nn.relu(x)`. In `dyn.models.ResNet` write
    `activation=DynamicReLU`, which makes one for every ReLU of the blocks' branches.

    Attributes:
        form: 'A', 'B' or 'C'.
        pieces: M.
        reduction: size of the squeezed vector, as a share of the input's channels.
        min_squeeze: lower bound on that size.
        scale_slopes: largest change of a slope.
        scale_intercepts: largest change of an intercept.
        temperature: tau, of form 'C'.
        spatial_axes: number of spatial axes, after any number of batch axes; None: all axes between the
            first and the last are spatial.
        param_dtype: dtype of the parameters. The coefficients are computed in float32 or wider; the output
            has the input's dtype.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import DynamicReLU
        >>> layer = DynamicReLU()
        >>> x = jnp.ones((2, 8, 8, 64))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> layer.apply(variables, x).shape
        (2, 8, 8, 64)
    """

    form: str = "B"
    pieces: int = 2
    reduction: float = 1 / 8
    min_squeeze: int = 1
    scale_slopes: float = 1.0
    scale_intercepts: float = 0.5
    temperature: float = 10.0
    spatial_axes: int | None = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array, context: Array | None = None) -> Array:
        """Applies the activation.

        Args:
            inputs: `[B, *spatial, C]`, or `[*batch, *spatial, C]` with `spatial_axes`.
            context: what attention looks at, `[*batch, D]`; None for the mean of the inputs over space.

        Returns:
            An array of the inputs' shape and dtype.

        Raises:
            ValueError: for an unknown form, and if the inputs have too few axes or are integers, or the
                context does not fit them.
        """
        if self.form not in FORMS:
            raise ValueError(f"form={self.form!r} is unknown: write 'A', 'B' or 'C'.")
        x, batch = flatten_features(self, inputs, self.spatial_axes)
        dtype = attention_dtype(x, self.param_dtype)
        types = {"dtype": dtype, "param_dtype": self.param_dtype}
        context = resolve_context(context, x, batch, dtype).astype(dtype)
        squeezed = squeezed_size(x.shape[-1], self.reduction, self.min_squeeze)
        z = nn.relu(apply_head("reduce", context, squeezed, **types))
        functions = 1 if self.form == "A" else x.shape[-1]
        number = 2 * self.pieces
        logits = apply_head("coefficients", z, functions * number, **types)
        theta = 2 * nn.sigmoid(logits.reshape(z.shape[0], functions, number)) - 1
        slopes, intercepts = make_lines(theta, self.scale_slopes, self.scale_intercepts)
        sown = {"slope": slopes, "intercept": intercepts}
        y = take_largest(x, slopes, intercepts)
        if self.form == "C":
            scores = apply_head(
                "spatial", x.astype(dtype), 1, use_bias=False, precision=None, **types
            )
            attend = functools.partial(weight_positions, temperature=self.temperature)
            sown["spatial"] = automate_sharding(attend, scores[..., 0], axes=mesh_axes(x)[:-1])
            y = y * broadcast_weights(sown["spatial"][..., None], y)
        self.sow("intermediates", "weights", sown)
        return y.reshape(inputs.shape)


def make_lines(
    theta: Array, scale_slopes: float = 1.0, scale_intercepts: float = 0.5
) -> tuple[Array, Array]:
    """Makes the slopes and intercepts of M lines, those of ReLU where theta is 0.

    Args:
        theta: `[B, F, 2 M]` in [-1, 1]: for each function the M slopes' changes, then the intercepts'.
        scale_slopes: largest change of a slope.
        scale_intercepts: largest change of an intercept.

    Returns:
        Slopes and intercepts, `[B, F, M]` each.
    """
    pieces = theta.shape[-1] // 2
    first = jnp.asarray(np.arange(pieces) == 0, theta.dtype)[None, None]
    return first + scale_slopes * theta[..., :pieces], scale_intercepts * theta[..., pieces:]


def take_largest(x: Array, slopes: Array, intercepts: Array) -> Array:
    """Computes max_m (slopes[m] x + intercepts[m]) of `x`, `[B, *spatial, C]`; the lines `[B, C or 1, M]`."""
    lines = (
        x * expand_over_space(slopes[..., m], x) + expand_over_space(intercepts[..., m], x)
        for m in range(slopes.shape[-1])
    )
    # The gradient of `jnp.maximum` looks for the line that equals the maximum. XLA may compute the lines
    # again for that, with different rounding: none is equal then.
    return functools.reduce(lambda a, b: jnp.where(b > a, b, a), lines)


def weight_positions(scores: Array, temperature: float) -> Array:
    """Computes min(N / 3 softmax(scores / temperature), 1) over the N positions of `[B, *spatial]`."""
    axes = tuple(range(1, scores.ndim))
    shares = nn.softmax(scores / temperature, axis=axes)
    return jnp.minimum(math.prod(scores.shape[1:]) / 3 * shares, 1)
