"""Convolution with spectral normalisation, of one kernel or of each candidate of a mixture.

Miyato, Kataoka, Koyama, Yoshida: Spectral Normalization for Generative Adversarial Networks. ICLR 2018.
https://openreview.net/forum?id=B1QRgziT-

Deviations from the authors' code: several candidate kernels, each normalised separately; no factor and no
learned gain. `flax.linen.SpectralNorm` around a dynamic convolution would take the norm of the stack of
candidates, which is up to sqrt(K) times that of the largest, and would normalise the attention as well.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dyn.layers.attention import MixtureAttention
from dyn.layers.convolution import ConvLayer
from dyn.layers.fields import CheckedModule
from dyn.ops.dtypes import broadcast_weights, float32_or_wider
from dyn.ops.sharding import automate_sharding

Array = jax.Array


class SpectralNormConv(ConvLayer):
    """Convolves with a kernel of spectral norm one, or a mixture of K such kernels.

        y = conv(x, sum_k a[k] W_k / sigma(W_k)) + b

    with sigma(W) the largest singular value of W as a matrix with its outputs along one axis, and, for
    K > 1, the attention of `DynamicConv`,

        a = softmax((W_2 ReLU(W_1 context) + b_2) / T)

    The softmax preserves the bound: sigma(sum_k a[k] W_k) <= sum_k a[k] sigma(W_k) <= 1. (As in the paper, it
    is the norm of the reshaped kernel, not of the convolution as an operator; with groups it is at least
    the norm of each group.)

    sigma is estimated from one vector u per candidate, stored as `u` in the collection `batch_stats`. Every
    call does `n_steps` steps of the power iteration from there,

        v = u W / |u W|,  u = W v / |W v|,  sigma = u W v

    and stores the new u exactly when `batch_stats` is mutable. The gradient flows through W alone, not
    through u and v.

    Attributes:
        features: number of output features; `nn.Conv`'s other fields follow, see `ConvLayer`.
        num_kernels: K, the number of candidate kernels; with one there is no attention, and the context
            is ignored.
        reduction: size of the squeezed vector, as a share of the context's.
        min_squeeze: lower bound on that size.
        attention_norm: 'none' (as in `DynamicConv`), 'batch' or 'layer', before the attention's ReLU.
        use_running_average: for 'batch': None uses batch statistics exactly when the collection
            `batch_stats` is mutable.
        n_steps: power iterations in each call.
        epsilon: added to the lengths that u and v are divided by; also the least sigma.
        lowering: see `dyn.ops.dynamic_conv`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers.spectral_norm import SpectralNormConv
        >>> layer = SpectralNormConv(features=16, kernel_size=(3, 3), num_kernels=4)
        >>> x = jnp.ones((2, 8, 8, 3))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> y, kept = layer.apply(variables, x, mutable=["batch_stats"])
        >>> y.shape, kept["batch_stats"]["u"].shape
        ((2, 8, 8, 16), (4, 16))
    """

    num_kernels: int = 1
    reduction: float = 1 / 4
    min_squeeze: int = 4
    attention_norm: str = "none"
    use_running_average: bool | None = None
    n_steps: int = 1
    epsilon: float = 1e-12
    lowering: str = "auto"

    @nn.compact
    def __call__(self, inputs: Array, context: Array | None = None) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, *spatial, I]`, any number of batch axes.
            context: what attention looks at, `[*batch, D]`; None for the mean of the inputs over space.

        Returns:
            `[*batch, *out, features]`.

        Raises:
            ValueError: if the kernel, the context or the groups do not fit the inputs, or for a number
                of kernels or of power iterations below one.
        """
        if self.num_kernels < 1 or self.n_steps < 1:
            raise ValueError(
                f"num_kernels={self.num_kernels} and n_steps={self.n_steps} must be at least 1."
            )
        x, batch = self.flatten_inputs(inputs)
        kernel = self.make_candidates(x, self.num_kernels)
        kernel = kernel.astype(float32_or_wider(kernel))
        kernel = normalise_kernels(self, kernel, self.n_steps, self.epsilon)
        mix = None
        if self.num_kernels > 1:
            context = self.flatten_context(context, x, batch)
            fields = self.attention_fields(context.shape[-1], float32_or_wider(x, kernel))
            mix = MixtureAttention(num_kernels=self.num_kernels, **fields)(context)
        y = self.convolve(x.astype(self.conv_dtype(x)), kernel, mix, lowering=self.lowering)
        y = self.add_bias(y)
        return y.reshape(*batch, *y.shape[1:])


class SpectralNormDense(CheckedModule):
    """Computes a linear layer whose kernel has spectral norm one: the head of a discriminator.

        y = x W / sigma(W) + b

    sigma is estimated as in `SpectralNormConv`, from one vector `u` in the collection `batch_stats`.

    Attributes:
        features: number of output features.
        use_bias: whether to add a bias.
        dtype: dtype of the product; None for what inputs and parameters promote to.
        param_dtype: dtype of the parameters.
        kernel_init: initialises the kernel.
        bias_init: initialises the bias.
        n_steps: power iterations in each call.
        epsilon: added to the lengths that u and v are divided by; also the least sigma.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import SpectralNormDense
        >>> layer = SpectralNormDense(features=10)
        >>> x = jnp.ones((2, 64))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> y, kept = layer.apply(variables, x, mutable=["batch_stats"])
        >>> y.shape, kept["batch_stats"]["u"].shape
        ((2, 10), (1, 10))
    """

    features: int
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.linear.default_kernel_init
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    n_steps: int = 1
    epsilon: float = 1e-12

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Applies the layer: `[*batch, I]` to `[*batch, features]`."""
        shape = inputs.shape[-1], self.features
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        wide = kernel.astype(float32_or_wider(kernel))[None]
        kernel = normalise_kernels(self, wide, self.n_steps, self.epsilon)[0]
        x, kernel = nn.dtypes.promote_dtype(inputs, kernel, dtype=self.dtype)
        y = jnp.matmul(x, kernel)
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        return y + broadcast_weights(lax.broadcast_to_rank(bias, y.ndim), y)


def normalise_kernels(module: nn.Module, kernel: Array, n_steps: int, epsilon: float) -> Array:
    """Divides each candidate of `[K, ..., O]` by its spectral norm; call it inside a compact method.

    It stores the vectors u in the module's variable `u`, and sows `sigma`, `[K]`.
    """

    def unit_vectors() -> Array:
        u = jax.random.normal(module.make_rng("params"), kernel.shape[:: kernel.ndim - 1])
        return u / (jnp.linalg.norm(u, axis=-1, keepdims=True) + epsilon)

    u = module.variable("batch_stats", "u", unit_vectors)
    matrices = kernel.reshape(kernel.shape[0], -1, kernel.shape[-1])
    estimate = partial(spectral_norms, steps=n_steps, epsilon=epsilon)
    after, sigma = automate_sharding(estimate, matrices, u.value.astype(kernel.dtype))
    if module.is_mutable_collection("batch_stats") and not module.is_initializing():
        u.value = after.astype(u.value.dtype)
    module.sow("intermediates", "sigma", sigma)
    # A kernel of zeros stays a kernel of zeros.
    sigma = jnp.maximum(sigma, epsilon)
    return kernel / sigma.reshape(-1, *(1,) * (kernel.ndim - 1))


def spectral_norms(
    matrices: Array, u: Array, steps: int = 1, epsilon: float = 1e-12
) -> tuple[Array, Array]:
    """Estimates the largest singular value of each matrix by power iteration.

    Args:
        matrices: `[K, N, O]`.
        u: an initial vector for each matrix, `[K, O]`.
        steps: number of iterations.
        epsilon: added to the lengths that vectors are divided by.

    Returns:
        u after the iterations, and the singular values `[K]`. They are differentiable with respect to the
        matrices; the vectors count as constants.
    """

    def product(subscripts: str, *operands: Array) -> Array:
        return jnp.einsum(subscripts, *operands, precision=lax.Precision.HIGHEST)

    def unit(a: Array) -> Array:
        return a / (jnp.linalg.norm(a, axis=-1, keepdims=True) + epsilon)

    fixed = lax.stop_gradient(matrices)
    u = lax.stop_gradient(u)
    for _ in range(steps):
        v = unit(product("kno,ko->kn", fixed, u))
        u = unit(product("kno,kn->ko", fixed, v))
    return u, product("kn,kno,ko->k", v, matrices, u)
