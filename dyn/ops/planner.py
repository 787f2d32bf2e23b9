"""Which lowering: a cost model over static shapes and the platform.

The time of a training step (forward and backward) of a lowering is estimated as a sum over the kinds of
work it does, each at a price. The prices are a platform's, and each platform's say where they come from.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax

from dyn.ops import lowerings
from dyn.ops.window import Window


class Kinds(NamedTuple):
    """Amounts of each kind of work, or seconds for one of each.

    Attributes:
        product: FLOP of dense products.
        grouped: FLOP of products cut into groups.
        cramped: FLOP of convolutions whose output has fewer positions than the kernel.
        inputs: bytes of inputs as the product sees them: patches, where it is one of matrices.
        kernels: bytes of kernels of each sample.
        outputs: bytes of what products give: of each candidate kernel, where its outputs are mixed.
        weights: bytes of candidate kernels, as often as they are gone through.
        turns: turns of a loop.
    """

    product: float = 0.0
    grouped: float = 0.0
    cramped: float = 0.0
    inputs: float = 0.0
    kernels: float = 0.0
    outputs: float = 0.0
    weights: float = 0.0
    turns: float = 0.0


@dataclasses.dataclass(frozen=True)
class Prices:
    """Seconds for one of each kind of work, by lowering, and where the numbers come from."""

    source: str
    loops: bool  # whether samples one after another are worth considering
    of: dict[str, Kinds]


def from_data_sheet(flops: float, batched: float, memory: float) -> dict[str, Kinds]:
    """Prices from FLOP/s of a large product and of one for each sample, and B/s of intermediates."""
    byte = 1 / memory
    large = Kinds(1 / flops, 1 / batched, 1 / flops, byte, byte, byte, byte)
    small = large._replace(product=1 / batched, cramped=1 / batched)
    return {
        "taps": small._replace(kernels=1.2 * byte),
        "patches": small,
        "outputs": large,
        "shared": large,
        "samples": small,
    }


PRICES = {
    "cpu": Prices(
        source="python -m experiments.benchmarks.lowerings --fit, two x86-64 cores, float32",
        loops=True,
        of={
            "taps": Kinds(
                product=4.8e-12,
                grouped=3e-12,
                inputs=1.2e-9,
                kernels=3.7e-10,
                outputs=1.3e-10,
                weights=4.3e-10,
                turns=1.6e-05,
            ),
            "patches": Kinds(
                product=6.6e-12,
                grouped=3.6e-11,
                inputs=2.1e-10,
                kernels=6.9e-10,
                outputs=2e-10,
                weights=3e-11,
            ),
            "outputs": Kinds(
                product=5.7e-12, grouped=1.2e-9, cramped=8.3e-11, outputs=1.8e-9, weights=2.9e-10
            ),
            "shared": Kinds(
                product=5e-12, grouped=2.9e-11, inputs=4.2e-10, outputs=3.6e-10, weights=2.7e-10
            ),
            "samples": Kinds(
                product=6.1e-12,
                grouped=3.3e-11,
                inputs=1.9e-10,
                kernels=2.8e-10,
                outputs=4.4e-10,
                weights=7.9e-11,
                turns=0.00012,
            ),
        },
    ),
    # Not measured: about half of an accelerator's data-sheet figures for arithmetic in bfloat16, and
    # memory traffic of six passes over each intermediate.
    "gpu": Prices(
        source="not measured; from data-sheet figures of an 80 GB data-centre GPU",
        loops=False,
        of=from_data_sheet(flops=300e12, batched=200e12, memory=400e9),
    ),
    "tpu": Prices(
        source="not measured; from data-sheet figures of one TPU v4 chip",
        loops=False,
        of=from_data_sheet(flops=140e12, batched=70e12, memory=200e9),
    ),
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one lowering would cost, or why it cannot be used."""

    lowering: str
    flops: float = 0.0
    bytes: float = 0.0
    seconds: float = math.inf
    why_not: str | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The estimates of all lowerings, cheapest first, and the choice."""

    platform: str
    case: str
    estimates: tuple[Estimate, ...]

    @property
    def choice(self) -> str:
        """The name of the cheapest lowering that can be used."""
        return self.estimates[0].lowering

    def __str__(self) -> str:
        lines = [f"dynamic_conv on {self.platform}: {self.case}"]
        for e in self.estimates:
            mark = "->" if e is self.estimates[0] else "  "
            what = e.why_not or (
                f"{e.seconds * 1e3:10.3f} ms predicted  {e.flops / 1e9:10.3f} GFLOP  "
                f"{e.bytes / 1e6:10.1f} MB of intermediates"
            )
            lines.append(f"{mark} {e.lowering:<10}{what}")
        lines.append(f"   prices: {PRICES[self.platform].source}")
        return "\n".join(lines)


_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def planned_for(platform: str) -> Iterator[None]:
    """Within it, what is traced is planned for another platform than the one JAX runs on.

    Args:
        platform: 'cpu', 'gpu' (or 'cuda', 'rocm') or 'tpu'.
    """
    token = _PLATFORM.set(platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def plan(
    inputs: tuple[int, ...],
    kernels: tuple[int, ...],
    window: Window,
    *,
    pixelwise: bool,
    mixed: bool,
    tap_attention: bool,
    itemsize: int = 4,
    platform: str | None = None,
) -> Plan:
    """Estimates every lowering of one dynamic convolution, cheapest first.

    Args:
        inputs: shape `[B, *spatial, I]`; an unknown (symbolic) batch counts as 32.
        kernels: shape `[K, *k, I/G, O]`.
        window: strides, padding, dilation and groups.
        pixelwise: whether the mixture differs between output positions.
        mixed: whether there is a mixture at all (K > 1, or a weight for the only kernel).
        tap_attention: whether kernel positions are weighed for each sample.
        itemsize: bytes of a number.
        platform: 'cpu', 'gpu' or 'tpu'; None for the one JAX runs on.
    """
    platform = _known(platform)
    prices = PRICES[platform]
    no_loop = why_no_loop(platform)

    def estimate(name: str) -> Estimate:
        if why := lowerings.unable(name, pixelwise=pixelwise, tap_attention=tap_attention):
            return Estimate(name, why_not=why)
        if name == "reference":
            why = "for tests: a slow gradient, and it gathers the batch"
            return Estimate(name, why_not=why)
        if name == "samples" and no_loop:
            return Estimate(name, why_not=no_loop)
        kinds = work(
            name,
            inputs,
            kernels,
            window,
            mixed=mixed,
            tap_attention=tap_attention,
            itemsize=itemsize,
        )
        flops = kinds.product + kinds.grouped + kinds.cramped
        size = kinds.inputs + kinds.kernels + kinds.outputs
        seconds = sum(a * b for a, b in zip(kinds, prices.of[name], strict=True))
        return Estimate(name, float(flops), float(size), seconds)

    estimates = sorted(map(estimate, lowerings.LOWERINGS), key=lambda e: e.seconds)
    case = (
        f"inputs {inputs}, kernels {kernels}, {'pixel-wise ' if pixelwise else ''}mixture "
        f"{'yes' if mixed else 'no'}, tap attention {'yes' if tap_attention else 'no'}"
    )
    return Plan(platform, case, tuple(estimates))


def work(
    lowering: str,
    inputs: tuple[int, ...],
    kernels: tuple[int, ...],
    window: Window,
    *,
    mixed: bool,
    tap_attention: bool,
    itemsize: int = 4,
) -> Kinds:
    """What a training step of a lowering has to do, the same for all platforms; arguments as of `plan`."""
    batch = lowerings.usual(inputs[0])
    num_kernels, features = kernels[0], kernels[-1]
    positions = math.prod(window.output_shape(inputs[1:-1]))
    one_kernel = math.prod(kernels[1:])
    own_kernels = lowering in ("taps", "patches", "samples")

    # Backward is two more products of forward's size.
    flops = 3 * 2 * batch * positions * one_kernel * (1 if own_kernels else num_kernels)
    kind = "product" if window.groups == 1 else "grouped"
    if lowering == "outputs":
        seen = batch * (math.prod(inputs[1:]) + positions * features)
        kind = "cramped" if positions < window.taps else kind
    else:
        seen = batch * positions * window.taps * inputs[-1]
    scaled = 2 if lowering == "shared" and tap_attention else 1  # patches, and patches weighed
    match lowering:
        case "taps":
            loop = window.taps
        case "samples":
            loop = lowerings.turns((batch, *inputs[1:]), kernels[1:], window, itemsize)
        case _:
            loop = 0
    own = own_kernels and (mixed or tap_attention)
    return Kinds(
        **{kind: flops},
        inputs=itemsize * seen * scaled,
        kernels=itemsize * batch * one_kernel if own else 0,
        outputs=itemsize * batch * positions * features * (num_kernels if not own_kernels else 1),
        weights=itemsize * num_kernels * one_kernel * (loop if lowering == "samples" else 1),
        turns=loop,
    )


def why_no_loop(platform: str | None = None) -> str | None:
    """Why samples should not come one after another on a platform; None where they may."""
    if not PRICES[_known(platform)].loops:
        return "one sample at a time leaves an accelerator idle"
    if jax.device_count() > 1:
        return "a loop over samples gathers a batch that is sharded"
    return None


def _known(platform: str | None) -> str:
    """The platform that has prices for this one; None is that of `planned_for`, or the one JAX runs on."""
    platform = platform or _PLATFORM.get() or jax.default_backend()
    platform = {"cuda": "gpu", "rocm": "gpu"}.get(platform, platform)
    return platform if platform in PRICES else "gpu"
