"""Which lowering: a cost model over static shapes and the platform.

The time of a training step (forward and backward) is estimated as floating point work over the rate of
the kind of work it is, plus the size of each large intermediate over the rate at which such are written,
read and differentiated. The rates are few, and each platform's say where they come from.
"""

import dataclasses
import math

import jax

from dyn.ops import lowerings
from dyn.ops.window import Window


@dataclasses.dataclass(frozen=True)
class Rates:
    """How fast a platform does each kind of work. Bytes are counted once for each intermediate.

    Attributes:
        source: where the numbers come from.
        convolution: FLOP/s of a dense convolution.
        matmul: FLOP/s of one large matrix product.
        batched: FLOP/s of a matrix product for each sample.
        looped: FLOP/s of convolutions one sample at a time; 0 where that is not to be considered.
        patches: B/s for the shifted or stacked inputs.
        kernels: B/s for kernels of each sample; halved by tap attention.
        small_kernels: how many times faster that is for less than `small` bytes of them.
        small: bytes that stay in a cache, and need no fresh pages from the system.
        outputs: B/s for the outputs of each candidate kernel.
        iteration: seconds that each turn of a loop over samples costs by itself.
        small_picture: how much slower a convolution is whose output has fewer positions than its kernel.
    """

    source: str
    convolution: float
    matmul: float
    batched: float
    looped: float
    patches: float
    kernels: float
    small_kernels: float
    small: float
    outputs: float
    iteration: float
    small_picture: float


RATES = {
    "cpu": Rates(
        source="fitted to experiments.benchmarks.lowerings on two x86-64 cores, float32",
        convolution=120e9,
        matmul=150e9,
        batched=110e9,
        looped=60e9,
        patches=0.9e9,
        kernels=0.4e9,
        # Of a few shapes on one core; larger arrays are fresh pages from the system at every step.
        small_kernels=8.0,
        small=32e6,
        outputs=0.4e9,
        iteration=60e-6,
        small_picture=20.0,
    ),
    # Not measured: about half of an accelerator's data-sheet figures for arithmetic in bfloat16, and
    # memory traffic of six passes over each intermediate.
    "gpu": Rates(
        source="not measured; from data-sheet figures of an 80 GB data-centre GPU",
        convolution=300e12,
        matmul=300e12,
        batched=200e12,
        looped=0.0,
        patches=400e9,
        kernels=400e9,
        small_kernels=1.0,
        small=0.0,
        outputs=400e9,
        iteration=0.0,
        small_picture=1.0,
    ),
    "tpu": Rates(
        source="not measured; from data-sheet figures of one TPU v4 chip",
        convolution=140e12,
        matmul=140e12,
        batched=70e12,
        looped=0.0,
        patches=200e9,
        kernels=200e9,
        small_kernels=1.0,
        small=0.0,
        outputs=200e9,
        iteration=0.0,
        small_picture=1.0,
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
        lines.append(f"   rates: {RATES[self.platform].source}")
        return "\n".join(lines)


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
    platform = platform or jax.default_backend()
    platform = {"cuda": "gpu", "rocm": "gpu"}.get(platform, platform)
    rates = RATES.get(platform, RATES["gpu"])
    batch = inputs[0] if isinstance(inputs[0], int) else 32
    num_kernels, features = kernels[0], kernels[-1]
    positions = math.prod(window.output_shape(inputs[1:-1]))
    one_kernel = math.prod(kernels[1:])

    # Backward is two more products of forward's size.
    convolution = 3 * 2 * batch * positions * one_kernel
    aggregation = 3 * 2 * batch * num_kernels * one_kernel if mixed and num_kernels > 1 else 0
    patches = itemsize * batch * positions * window.taps * inputs[-1]
    sample_kernels = itemsize * batch * one_kernel if mixed or tap_attention else 0
    candidates = itemsize * batch * positions * features * num_kernels if mixed else 0
    kernel_rate = rates.kernels * (rates.small_kernels if sample_kernels < rates.small else 1)
    kernel_seconds = aggregation / rates.matmul
    kernel_seconds += (2 if tap_attention else 1) * sample_kernels / kernel_rate
    small = rates.small_picture if positions < window.taps else 1.0

    def estimate(name: str) -> Estimate:
        if why := lowerings.unable(name, pixelwise=pixelwise, tap_attention=tap_attention):
            return Estimate(name, why_not=why)
        match name:
            case "reference":
                return Estimate(
                    name, why_not="for tests: a slow gradient, and it gathers the batch"
                )
            case "samples" if not rates.looped:
                return Estimate(name, why_not="one sample at a time leaves an accelerator idle")
            case "samples" if jax.device_count() > 1:
                return Estimate(name, why_not="a loop over samples gathers a batch that is sharded")
            case "taps":
                flops, size = convolution + aggregation, patches + sample_kernels
                # Nothing is stacked, but every kernel is cut into taps.
                seconds = convolution / rates.batched + 0.8 * patches / rates.patches
                seconds += 1.2 * kernel_seconds
            case "patches":
                flops, size = convolution + aggregation, patches + sample_kernels
                seconds = convolution / rates.batched + patches / rates.patches + kernel_seconds
            case "outputs":
                flops, size = num_kernels * convolution, candidates
                seconds = flops / rates.convolution * small + candidates / rates.outputs
            case "shared":
                scaled = patches * (2 if tap_attention else 1)
                flops, size = num_kernels * convolution, scaled + candidates
                seconds = flops / rates.matmul + scaled / rates.patches + candidates / rates.outputs
            case "samples":
                flops, size = convolution + aggregation, sample_kernels
                seconds = convolution / rates.looped + kernel_seconds + batch * rates.iteration
        return Estimate(name, float(flops), float(size), seconds)

    estimates = sorted(map(estimate, lowerings.LOWERINGS), key=lambda e: e.seconds)
    case = (
        f"inputs {inputs}, kernels {kernels}, {'pixel-wise ' if pixelwise else ''}mixture "
        f"{'yes' if mixed else 'no'}, tap attention {'yes' if tap_attention else 'no'}"
    )
    return Plan(platform, case, tuple(estimates))
