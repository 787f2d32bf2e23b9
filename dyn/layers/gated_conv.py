"""Hard attention: switches kernels, filters or slices of a kernel on and off.

Chavan, Tiwari, Bamba, Gupta: Dynamic Kernel Selection for Improved Generalization and Memory Efficiency
in Meta-learning (MetaDOCK). CVPR 2022. https://arxiv.org/abs/2206.01690

`GatedConv(..., granularity='slice', static=True)` has MetaDOCK's gates: one number for each 2-D slice of
the kernel, initialised from U(0, 0.01) and learned per task, with MetaDOCK's gradient. Deviations from the
authors' code: gates that depend on the input (supervised, and the default here), gates for whole kernels
and filters, a temperature, a fixed number of gates on, a separate budget for each layer without an L1
term, biases, and no meta-learning: the training loop decides which step updates which parameters (those
of the gates are under `attention`).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dyn.layers.attention import AttentionBranch
from dyn.layers.convolution import ConvLayer
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.dynamic_conv import expand_over_space
from dyn.ops.sharding import automate_sharding, mesh_axes

Array = jax.Array


class GatedConv(ConvLayer):
    """Convolves with those parts of its kernel that are switched on.

        granularity='kernel':  y = conv(x, sum_k m_k W_k)        K gates m
        granularity='filter':  y = m * conv(x, W)                a gate for each output feature
        granularity='slice':   y = conv(x, m * W)                a gate for each input of each filter

    Gates are exactly 0 or 1. In the threshold form, with logits a and temperature T,

        m = 1[a > 0],   dm/da := sigma'(a / T) / T

    (straight-through: the gradient also flows through gates that are off, and T is annealed); with
    `active=k` exactly the k gates with the largest logits are on, with the same gradient. The logits are
    a = W c + b with c = norm(context), for slices a_io = (W_i c + b_i) + (W_o c + b_o), or with `static=True`
    parameters that do not depend on the input. Gates start on. Kernels that are on are added, not averaged:
    use a norm after the layer.

    In the threshold form density_weight * (mean(m) - rho)^2 is sown into `losses` as `density`. The mean
    is over gates and batch, so that easy inputs may use fewer; the training loop may ramp the weight up.

    Compiled code cannot skip what a mask switches off: gates make a model sparse and readable, and
    kernels that are never on can be removed from the parameters (`prune_kernels`), but a gate alone saves
    no time. Slices whose gates depend on the input need a kernel per sample.

    Attributes:
        features: number of output features; `nn.Conv`'s other fields follow, see `ConvLayer`.
        num_kernels: K, for `granularity='kernel'` (one otherwise).
        granularity: 'kernel', 'filter' or 'slice'.
        static: whether the gates are parameters, the same for every input.
        active: number of gates that are on; None for a threshold.
        density: rho, the share of gates on that the loss asks for; None for no loss.
        density_weight: factor of that loss.
        initial_logit: initial bias of the logits; not for static gates.
        attention_norm: 'none', 'layer' or 'batch', applied to the context before the logits. A norm keeps
            the logits near zero, where gates have a gradient; not for static gates.
        use_running_average: for 'batch': None uses batch statistics exactly when the collection
            `batch_stats` is mutable.
        pruned: whether to read K from the parameters that the layer is applied to, see `prune_kernels`; a
            layer without gates among them is an ordinary convolution.
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

    num_kernels: int = 4
    granularity: str = "kernel"
    static: bool = False
    active: int | None = None
    density: float | None = 0.5
    density_weight: float = 1.0
    initial_logit: float = 2.0
    attention_norm: str = "none"
    use_running_average: bool | None = None
    pruned: bool = False
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
            ValueError: if the kernel, the context or the groups do not fit the inputs, for a context with
                static gates, for an unknown granularity, or for an impossible `active`.
        """
        if self.granularity not in ("kernel", "filter", "slice"):
            raise ValueError(
                f"granularity={self.granularity!r} is unknown: write 'kernel', 'filter' or 'slice'."
            )
        if self.static and context is not None:
            raise ValueError(
                "static gates do not depend on the input: leave context out, or write static=False."
            )
        x, batch = self.flatten_inputs(inputs)
        kernel = self.make_candidates(x, self.count_candidates())
        if self.pruned and not self.has_variable("params", "attention"):
            x = x.astype(self.conv_dtype(x))
            y = self.add_bias(self.convolve(x, kernel, lowering=self.lowering))
            return y.reshape(*batch, *y.shape[1:])
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
        )(None if self.static else self.flatten_context(context, x, batch), x.shape[0])

        x = x.astype(self.conv_dtype(x))
        y = self.add_bias(self.convolve_gated(x, kernel, gates))
        return y.reshape(*batch, *y.shape[1:])

    def count_candidates(self) -> int:
        """Returns K, from the fields or from the parameters.

        Raises:
            ValueError: if they should be, and there are no parameters yet.
        """
        if self.granularity != "kernel":
            return 1
        if not self.pruned:
            return self.num_kernels
        if not self.has_variable("params", "kernel"):
            raise ValueError(
                "pruned=True reads the number of kernels from pruned parameters; initialise a layer "
                "without it."
            )
        return self.get_variable("params", "kernel").shape[0]

    def convolve_gated(self, x: Array, kernel: Array, gates: Array) -> Array:
        """Convolves with the kernels, filters or slices whose gate is 1.

        Args:
            x: `[B, *spatial, I]`.
            kernel: `[K, *k, I/G, O]`.
            gates: `[B, K]`, `[B, O]` or `[B, I/G, O]`; with a leading 1 for static gates.
        """
        wide = kernel.astype(gates.dtype)
        if self.static:
            # All samples share a kernel: gate it, and convolve once.
            if self.granularity == "kernel":
                by_kernel = gates[0].reshape(-1, *(1,) * (wide.ndim - 1))
                wide = jnp.sum(wide * by_kernel, 0, keepdims=True)
            else:
                wide = wide * lax.broadcast_to_rank(gates[0], wide.ndim)
            return self.convolve(x, wide, lowering=self.lowering)
        if self.granularity == "filter":
            y = self.convolve(x, kernel, lowering=self.lowering)
            return y * expand_over_space(gates, y)
        if self.granularity == "kernel":
            return self.convolve(x, kernel, gates, lowering=self.lowering)
        gates = gates.reshape(gates.shape[0], *(1,) * (wide.ndim - 3), *gates.shape[1:])
        return self.convolve_samples(x, gate_kernels, (gates,), (wide,), self.lowering)


def gate_kernels(gates: Array, kernel: Array) -> Array:
    """Multiplies one kernel by the gates of its slices, for each sample."""
    return kernel * gates


class Gates(AttentionBranch):
    """Computes the gates of `GatedConv`, `[B or 1, ...]`, from a context `[B, D]`, or None for static ones.

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
            raise ValueError(
                f"active={self.active} must be from 1 to {number}, the number of gates."
            )
        if self.density is not None and not 0 <= self.density <= 1:
            raise ValueError(f"density={self.density} must be a share of the gates, from 0 to 1.")
        if context is None:
            init = nn.initializers.uniform(0.01)
            logits = self.param("gates", init, shape, self.param_dtype).astype(self.dtype)[None]
        else:
            logits = self.compute_logits(self.normalise(context.astype(self.dtype)))
        gates = hard_gate(logits.reshape(-1, number), self.read_temperature(), self.active)
        if self.active is None and self.density is not None and not self.is_initializing():
            loss = self.density_weight * density_loss(gates, self.density)
            self.sow("losses", "density", loss)
        gates = gates.reshape(-1, *shape)
        per_sample = jnp.broadcast_to(gates, (batch_size, *shape))
        self.sow_weights(**{self.granularity: per_sample})
        return gates

    def compute_logits(self, context: Array) -> Array:
        """Returns the gates' logits, from a context `[B, D]`."""
        if self.granularity == "kernel":
            return self.apply_gate_head("kernel", context, self.num_kernels, self.initial_logit)
        if self.granularity == "filter":
            return self.apply_gate_head("filter", context, self.features, self.initial_logit)
        half = self.initial_logit / 2
        filters = self.apply_gate_head("filter", context, self.features, half)
        channels = self.apply_gate_head("channel", context, self.in_features, half)

        def add(channels: Array, filters: Array) -> Array:
            # Each filter sees the inputs of its group: [B, G, i] to [B, O, i] to [B, i, O].
            channels = channels.reshape(-1, self.groups, self.in_features // self.groups)
            channels = jnp.repeat(channels, self.features // self.groups, axis=1)
            return jnp.swapaxes(channels, 1, 2) + filters[:, None]

        return automate_sharding(add, channels, filters)

    def apply_gate_head(self, name: str, context: Array, features: int, bias: float) -> Array:
        """Computes W context + b, where b starts large enough for the gates to be on."""
        small, constant = nn.initializers.normal(0.1), nn.initializers.constant(bias)
        return self.apply_head(name, context, features, kernel_init=small, bias_init=constant)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def hard_gate(logits: Array, temperature: Array | float, active: int | None = None) -> Array:
    """Returns gates that are exactly 0 or 1, with the gradient sigma'(a / T) / T for their logits a.

    Args:
        logits: a, `[..., G]`.
        temperature: T; it only scales the gradient, and has none itself.
        active: number of gates on, those with the largest logits; None for 1[a > 0].

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

    def rank(logits: Array) -> Array:
        # By sorting twice, because a scatter would gather a sharded batch.
        return jnp.argsort(jnp.argsort(logits, axis=-1, descending=True), axis=-1)

    ranks = automate_sharding(rank, logits, axes=mesh_axes(logits))
    return (ranks < active).astype(logits.dtype)


@hard_gate.defjvp
def _straight_through(active, primals, tangents):
    logits, temperature = primals
    soft = nn.sigmoid(logits / temperature)
    slope = soft * (1 - soft) / temperature
    return hard_gate(logits, temperature, active), slope * tangents[0]


def density_loss(gates: Any, density: float) -> Array:
    """Returns (mean of all gates - rho)^2, and 0 for no gates: those of an empty batch.

    Args:
        gates: an array of gates, or a tree of the gates of many layers, whose mean over all of them is
            MetaDOCK's budget for the whole network.
        density: rho.
    """
    leaves = jax.tree.leaves(gates)
    total: Any = sum(jnp.sum(leaf) for leaf in leaves)
    number = sum(leaf.size for leaf in leaves)
    # Times zero, it keeps the type and the devices of the gates.
    return (total / number - density) ** 2 if number else 0.0 * total


def gate_report(gates: Array) -> dict[str, Array]:
    """Summarises a layer's gates over the inputs that they were collected from.

    Args:
        gates: `[N, ...]`, zeros and ones, for N inputs: the sown gates of all batches.

    Returns:
        `always_on`, `always_off`, `input_dependent`: a truth value for each gate; `density`: the share of
        ones; `entropy`: entropy of a gate over the inputs in bits, averaged over the gates.

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


def prune_kernels(params: dict[str, Any], gates: Array, *, merge: bool = False) -> dict[str, Any]:
    """Removes the kernels that were never on from the parameters of a layer, and may add up others.

    Outputs stay equal, up to rounding, for every input with gates as those that were collected: where none
    of the removed kernels is on, and all of the merged ones are. Apply `GatedConv(..., pruned=True)` to the
    result, in all layers of a network.

    Args:
        params: the parameters of one `GatedConv` with `granularity='kernel'`.
        gates: `[N, K]`, the gates that it has sown for N inputs.
        merge: whether kernels that were always on become one, their sum; if there are no others, the gates go
            as well. Not for layers with `active=k`, which count the kernels that are on.

    Returns:
        The parameters with fewer kernels; at least one stays, and with `active=k` at least k do.

    Raises:
        ValueError: if the parameters belong to another layer or granularity.
    """
    kernel, attention = params["kernel"], params.get("attention", {})
    heads = {name: attention[name] for name in ("kernel", "gates") if name in attention}
    # The gates' logits have the kernels along their last axis; two axes would be several layers.
    sizes = {leaf.shape[-1] for leaf in jax.tree.leaves(heads)}
    stacked = min((leaf.ndim for leaf in jax.tree.leaves(heads)), default=1) > 1
    if gates.ndim != 2 or stacked or sizes != {kernel.shape[0]} or sizes != {gates.shape[1]}:
        raise ValueError(
            "prune_kernels needs the parameters of a GatedConv with granularity='kernel' and its gates "
            f"[N, K]; got a kernel of shape {kernel.shape} and gates of shape {gates.shape}."
        )
    on = np.asarray(gates > 0)
    used = np.flatnonzero(on.any(axis=0)) if on.any() else np.arange(1)
    always = np.flatnonzero(on.all(axis=0)) if merge else used[:0]
    if len(always):
        used = np.array([always[0], *(k for k in used if k not in always)])
        kernel = jnp.asarray(kernel).at[always[0]].set(kernel[always].sum(axis=0))
    if len(always) and len(used) == 1:
        return {name: value for name, value in params.items() if name != "attention"} | {
            "kernel": kernel[used]
        }
    heads = jax.tree.map(lambda leaf: leaf[..., used], heads)
    return {**params, "kernel": kernel[used], "attention": {**attention, **heads}}
