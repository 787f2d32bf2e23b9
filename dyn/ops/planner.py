"""Chooses a lowering by a cost model over static shapes and the platform.

The time of a training step (forward and backward) is estimated as a sum over the kinds of work that a
lowering does, each at a price. Each platform has prices of its own, and a note on their source.
"""

import dataclasses
import math
from typing import NamedTuple

import jax

from dyn.ops import lowerings
from dyn.ops.geometry import Problem
from dyn.ops.platforms import check_platform, find_platform


class Work(NamedTuple):
    """Amounts of each kind of work, or the seconds that one unit of each takes.

    Attributes:
        product: FLOP of dense products.
        grouped: FLOP of products cut into groups.
        cramped: FLOP of convolutions whose output has fewer positions than the kernel.
        inputs: bytes of the products' left operands: the inputs, or their patches.
        kernels: bytes of per-sample kernels.
        outputs: bytes of the products' results, for each candidate whose outputs are mixed.
        weights: bytes of candidate kernels, counted each time they are read.
        iterations: iterations of a loop.
    """

    product: float = 0.0
    grouped: float = 0.0
    cramped: float = 0.0
    inputs: float = 0.0
    kernels: float = 0.0
    outputs: float = 0.0
    weights: float = 0.0
    iterations: float = 0.0


@dataclasses.dataclass(frozen=True)
class Prices:
    """Seconds per unit of each kind of work, by lowering, and the source of the numbers."""

    source: str
    loops: bool  # whether handling a few samples at a time can pay off
    of: dict[str, Work]


def estimate_prices(flops: float, batched: float, memory: float) -> dict[str, Work]:
    """Estimates prices from FLOP/s of a large product and of per-sample products, and B/s of memory."""
    byte = 1 / memory
    large = Work(1 / flops, 1 / batched, 1 / flops, byte, byte, byte, byte)
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
            "taps": Work(
                product=4.8e-12,
                grouped=3e-12,
                inputs=1.2e-9,
                kernels=3.7e-10,
                outputs=1.3e-10,
                weights=4.3e-10,
                iterations=1.6e-05,
            ),
            "patches": Work(
                product=6.6e-12,
                grouped=3.6e-11,
                inputs=2.1e-10,
                kernels=6.9e-10,
                outputs=2e-10,
                weights=3e-11,
            ),
            "outputs": Work(
                product=5.7e-12, grouped=1.2e-9, cramped=8.3e-11, outputs=1.8e-9, weights=2.9e-10
            ),
            "shared": Work(
                product=5e-12, grouped=2.9e-11, inputs=4.2e-10, outputs=3.6e-10, weights=2.7e-10
            ),
            "samples": Work(
                product=6.1e-12,
                grouped=3.3e-11,
                inputs=1.9e-10,
                kernels=2.8e-10,
                outputs=4.4e-10,
                weights=7.9e-11,
                iterations=0.00012,
            ),
        },
    ),
    # Bytes: those that steps compiled for an H100 move, a fit over stages of a ResNet with K = 4 at
    # batch 128, divided by 3.35 TB/s. Arithmetic: half of the data sheet's in bfloat16, a third per sample.
    "gpu": Prices(
        source="bytes moved by programs compiled for an H100; no time was measured",
        loops=False,
        of={
            "reference": Work(product=3e-15, cramped=3e-15, inputs=2.3e-12, kernels=7.5e-12),
            "taps": Work(
                *(3e-15, 3e-15, 3e-15),
                inputs=3.3e-12,
                kernels=4.8e-12,
                outputs=2e-12,
                iterations=1e-5,
            ),
            "patches": Work(*(3e-15, 3e-15, 3e-15), inputs=1.7e-12, kernels=4.8e-12, outputs=2e-12),
            "outputs": Work(*(2e-15, 3e-15, 2e-15), outputs=3.6e-12),
            "shared": Work(*(2e-15, 3e-15, 2e-15), inputs=1.4e-12, outputs=3.1e-12),
            "samples": Work(*(3e-15, 3e-15, 3e-15), inputs=1.7e-12, kernels=4.8e-12, outputs=2e-12),
        },
    ),
    # Not measured, but about half of an accelerator's data-sheet figures for arithmetic in bfloat16, and
    # memory traffic of six passes over each intermediate.
    # 'fused' from the schedules of the kernel for ResNet-18's four stages on a v5e, 128 pictures in bfloat16:
    # the matrix unit at 75 % of its peak; candidates are mixed at 3e-13 seconds a byte, three times.
    "tpu": Prices(
        source="'fused': its final schedules on a v5e; others: data-sheet figures of one TPU v4 chip",
        loops=False,
        of=estimate_prices(flops=140e12, batched=70e12, memory=200e9)
        | {"fused": Work(product=1 / 150e12, inputs=5e-12, kernels=3e-13, outputs=5e-12)},
    ),
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimated cost of one lowering, or why it cannot be used."""

    lowering: str
    flops: float = 0.0
    bytes: float = 0.0
    seconds: float = math.inf
    why_not: str | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The estimates of all lowerings, cheapest first."""

    platform: str
    case: str
    estimates: tuple[Estimate, ...]

    @property
    def choice(self) -> str:
        """Name of the cheapest lowering that can be used."""
        return self.estimates[0].lowering

    def __str__(self) -> str:
        lines = [f"dynamic_conv on {self.platform}: {self.case}"]
        for e in self.estimates:
            mark = "->" if e is self.estimates[0] else "  "
            cost = e.why_not or (
                f"{e.seconds * 1e3:10.3f} ms predicted  {e.flops / 1e9:10.3f} GFLOP  "
                f"{e.bytes / 1e6:10.1f} MB of intermediates"
            )
            lines.append(f"{mark} {e.lowering:<10}{cost}")
        lines.append(f"   prices: {PRICES[self.platform].source}")
        return "\n".join(lines)


def find_prices(platform: str | None = None) -> Prices:
    """Returns the prices on a platform; None for the one that is planned for."""
    return PRICES[_priced_platform(platform)]


def plan(problem: Problem, platform: str | None = None) -> Plan:
    """Estimates every lowering of one dynamic convolution, cheapest first.

    Args:
        problem: the convolution; a symbolic batch counts as 32.
        platform: as in `plan_for_platform`; None for the one that is planned for.

    Raises:
        ValueError: for an unknown platform.
    """
    if platform is not None:
        check_platform(platform)
    named = platform or find_platform()  # ONNX has the prices of a TPU, and not its kernel
    platform = _priced_platform(named)
    prices = PRICES[platform]
    no_loop = why_no_loop(platform)

    def estimate(name: str) -> Estimate:
        if why := why_impossible(name, problem, named):
            return Estimate(name, why_not=why)
        if name == "fused" and (why := why_no_kernel(problem, platform)):
            return Estimate(name, why_not=why)
        if name == "reference" and (why := why_no_reference(problem, platform)):
            return Estimate(name, why_not=why)
        if name == "samples" and no_loop:
            return Estimate(name, why_not=no_loop)
        work = count_work(name, problem)
        flops = work.product + work.grouped + work.cramped
        size = work.inputs + work.kernels + work.outputs
        seconds = sum(amount * price for amount, price in zip(work, prices.of[name], strict=True))
        return Estimate(name, float(flops), float(size), seconds)

    estimates = sorted(map(estimate, lowerings.LOWERINGS), key=lambda e: e.seconds)
    case = (
        f"inputs {problem.inputs}, kernels {problem.kernels}, "
        f"{'pixel-wise ' if problem.pixelwise else ''}mixture {'yes' if problem.mixed else 'no'}, "
        f"tap attention {'yes' if problem.tap_attention else 'no'}"
    )
    return Plan(platform, case, tuple(estimates))


def count_work(lowering: str, problem: Problem) -> Work:
    """Counts the work of a training step of a lowering, which is the same on all platforms."""
    geometry, itemsize = problem.geometry, problem.itemsize
    batch, positions = lowerings.batch_or_default(problem.batch), geometry.positions
    num_kernels, features = problem.kernels[0], problem.kernels[-1]
    one_kernel = math.prod(problem.kernels[1:])
    mixes_kernels = lowering not in ("outputs", "shared") and not problem.pixelwise
    products = 1 if mixes_kernels else num_kernels
    written = 1 if lowering == "fused" else products

    # The backward pass is two more products of the forward pass's size.
    flops = 3 * 2 * batch * positions * one_kernel * products
    kind = "product" if geometry.groups == 1 else "grouped"
    if lowering in ("outputs", "reference"):
        operands = batch * (math.prod(problem.inputs[1:]) + positions * features)
        if lowering == "outputs" and geometry.groups == 1 and positions < geometry.taps:
            kind = "cramped"
    elif lowering == "fused":
        operands = batch * math.prod(problem.inputs[1:])
    else:
        operands = batch * positions * geometry.taps * problem.inputs[-1]
    if lowering == "shared" and problem.tap_attention:
        operands *= 2  # patches, and weighted patches
    iterations = 0
    if lowering == "taps":
        iterations = geometry.taps
    elif lowering == "samples":
        iterations = lowerings.num_chunks(batch, problem.kernels[1:], geometry, itemsize)
    sample_kernels = 0
    if mixes_kernels and (problem.mixed or problem.tap_attention):
        # The fused kernel never writes them; its price is that of mixing all candidates.
        sample_kernels = batch * one_kernel * (num_kernels if lowering == "fused" else 1)
    if lowering == "fused" and problem.per_sample:
        # Nothing is mixed: each sample's kernel is written and read, like its inputs.
        operands, sample_kernels = operands + sample_kernels, 0
    reads = iterations if lowering == "samples" else 1
    return Work(
        **{kind: flops},
        inputs=itemsize * operands,
        kernels=itemsize * sample_kernels,
        outputs=itemsize * batch * positions * features * written,
        weights=itemsize * num_kernels * one_kernel * reads,
        iterations=iterations,
    )


def why_no_reference(problem: Problem, platform: str | None = None) -> str | None:
    """Explains why samples should not be the groups of one convolution; None if they may be."""
    if "reference" not in find_prices(platform).of:
        return "for tests: a slow gradient, and it gathers the batch"
    if jax.device_count() > 1:
        return "a convolution whose groups are samples gathers a batch that is sharded"
    if problem.geometry.groups > 1:
        return "samples are its groups, and there are groups of features already"
    if not (problem.mixed or problem.tap_attention):
        return "all samples share a kernel; 'outputs' is the same convolution"
    return None


def why_impossible(lowering: str, problem: Problem, platform: str | None = None) -> str | None:
    """Explains why a lowering cannot solve a problem on a platform; None if it can."""
    return why_unavailable(lowering, platform) or lowerings.why_unsupported(lowering, problem)


def why_unavailable(lowering: str, platform: str | None = None) -> str | None:
    """Explains why a lowering does not exist on a platform; None if it does."""
    platform = platform or find_platform()
    if lowering == "fused" and platform != "tpu":
        return f"it is a kernel for TPUs, and the platform is {platform}"
    return None


def why_no_kernel(problem: Problem, platform: str | None = None) -> str | None:
    """Explains why the fused kernel should not be used on a platform; None if it may be."""
    if not (problem.mixed or problem.tap_attention):
        return "nothing is mixed: this is an ordinary convolution"
    shards = problem.batch_shards
    if shards is None:
        if jax.sharding.get_abstract_mesh().size > 1:
            return (
                "the mesh divides pictures, or several automatic axes leave open what they divide"
            )
        is_here = jax.default_backend() == _priced_platform(platform)
        if is_here and jax.device_count() > 1:
            return "nothing says how the batch is divided over the devices: call jax.set_mesh"
    elif problem.batch % shards:
        return f"a batch of {problem.batch} does not divide over {shards} devices"
    if problem.pixelwise:
        from dyn.ops.fused_pixels_tpu import why_slow  # imports Pallas

        return why_slow(dataclasses.replace(problem, batch=problem.batch // (shards or 1)))
    return None


def why_no_loop(platform: str | None = None) -> str | None:
    """Explains why samples should not be handled a few at a time on a platform; None if they may be."""
    if not find_prices(platform).loops:
        return "one sample at a time leaves an accelerator idle"
    if jax.device_count() > 1:
        return "a loop over samples gathers a batch that is sharded"
    return None


def _priced_platform(platform: str | None) -> str:
    """Returns the platform with the prices for this one; None is the one that is planned for."""
    platform = platform or find_platform()
    platform = {"cuda": "gpu", "rocm": "gpu", "onnx": "tpu"}.get(platform, platform)
    # JAX may run on a platform without prices.
    return platform if platform in PRICES else "gpu"
