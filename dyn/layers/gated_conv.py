"""Hard attention: kernels, filters or slices of a kernel are switched on and off.

Chavan, Tiwari, Bamba, Gupta: Dynamic Kernel Selection for Improved Generalization and Memory Efficiency
in Meta-learning (MetaDOCK). CVPR 2022. https://arxiv.org/abs/2206.01690

`GatedConv(..., granularity='slice', static=True)` has MetaDOCK's gates: one number for each 2-D slice of
the kernel, learned for a task, from U(0, 0.01), with its gradient. Deviations from the authors' code:
gates that depend on the input (supervised, and the default here), gates for whole kernels and filters,
a temperature, a fixed number of gates on, the budget of each layer by itself and without an L1 term,
biases, and no meta-learning: which step updates which parameters is the training's business (the
parameters of the gates are those under `attention`).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn.layers.attention import attention_norm, temperature
from dyn.layers.convolution import ConvLayer
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.dynamic_conv import over_space

Array = jax.Array


class GatedConv(ConvLayer):
    """A convolution whose kernel is made of the parts that are switched on.

        granularity='kernel':  y = conv(x, sum_k m_k W_k)        K gates m
        granularity='filter':  y = m * conv(x, W)                a gate for each output feature
        granularity='slice':   y = conv(x, m * W)                a gate for each input of each filter

    Gates are exactly 0 or 1. In the threshold form, with logits a and temperature T,

        m = 1[a > 0],   dm/da := sigma'(a / T) / T

    (straight-through: the gradient flows through gates that are off, too, and T is annealed); with
    `active=k` the k largest logits are on, always so many, with the same gradient. The logits are
    a = W c + b with c = norm(context), for slices a_io = (W_i c + b_i) + (W_o c + b_o), or with `static=True`
    parameters that no input changes. Gates begin on. Kernels that are on are added and not averaged: use
    a norm behind the layer.

    In the threshold form density_weight * (mean(m) - rho)^2 is sown into `losses` as `density`. The mean
    is over gates and batch, so that easy inputs may use fewer; a ramp of the weight is the training's.

    Compiled code cannot skip what a mask switches off: gates make a model sparse and readable, and
    kernels that are never on can be taken out of the parameters (`prune_kernels`), but a gate by itself
    saves no time. Gates of slices that depend on the input need a kernel for each sample.

    Attributes:
        features: `nn.Conv`'s fields come first, in its order; see `ConvLayer`.
        num_kernels: K, for `granularity='kernel'` (one otherwise); None for as many as the given
            parameters have, after pruning.
        granularity: 'kernel', 'filter' or 'slice'.
        static: whether the gates are parameters, the same for every input.
        active: number of gates that are on; None for a threshold.
        density: rho, the share of gates on that the loss asks for; None for no loss.
        density_weight: factor of that loss.
        initial_logit: the logits' bias at the beginning; not for static gates.
        attention_norm: 'none', 'layer' or 'batch', of the context in front of the logits. A norm keeps
            the logits near zero, where gates have a gradient; not for static gates.
        use_running_average: for 'batch': None uses batch statistics exactly when the collection
            `batch_stats` is mutable.
        lowering: see `dyn.ops.dynamic_conv`; for slices that depend on the input 'auto' is 'taps'.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers.gated_conv import GatedConv
        >>> layer = GatedConv(features=16, kernel_size=(3, 3), num_kernels=4)
        >>> x = jnp.ones((2, 8, 8, 3))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> y, state = layer.apply(variables, x, mutable=["losses", "intermediates"])
        >>> y.shape, state["intermediates"]["attention"]["weights"][0]["kernel"].tolist()
        ((2, 8, 8, 16), [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
        >>> float(state["losses"]["attention"]["density"][0])  # (1 - 0.5)^2
        0.25
    """

    num_kernels: int | None = 4
    granularity: str = "kernel"
    static: bool = False
    active: int | None = None
    density: float | None = 0.5
    density_weight: float = 1.0
    initial_logit: float = 2.0
    attention_norm: str = "none"
    use_running_average: bool | None = None
    lowering: str = "auto"

    @nn.compact
    def __call__(self, inputs: Array, context: Array | None = None) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, *spatial, I]`, any number of batch axes.
            context: what the gates look at, `[*batch, D]`; None for the mean of the inputs over space.

        Returns:
            `[*batch, *out, features]`.

        Raises:
            ValueError: if the kernel, the context or the groups do not fit the inputs, if static gates
                are given a context, or for an unknown granularity or an impossible `active`.
        """
        if self.granularity not in ("kernel", "filter", "slice"):
            raise ValueError(
                f"granularity={self.granularity!r} is unknown: write 'kernel', 'filter' or 'slice'."
            )
        if self.static and context is not None:
            raise ValueError(
                "static gates are the same for every input and look at no context: leave context out, "
                "or write static=False."
            )
        x, batch = self.flat_inputs(inputs)
        kernel = self.candidate_kernels(x, self.kernels_to_choose_from())
        gates = Gates(
            granularity=self.granularity,
            num_kernels=kernel.shape[0],
            in_features=x.shape[-1],
            features=self.features,
            groups=self.feature_group_count,
            active=self.active,
            density=self.density,
            density_weight=self.density_weight,
            initial_logit=self.initial_logit,
            norm=self.attention_norm,
            use_running_average=self.use_running_average,
            dtype=float32_or_wider(x, kernel),
            param_dtype=self.param_dtype,
            name="attention",
        )(None if self.static else self.flat_context(context, x, batch), x.shape[0])

        x = x.astype(self.conv_dtype(x))
        y = self.add_bias(self.gated(x, kernel, gates))
        return y.reshape(*batch, *y.shape[1:])

    def kernels_to_choose_from(self) -> int:
        """K, from the fields or from the parameters given.

        Raises:
            ValueError: if it is left open and there are no parameters.
        """
        if self.granularity != "kernel":
            return 1
        if self.num_kernels is not None:
            return self.num_kernels
        if not self.has_variable("params", "kernel"):
            raise ValueError(
                "num_kernels=None takes the number of kernels from the parameters given, for pruned "
                "ones; to initialise a layer write a number."
            )
        return self.get_variable("params", "kernel").shape[0]

    def gated(self, x: Array, kernel: Array, gates: Array) -> Array:
        """Convolves with what is on.

        Args:
            x: `[B, *spatial, I]`.
            kernel: `[K, *k, I/G, O]`.
            gates: `[B, K]`, `[B, O]` or `[B, I/G, O]`; with a leading 1 for static gates.
        """
        if self.granularity == "filter" and not self.static:
            y = self.convolve(x, kernel, lowering=self.lowering)
            return y * over_space(gates, y)
        if self.granularity == "kernel" and not self.static:
            return self.convolve(x, kernel, gates, lowering=self.lowering)
        wide = kernel.astype(gates.dtype)
        if self.static:
            # No sample has a kernel of its own: gate the kernel, and convolve once.
            if self.granularity == "kernel":
                wide = jnp.sum(
                    wide * gates[0].reshape(-1, *(1,) * (wide.ndim - 1)), 0, keepdims=True
                )
            else:
                wide = wide * gates[0]
            return self.convolve(x, wide, lowering=self.lowering)
        gates = gates.reshape(gates.shape[0], *(1,) * (wide.ndim - 3), *gates.shape[1:])
        return self.convolve_samples(x, lambda gates: wide * gates, (gates,), self.lowering)


class Gates(nn.Module):
    """The gates of `GatedConv` from a context `[B, D]`, or static ones (None): `[B or 1, ...]`.

    Sows them as `weights` under the name of their granularity, and the density loss.
    """

    granularity: str
    num_kernels: int
    in_features: int
    features: int
    groups: int
    active: int | None
    density: float | None
    density_weight: float
    initial_logit: float
    norm: str
    use_running_average: bool | None
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, context: Array | None, batch_size: int) -> Array:
        """Switches kernels, filters or slices on or off."""
        shape = {
            "kernel": (self.num_kernels,),
            "filter": (self.features,),
            "slice": (self.in_features // self.groups, self.features),
        }[self.granularity]
        number = int(np.prod(shape))
        if self.active is not None and not 1 <= self.active <= number:
            raise ValueError(f"active={self.active} of {number} gates cannot be on.")
        if context is None:
            init = nn.initializers.uniform(0.01)
            logits = self.param("gates", init, shape, self.param_dtype).astype(self.dtype)[None]
        else:
            context = attention_norm(
                context.astype(self.dtype),
                self.norm,
                use_running_average=self.use_running_average,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
            )
            logits = self.logits(context)
        gates = hard_gate(
            logits.reshape(-1, number), temperature(self).astype(self.dtype), self.active
        )
        if self.density is not None and not 0 <= self.density <= 1:
            raise ValueError(f"density={self.density} must be a share of the gates, from 0 to 1.")
        if self.active is None and self.density is not None and not self.is_initializing():
            loss = self.density_weight * density_loss(gates, self.density)
            self.sow("losses", "density", loss)
        gates = gates.reshape(-1, *shape)
        for_each = jnp.broadcast_to(gates, (batch_size, *shape))
        self.sow("intermediates", "weights", {self.granularity: for_each})
        return gates

    def logits(self, context: Array) -> Array:
        """The gates' logits, from a context `[B, D]`."""
        if self.granularity == "kernel":
            return self.head("kernel", context, self.num_kernels, self.initial_logit)
        if self.granularity == "filter":
            return self.head("filter", context, self.features, self.initial_logit)
        filters = self.head("filter", context, self.features, self.initial_logit / 2)
        channels = self.head("channel", context, self.in_features, self.initial_logit / 2)
        # Each filter sees the inputs of its own group: [B, G, i] to [B, O, i] to [B, i, O].
        channels = channels.reshape(-1, self.groups, self.in_features // self.groups)
        channels = jnp.repeat(channels, self.features // self.groups, axis=1)
        return jnp.swapaxes(channels, 1, 2) + filters[:, None]

    def head(self, name: str, context: Array, features: int, bias: float) -> Array:
        """W context + b, with b so large at first that the gates begin on."""
        return nn.Dense(
            features,
            kernel_init=nn.initializers.normal(0.1),
            bias_init=nn.initializers.constant(bias),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )(context)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def hard_gate(logits: Array, temperature: Array | float, active: int | None = None) -> Array:
    """Gates that are exactly 0 or 1, with the gradient sigma'(a / T) / T for their logits a.

    Args:
        logits: a, `[..., G]`.
        temperature: T; changes the gradient only, and has none itself.
        active: number of gates on, those of the largest logits; None for 1[a > 0].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers.gated_conv import hard_gate
        >>> hard_gate(jnp.array([-1.0, 0.5, 2.0]), 1.0).tolist()
        [0.0, 1.0, 1.0]
        >>> hard_gate(jnp.array([-1.0, 0.5, 2.0]), 1.0, active=1).tolist()
        [0.0, 0.0, 1.0]
        >>> jax.grad(hard_gate)(jnp.zeros(()), 1.0).tolist()
        0.25
    """
    if active is None:
        return (logits > 0).astype(logits.dtype)
    # Ranks by sorting twice, and not a scatter, which would gather a sharded batch.
    ranks = jnp.argsort(jnp.argsort(logits, axis=-1, descending=True), axis=-1)
    return (ranks < active).astype(logits.dtype)


@hard_gate.defjvp
def _straight_through(active, primals, tangents):
    logits, temperature = primals
    soft = nn.sigmoid(logits / temperature)
    slope = soft * (1 - soft) / temperature
    return hard_gate(logits, temperature, active), slope * tangents[0]


def density_loss(gates: Any, density: float) -> Array:
    """(mean of all gates - rho)^2.

    Args:
        gates: one array of gates, or a tree of the gates of many layers: the mean is over all of them
            together, which is MetaDOCK's budget for the whole network.
        density: rho.
    """
    leaves = jax.tree.leaves(gates)
    mean = sum(jnp.sum(leaf) for leaf in leaves) / sum(leaf.size for leaf in leaves)
    return (mean - density) ** 2


def gate_report(gates: Array) -> dict[str, Array]:
    """What a layer's gates did on the inputs that they were collected from.

    Args:
        gates: `[N, ...]`, zeros and ones, for N inputs: what the layer has sown, over all batches.

    Returns:
        `always_on`, `always_off`, `input_dependent`: for each gate, whether it is; `density`: the share
        of ones; `entropy`: of each gate over the inputs, in bits, averaged over the gates.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.layers.gated_conv import gate_report
        >>> report = gate_report(jnp.array([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
        >>> report["always_on"].tolist(), report["always_off"].tolist()
        ([True, False, False], [False, True, False])
        >>> report["input_dependent"].tolist(), float(report["density"])
        ([False, False, True], 0.5)
    """
    on, off = jnp.all(gates > 0, axis=0), jnp.all(gates == 0, axis=0)
    p = jnp.mean(gates, axis=0, dtype=float32_or_wider(gates))
    entropy = jax.scipy.special.entr(p) + jax.scipy.special.entr(1 - p)
    return {
        "always_on": on,
        "always_off": off,
        "input_dependent": ~(on | off),
        "density": jnp.mean(p),
        "entropy": jnp.mean(entropy) / np.log(2),
    }


def prune_kernels(params: dict[str, Any], gates: Array) -> dict[str, Any]:
    """Takes the kernels that were never on out of the parameters of a layer.

    The outputs stay equal for every input that switches none of them on, those that the gates were
    collected from among them. Apply the layer with `num_kernels=None` (or the new number) to the result;
    a network in which each layer keeps another number takes `conv=partial(GatedConv, num_kernels=None)`.

    Args:
        params: the parameters of one `GatedConv` with `granularity='kernel'`.
        gates: `[N, K]`, what it has sown for N inputs.

    Returns:
        The parameters with fewer kernels; at least one stays, and with `active=k` at least k do.

    Raises:
        ValueError: if the parameters are those of another layer or granularity.
    """
    kernel, attention = params["kernel"], params.get("attention", {})
    if (
        gates.ndim != 2
        or gates.shape[1] != kernel.shape[0]
        or not {"kernel", "gates"} & set(attention)
    ):
        raise ValueError(
            "prune_kernels takes the parameters of a GatedConv with granularity='kernel' and its gates "
            f"[N, K]; got a kernel of shape {kernel.shape} and gates of shape {gates.shape}."
        )
    used = np.asarray(gates > 0).any(axis=0)
    used = np.flatnonzero(used) if used.any() else np.arange(1)
    # The gates' parameters have the kernels along their last axis.
    attention = jax.tree.map(lambda leaf: leaf[..., used], attention)
    return {**params, "kernel": kernel[used], "attention": attention}
