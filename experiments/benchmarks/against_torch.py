"""Times our training step against PyTorch's: ODConv by grouped convolutions, and the static network.

    python -m experiments.benchmarks.against_torch --quick

    --size=64 --batch=32        side of a picture in pixels, and pictures per step
    --width=64                  features of the network's first stage
    --dtype=float32             or bfloat16: in torch by autocast
    --runs=5                    timed rounds, after one that warms up
    --quick                     leaves out ODConv with four kernels, and the network of flax's own modules
    --keep_memory               malloc keeps memory that is freed; see below
    --out=runs/benchmarks       the folder of the numbers and the plot

It needs torch, which nothing else does. A step is the forward pass, the backward pass and Adam's update of
a ResNet-18 with 1000 classes. PyTorch's network has the published form of ODConv: one kernel per example,
with the batch folded into the groups of one convolution, in torch's default layout (NCHW, contiguous), as
in the papers' code. Both networks have the same parameters and compute the same numbers
(`tests/experiments/benchmarks/test_torch_resnet.py`). All steps take turns in one process, on all cores,
and the median of the rounds' ratios counts. Writes `against_torch-<size>.json` and `.png`; with
`--keep_memory` their names end in `-keep_memory`.

GNU's malloc returns large blocks to the system when they are freed, and PyTorch allocates its kernels,
gigabytes of them, again in every step: page faults take most of its step on a CPU. So there are two fair
comparisons: with a plain installation of torch, and with `--keep_memory`.
"""

import ctypes
import os
import statistics
from functools import partial
from types import ModuleType

from absl import flags

from dyn import layers
from dyn.models import ResNet18
from experiments.benchmarks import results
from experiments.benchmarks.flax_resnet import make_flax_resnet
from experiments.benchmarks.options import DTYPE, QUICK, RUNS
from experiments.benchmarks.step import BATCH, SIZE, WIDTH, TrainingStep, list_settings
from experiments.core import cli, timing
from experiments.core.errors import UserError

KEEP_MEMORY = flags.DEFINE_bool("keep_memory", False, "Whether malloc keeps memory that is freed.")

# Each row: the layer that makes our blocks' convolutions (None: flax's network), and the PyTorch network
# that it is compared with.
ROWS = {
    "static": (layers.Conv, "torch static"),
    "static, flax": (None, "torch static"),
    "ODConv, K = 1": (partial(layers.ODConv, num_kernels=1, attention_norm="batch"), "torch K = 1"),
    "ODConv, K = 4": (partial(layers.ODConv, num_kernels=4, attention_norm="batch"), "torch K = 4"),
}
# The number of kernels of each PyTorch network; None is static.
TORCH = {"torch static": None, "torch K = 1": 1, "torch K = 4": 4}
QUICK_ROWS = ("static", "ODConv, K = 1")

# Keeps the runtimes out of each other's way: Intel's OpenMP, which some builds of torch have, would keep
# cores busy for 200 ms after a step, and JAX would reserve a GPU's memory.
ENVIRONMENT = {"KMP_BLOCKTIME": "0", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def main() -> None:
    """Times all steps in turn, then prints the table."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    mode = "-keep_memory" if KEEP_MEMORY.value else ""
    path = results.make_folder() / f"against_torch-{SIZE.value}{mode}"
    if KEEP_MEMORY.value:
        keep_memory()
    machine = timing.describe_machine()
    torch, device = import_torch(machine["platform"])
    machine["versions"]["torch"] = torch.__version__
    rows = {name: ROWS[name] for name in (QUICK_ROWS if QUICK.value else ROWS)}
    measured = (
        f"ResNet-18, {SIZE.value} px, batch {BATCH.value}, {DTYPE.value}, torch {torch.__version__} and jax "
        f"{machine['versions']['jax']} on {machine['cores']} cores and {machine['device']}"
        + (", malloc keeps memory" if KEEP_MEMORY.value else "")
    )
    print(f"{measured}; one Adam step", flush=True)
    theirs = {name: make_torch_step(TORCH[name], device) for _, name in rows.values()}
    ours = {
        name: TrainingStep(partial(ResNet18, conv=conv) if conv else partial(make_flax_resnet, 18))
        for name, (conv, _) in rows.items()
    }
    seconds = timing.time_alternately(theirs | ours, RUNS.value)

    print(f"\n{'':18}{'parameters':>12}{'PyTorch, ms':>13}{'ours, ms':>10}{'times our step':>16}")
    measurements = {}
    for name, (_, their_name) in rows.items():
        measurements[name] = row = {
            "parameters": ours[name].parameters,
            "torch_milliseconds": 1e3 * statistics.median(seconds[their_name]),
            "milliseconds": 1e3 * statistics.median(seconds[name]),
            "ratio": timing.compute_ratio(seconds[their_name], seconds[name]),
        }
        print(
            f"{name:18}{row['parameters']:12,}{row['torch_milliseconds']:13,.0f}"
            f"{row['milliseconds']:10,.0f}{row['ratio']:16.2f}"
        )
    results.write_results(
        path,
        {
            **list_settings(),
            "keep_memory": KEEP_MEMORY.value,
            "machine": machine,
            "rows": measurements,
        },
        {name: row["ratio"] for name, row in measurements.items()},
        title="PyTorch's training step against ours",
        caption=f"{measured}. PyTorch's ODConv folds the batch into the groups of one convolution.",
        axis="times our step",
        line=1,
        more_is_better=True,
    )


def keep_memory() -> None:
    """Makes GNU's malloc take large blocks from its heap and never return memory to the system.

    Raises:
        UserError: if the system has another malloc.
    """
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not (mallopt(mmap_max, 0) and mallopt(trim_threshold, -1)):
        raise UserError("--keep_memory needs GNU's C library, which this system does not have.")


def import_torch(platform: str) -> tuple[ModuleType, str]:
    """Returns torch, set up for the device that JAX uses, and the name of that device.

    Raises:
        UserError: if torch is not installed, or cannot use the device that JAX runs on.
    """
    try:
        import torch  # pyrefly: ignore [missing-import]
    except ImportError as error:
        raise UserError(
            "This benchmark needs torch, which nothing else does: pip install torch, on a machine without "
            "a GPU from --index-url https://download.pytorch.org/whl/cpu."
        ) from error
    if platform not in ("cpu", "gpu") or (platform == "gpu" and not torch.cuda.is_available()):
        raise UserError(
            f"JAX runs on {platform}, which this torch ({torch.__version__}) does not support: install one "
            "that does, or set JAX_PLATFORMS=cpu."
        )
    torch.set_num_threads(timing.count_usable_cores())
    if platform == "cpu":
        return torch, "cpu"
    torch.backends.cudnn.benchmark = True
    # TensorFloat-32 for float32, the default of XLA and of torch's convolutions.
    torch.set_float32_matmul_precision("high")
    return torch, "cuda"


def make_torch_step(num_kernels: int | None, device: str):
    """Returns PyTorch's training step with `num_kernels` candidate kernels; None for static convolutions."""
    # This module imports torch, which may be missing.
    from experiments.benchmarks import torch_resnet

    conv = torch_resnet.make_static_conv
    if num_kernels is not None:
        conv = partial(torch_resnet.ODConv, num_kernels=num_kernels)
    network = torch_resnet.ResNet18(conv, WIDTH.value)
    return torch_resnet.TorchStep(network, device, DTYPE.value, BATCH.value, SIZE.value)


if __name__ == "__main__":
    cli.run_command(main, __doc__)
